"""The pipeline as a user of Python meets it: what it refuses, returns, draws, prints and saves."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import florence_jax as fj
from florence_jax.demo import SHAPES
from florence_jax.inference.compiled import JitFns
from florence_jax.processing import load_image
from tests.inference.results import assert_close

SCENE = SHAPES / "scenes" / "test" / "000200.png"
# One program a batch size for most of this file.
SHORT = {"max_new_tokens": 32}


@pytest.fixture(scope="module")
def pipe():
    return fj.Florence2Pipeline.from_pretrained("shapes")


@pytest.fixture(scope="module")
def encoded(pipe):
    return pipe.encode(SCENE)


@pytest.mark.parametrize(
    ("prompt", "given", "message"),
    [
        ("OD", {}, "did you mean '<OD>'"),
        ("<ODD>", {}, "did you mean '<OD>'"),
        ("<REGION_TO_CATEGORY>", {}, "needs a region"),
        ("<CAPTION_TO_PHRASE_GROUNDING>", {}, "needs a text"),
        ("<REGION_TO_CATEGORY>", {"region": (0.1, 0.1, 0.5, 0.5)}, "looks like shares"),
        ("<REGION_TO_CATEGORY>", {"region": (0, 0, 500, 90)}, "outside the image of 192 x 192"),
        ("<REGION_TO_CATEGORY>", {"region": 5}, "region must be"),
        ("<OD>", {"text": "a cat"}, "takes no input"),
    ],
)
@pytest.mark.parametrize("compat", [None, "native", "original"])
def test_a_wrong_request_is_refused_before_any_model_runs(
    pipe, monkeypatch, prompt, given, message, compat
):
    def ran(self, *arguments):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(JitFns, "encode", ran)
    monkeypatch.setattr(JitFns, "generate", ran)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(pipe, compat=compat)([SCENE, SCENE], prompt, **given)


def test_a_declared_task_needs_no_free_prompt(tmp_path, pipe):
    question = "<DocVQA>what is this?"
    with pytest.raises(ValueError, match="none of the 15"):
        pipe(SCENE, question, max_new_tokens=3)
    assert list(pipe(SCENE, question, max_new_tokens=3, free_prompt=True)) == ["<DocVQA>"]
    fine_tune = tmp_path / "fine-tune"
    shutil.copytree(SHAPES, fine_tune, ignore=shutil.ignore_patterns("scenes"))
    file = fine_tune / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tasks": ["<DocVQA>"]}))
    declared = fj.Florence2Pipeline.from_pretrained(fine_tune)
    assert list(declared(SCENE, question, max_new_tokens=3)) == ["<DocVQA>"]
    file.write_text(json.dumps({"tasks": "<DocVQA>"}))
    with pytest.raises(fj.CheckpointError, match="tasks is '<DocVQA>', expected a list"):
        fj.Florence2Pipeline.from_pretrained(fine_tune)


def test_a_token_of_the_tokenizer_declares_a_task(pipe):
    from tokenizers import AddedToken

    from florence_jax.processing.tokenizer import FlorenceTokenizer
    from florence_jax.processing.vocabulary import demo_backend

    backend = demo_backend()
    assert FlorenceTokenizer(backend).declared_tasks() == frozenset()
    assert pipe.declared_tasks == frozenset()
    backend.add_tokens([AddedToken("<DocVQA>"), AddedToken("plain")])
    assert FlorenceTokenizer(backend).declared_tasks() == {"<DocVQA>"}


def test_a_bad_request_gives_its_error_and_the_rest_their_results(pipe, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(SCENE.read_bytes()[:200])
    images = [SCENE, broken, SCENE, tmp_path / "none.png", SCENE]
    prompts = ["<CAPTION>", "<CAPTION>", "<REGION_TO_CATEGORY>", "<OD>", "<OD>"]
    regions = [None, None, (0, 0, 500, 500), None, None]
    results = pipe(images, prompts, region=regions, on_error="return", batch_size=2, **SHORT)
    assert [type(result).__name__ for result in results] == [
        *("dict", "ImageError", "ValueError", "ImageError", "dict")
    ]
    assert "broken.png" in str(results[1])
    assert "outside the image" in str(results[2])
    assert results[0] == pipe(SCENE, "<CAPTION>", **SHORT)
    assert_close(results[4], pipe(SCENE, "<OD>", **SHORT))
    assert isinstance(pipe(broken, "<OD>", on_error="return"), fj.ImageError)
    with pytest.raises(fj.ImageError, match="broken"):
        pipe(images, "<CAPTION>")
    with pytest.raises(ValueError, match='on_error must be "raise" or "return"'):
        pipe(SCENE, "<CAPTION>", on_error="ignore")


def test_a_prompt_that_is_too_long_costs_only_its_own_answer(pipe, encoded):
    long = "<CAPTION_TO_PHRASE_GROUNDING>" + "a red square " * 200
    asked = ["<CAPTION>", long, "<OD>"]
    results = pipe(encoded, asked, on_error="return", batch_size=4, **SHORT)
    assert results[0] == pipe(encoded, "<CAPTION>", **SHORT)
    assert "the prompt is too long" in str(results[1])
    assert_close(results[2], pipe(encoded, "<OD>", **SHORT))


def test_a_seed_decides_what_sampling_draws(pipe, encoded):
    settings = {"do_sample": True, "temperature": 3.0, "top_k": 0, "max_new_tokens": 12}
    prompts = ["<MORE_DETAILED_CAPTION>"] * 3

    def drawn(seed):
        return pipe(encoded, prompts, seed=seed, batch_size=2, **settings)

    first = drawn(0)
    assert first == drawn(0)
    assert first != drawn(1)
    # Requests of different batches draw differently too.
    assert len({answer["<MORE_DETAILED_CAPTION>"] for answer in first}) == 3
    with pytest.raises(ValueError, match="pass seed=0"):
        pipe(encoded, "<CAPTION>", do_sample=True)
    with pytest.raises(ValueError, match="seed must be an integer, got 'a'"):
        pipe(encoded, "<CAPTION>", do_sample=True, seed="a")
    assert pipe(encoded, "<CAPTION>", seed=1, **SHORT) == pipe(encoded, "<CAPTION>", **SHORT)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("rng", "seed"),
        ("max_tokens", "max_new_tokens"),
        ("num_beam", "num_beams"),
        ("beams", "num_beams"),
        ("classes", "text"),
        ("regions", "region"),
        ("constrain", "constrained"),
    ],
)
def test_an_unknown_keyword_says_what_exists(pipe, keyword, meant):
    with pytest.raises(
        TypeError, match=f"no keyword {keyword!r}. Did you mean {meant!r}"
    ) as caught:
        pipe(SCENE, "<OD>", **{keyword: 1})
    assert all(name in str(caught.value) for name in ("seed", "on_error", "max_new_tokens"))


def test_representations_are_one_line(pipe, encoded):
    for value in (pipe, pipe.model, encoded, fj.Processor.from_pretrained("shapes")):
        text = repr(value)
        assert len(text) < 300, text
        assert "\n" not in text
    assert "7.5M parameters" in repr(pipe)
    assert "192x192" in repr(encoded)
    assert repr(fj.Florence2Config()) != repr(pipe.model)


def test_drawing_takes_a_path(tmp_path):
    result = {"<OD>": {"bboxes": [[10, 10, 90, 90]], "labels": ["star"]}}
    expected = fj.draw_result(load_image(SCENE), result)
    for source in (SCENE, str(SCENE)):
        assert np.array_equal(np.asarray(fj.draw_result(source, result)), np.asarray(expected))
    with pytest.raises(fj.ImageError, match="does not exist"):
        fj.draw_result(tmp_path / "none.png", result)


def test_the_processor_feeds_the_model(pipe):
    model, params = fj.load("shapes")
    processor = fj.Processor.from_pretrained("shapes")
    inputs = processor(images=[SCENE, SCENE], text=["<OD>", "<CAPTION>"])
    assert inputs["pixel_values"].shape == (2, 192, 192, 3)
    assert inputs["pixel_values"].dtype == np.float32
    features = model.encode_image(params, inputs["pixel_values"])
    out = fj.generate(
        model,
        params,
        image_features=features,
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        config=dataclasses.replace(pipe.generation, **SHORT),
    )
    expected = pipe(SCENE, "<OD>", **SHORT)
    result = processor.post_process(out.sequences[0], "<OD>", (192, 192))
    assert result["<OD>"]["labels"] == expected["<OD>"]["labels"]
    np.testing.assert_allclose(result["<OD>"]["bboxes"], expected["<OD>"]["bboxes"])
    caption = processor.batch_decode(out.sequences)[1]
    assert processor.post_process(caption, "<CAPTION>", (192, 192)) == pipe(
        SCENE, "<CAPTION>", **SHORT
    )


def test_the_processor_checks_what_it_is_asked():
    processor = fj.Processor.from_pretrained("shapes")
    with pytest.raises(ValueError, match="did you mean '<OD>'"):
        processor.prompts("<od>")
    with pytest.raises(ValueError, match="needs a region"):
        processor.prompts("<REGION_TO_OCR>")
    with pytest.raises(ValueError, match="neither images nor text"):
        processor()
    region = {"region": (1, 2, 30, 40), "image_size": (100, 100)}
    assert processor.prompts("<REGION_TO_OCR>", **region).shape[0] == 1
    with pytest.raises(ValueError, match="belong to one prompt"):
        processor.prompts(["<REGION_TO_OCR>"] * 2, **region)


def _transformers_processor(directory):
    """transformers' own, with the image processor that reads PIL images as the published one."""
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.florence2.processing_florence2 import Florence2Processor

    config = json.loads((directory / "processor_config.json").read_text())
    return Florence2Processor(
        CLIPImageProcessorPil.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
        post_processor_config=config["post_processor_config"],
    )


