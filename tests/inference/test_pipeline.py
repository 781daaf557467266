"""The pipeline end to end, beside transformers' processor, model and post-processor."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

import florence_jax as fj
from florence_jax.generation.generate import compilation_count
from florence_jax.processing import TASKS
from tests.inference.results import assert_close
from tests.random_pipeline import one_request_a_task, random_image, random_pipeline
from tests.shared_data import needs_shared, shared_path
from tests.small_checkpoint import write_small_checkpoint

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("small-checkpoint")
    write_small_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return fj.Florence2Pipeline.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def demo():
    return random_pipeline()


@needs_shared
@pytest.mark.parametrize(
    ("image", "prompt"),
    [
        ("sam_dog.jpg", "<OD>"),
        ("receipt_cord.jpg", "<OCR_WITH_REGION>"),
        ("rocket.jpg", "<CAPTION_TO_PHRASE_GROUNDING>a rocket on its pad"),
        ("chelsea.jpg", "<REGION_PROPOSAL>"),
        ("docvqa_cocacola.jpg", "<MORE_DETAILED_CAPTION>"),
        ("flower.jpg", "<OPEN_VOCABULARY_DETECTION>a petal"),
    ],
)
def test_native_results_are_transformers_own(checkpoint, image, prompt):
    """Processor, generation and post-processing of transformers 5, on the same file."""
    import torch
    from transformers import AutoTokenizer, Florence2ForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.florence2.processing_florence2 import Florence2Processor

    picture = Image.open(shared_path("images", image)).convert("RGB")
    post = json.loads(shared_path("processor", "processor_config.json").read_text())[
        "post_processor_config"
    ]
    processor = Florence2Processor(
        CLIPImageProcessorPil.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
        post_processor_config=post,
    )
    model = Florence2ForConditionalGeneration.from_pretrained(checkpoint).eval()
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    text = processor.batch_decode(ids, skip_special_tokens=False)[0]
    task = prompt[: prompt.index(">") + 1]
    expected = processor.post_process_generation(text=text, task=task, image_size=picture.size)

    ours = fj.Florence2Pipeline.from_pretrained(checkpoint, compat="native")
    assert ours(picture, prompt, max_new_tokens=NEW_TOKENS) == expected


@needs_shared
def test_decoding_settings_are_the_checkpoints(pipe):
    settings = pipe.generation
    assert (settings.num_beams, settings.no_repeat_ngram_size) == (3, 3)
    assert settings.early_stopping is True


@needs_shared
def test_a_row_does_not_depend_on_its_neighbours(pipe):
    images = [shared_path("images", name) for name in ("rocket.jpg", "sam_dog.jpg", "flower.jpg")]
    prompts = ["<CAPTION>", "<OD>", "<OPEN_VOCABULARY_DETECTION>a very small white petal"]
    together = pipe(images, prompts, max_new_tokens=NEW_TOKENS)
    alone = [
        pipe(image, prompt, max_new_tokens=NEW_TOKENS)
        for image, prompt in zip(images, prompts, strict=True)
    ]
    in_pairs = pipe(images, prompts, max_new_tokens=NEW_TOKENS, batch_size=2)
    assert_close(together, alone)
    assert_close(in_pairs, alone)


@needs_shared
def test_boxes_are_in_the_frame_that_the_user_sees(pipe):
    """A file with an EXIF turn gives what its upright copy gives."""
    path = shared_path("images", "exif_orientation6_hopper.jpg")
    upright = fj.load_image(path)
    with Image.open(path) as stored:
        assert upright.size == stored.size[::-1] or upright.size[0] == upright.size[1]
    turned = pipe(path, "<OD>", max_new_tokens=NEW_TOKENS)
    assert_close(turned, pipe(upright, "<OD>", max_new_tokens=NEW_TOKENS))


@needs_shared
def test_without_a_tokenizer_the_base_models_is_taken_and_named(checkpoint, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, bare / name)
    resolved = []

    def resolve(source, revision=None, *, weights=True):
        resolved.append((str(source), weights))
        return shared_path("processor") if source == "microsoft/Florence-2-base" else source

    monkeypatch.setattr("florence_jax.inference.pipeline.resolve", resolve)
    with pytest.warns(UserWarning, match="has no tokenizer files; taking those of microsoft"):
        pipe = fj.Florence2Pipeline.from_pretrained(bare)
    assert ("microsoft/Florence-2-base", False) in resolved
    assert pipe.tokenizer.encode(["cat"])[0][0] == 0

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fj.Florence2Pipeline.from_pretrained(bare, processor=shared_path("processor"))


@needs_shared
def test_weights_alone_need_no_processor(checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, tmp_path / name)
    model, params = fj.load(tmp_path, dtype="bfloat16")
    assert model.dtype == "bfloat16"
    features = model.encode_image(params, np.zeros((1, 64, 64, 3), np.float32))
    assert features.shape == (1, 5, model.config.text.d_model)
    assert features.dtype == np.dtype("bfloat16")


def test_every_task_answers(demo):
    results = list(
        demo.answer(one_request_a_task(), dataclasses.replace(demo.generation, max_new_tokens=16))
    )
    assert [list(result) for result in results] == [[token] for token in TASKS]
    for result, (token, task) in zip(results, TASKS.items(), strict=True):
        answer = result[token]
        if task.answer == "pure_text":
            assert isinstance(answer, str)
        elif task.answer == "description_with_bboxes_or_polygons":
            assert len(answer["bboxes"]) == len(answer["bboxes_scores"])
        else:
            shapes = next(
                answer[key] for key in ("bboxes", "quad_boxes", "polygons") if key in answer
            )
            assert len(shapes) == len(answer["labels"]) == len(answer["scores"])
            assert all(0 <= score <= 1 for score in answer["scores"])


def test_lists_and_single_values(demo):
    image = random_image()
    short = {"max_new_tokens": 8}
    one = demo(image, "<CAPTION>", **short)
    assert list(one) == ["<CAPTION>"]
    assert demo([image], "<CAPTION>", **short) == [one]
    assert demo(image, ["<CAPTION>", "<CAPTION>"], **short) == [one, one]
    assert demo([image, image], "<CAPTION>", **short) == [one, one]
    assert demo([], "<CAPTION>") == []
    several = demo(
        [image, image],
        ["<REGION_TO_CATEGORY>", "<CAPTION>"],
        region=[(10, 10, 50, 50), None],
        **short,
    )
    assert [list(result) for result in several] == [["<REGION_TO_CATEGORY>"], ["<CAPTION>"]]
    classes = demo(image, "<OPEN_VOCABULARY_DETECTION>", text=["cat", "dog"], **short)
    joined = demo(image, "<OPEN_VOCABULARY_DETECTION>cat <and> dog", **short)
    assert classes == joined


def test_free_prompts_are_asked_as_they_are(demo):
    image = random_image()
    question = "<DocVQA>What is the total?"
    assert list(demo(image, question, max_new_tokens=4, free_prompt=True)) == ["<DocVQA>"]
    assert list(demo(image, "Is this a house?", max_new_tokens=4)) == ["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["<OD>"] * 2, "images": 3}, "2 prompts were given for 3 requests"),
        ({"prompts": "<OD>", "batch_size": 0}, "batch_size is 0"),
        ({"prompts": "<OD>", "num_return_sequences": 2}, "num_return_sequences is 2"),
        ({"prompts": "<OD> and more"}, "takes no input"),
        ({"prompts": "<CAPTION>" + "very " * 900}, "takes no input"),
        ({"prompts": "What is " + "very " * 900}, "the prompt is too long"),
        ({"prompts": "<CAPTION>", "max_new_tokens": 5000}, "5000"),
    ],
)
def test_wrong_calls_say_what_is_wrong(demo, arguments, message):
    image = random_image()
    images = [image] * arguments.pop("images", 1)
    with pytest.raises(ValueError, match=message):
        demo(images, **arguments)


def test_nothing_compiles_for_a_new_image_or_prompt(demo):
    rng = np.random.default_rng(0)

    def picture(height, width):
        return rng.integers(0, 255, (height, width, 3), np.uint8)

    demo([picture(40, 30)] * 4, "<OD>", max_new_tokens=8, batch_size=4)
    demo(picture(40, 30), "<OD>", max_new_tokens=8)
    compiled = compilation_count()
    for size in ((20, 70), (333, 100)):
        demo(picture(*size), "<CAPTION>", max_new_tokens=7)
        # Three requests fill up to a batch of four.
        demo([picture(*size)] * 3, ["<OD>", "<CAPTION>", "<OCR>"], max_new_tokens=9, batch_size=4)
    assert compilation_count() == compiled