def test_the_processor_is_transformers_own_transposed():
    theirs = _transformers_processor(SHAPES)
    picture = load_image(SCENE).resize((300, 170))
    prompts = ["<OD>", "<CAPTION_TO_PHRASE_GROUNDING>a red square", "<MORE_DETAILED_CAPTION>"]
    expected = theirs(images=[picture] * 3, text=prompts, padding=True, return_tensors="np")
    found = fj.Processor.from_pretrained("shapes")(images=[picture] * 3, text=prompts)
    pixels = found["pixel_values"].transpose(0, 3, 1, 2)
    assert np.array_equal(pixels, np.asarray(expected["pixel_values"]))
    tokens = 65  # of the image, which transformers puts in front of the text
    assert np.array_equal(found["input_ids"], np.asarray(expected["input_ids"])[:, tokens:])
    mask = np.asarray(expected["attention_mask"])[:, tokens:]
    assert np.array_equal(found["attention_mask"], mask)


def test_transformers_reads_answers_with_the_shipped_processor():
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(SHAPES)
    box, corner = "<loc_100><loc_100><loc_300><loc_300>", "<loc_1><loc_1><loc_9><loc_9>"
    answers = {
        "<OD>": (f"star{box}", ["star"]),
        "<CAPTION_TO_PHRASE_GROUNDING>": (f"a star{box}the image{corner}", ["a star"]),
        "<OCR_WITH_REGION>": ("AB" + "<loc_9>" * 8, ["AB"]),
        "<REGION_TO_SEGMENTATION>": ("<loc_1><loc_1><loc_9><loc_1><loc_9><loc_9>", [""]),
    }
    for task, (answer, expected) in answers.items():
        text = f"</s><s>{answer}</s>"
        result = processor.post_process_generation(text=text, task=task, image_size=(192, 192))
        assert result[task]["labels"] == expected
        assert result == fj.parse(text, task, (192, 192), compat="native")
