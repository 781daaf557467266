"""The image encoder runs once an image, however often it is asked about."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import florence_jax as fj
from florence_jax.processing import ImageConfig
from tests.inference.counting import counted_images
from tests.inference.results import assert_close
from tests.random_pipeline import random_pipeline

SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def pipe():
    return dataclasses.replace(random_pipeline(), image_config=ImageConfig(size=(64, 64)))


def picture(seed):
    """uint8[40, 60, 3] in large blocks: fine noise would look alike to the encoder."""
    blocks = np.random.default_rng(seed).integers(0, 255, (2, 3, 3), np.uint8)
    return np.kron(blocks, np.ones((20, 20, 1), np.uint8))


QUESTIONS = [
    {"prompts": ["<CAPTION>", "<REGION_PROPOSAL>", "<OCR>"]},
    {"prompts": "<REGION_TO_CATEGORY>", "region": [(1, 2, 30, 20), (5, 5, 50, 35)]},
    {"prompts": "<OPEN_VOCABULARY_DETECTION>", "text": [["cat"], ["dog", "car"]]},
]


def each_alone(pipe, image, prompts, **inputs):
    """The same questions, one call each."""
    name, values = next(iter(inputs.items()), (None, [None] * len(prompts)))
    prompts = [prompts] * len(values) if isinstance(prompts, str) else prompts
    return [
        pipe(image, prompt, **({} if name is None else {name: value}), **SHORT)
        for prompt, value in zip(prompts, values, strict=True)
    ]


@pytest.mark.parametrize("question", QUESTIONS, ids=["prompts", "regions", "classes"])
def test_one_image_with_several_questions(pipe, question):
    image = picture(0)
    with counted_images() as runs:
        together = pipe(image, **question, **SHORT)
    assert runs == [1]
    assert_close(together, each_alone(pipe, image, **question))


def test_more_questions_than_a_batch_holds(pipe):
    image, tasks = picture(0), ["<CAPTION>", "<REGION_PROPOSAL>", "<OCR>", "<CAPTION>"]
    with counted_images() as runs:
        together = pipe(image, tasks, batch_size=2, **SHORT)
    assert runs == [1]
    assert_close(together, pipe(image, tasks, **SHORT))


def test_images_that_take_turns_are_answered_in_the_order_asked(pipe):
    first, second = picture(1), picture(2)
    images = [first, second] * 3
    tasks = ["<CAPTION>", "<CAPTION>", "<REGION_PROPOSAL>", "<REGION_PROPOSAL>", "<OCR>", "<OCR>"]
    with counted_images() as runs:
        together = pipe(images, tasks, batch_size=2, **SHORT)
    assert sum(runs) == 2
    alone = [pipe(image, task, **SHORT) for image, task in zip(images, tasks, strict=True)]
    assert_close(together, alone)


@pytest.mark.parametrize("kind", ["path", "bytes", "pil", "array"])
def test_every_kind_of_image_is_recognised(pipe, tmp_path, kind):
    Image.fromarray(picture(3)).save(tmp_path / "a.png")
    image = {
        "path": tmp_path / "a.png",
        "bytes": (tmp_path / "a.png").read_bytes(),
        "pil": Image.fromarray(picture(3)),
        "array": picture(3),
    }[kind]
    requests = [
        fj.Request(image=image, prompt=task) for task in ("<CAPTION>", "<REGION_PROPOSAL>", "<OCR>")
    ]
    settings = dataclasses.replace(pipe.generation, **SHORT)
    with counted_images() as runs:
        # Two batches: the second knows the image of the first.
        list(pipe.answer(requests, settings, batch_size=2))
    assert runs == [1]


def test_an_image_that_changed_meanwhile_is_encoded_again(pipe, tmp_path):
    settings = dataclasses.replace(pipe.generation, **SHORT)
    buffer, path = picture(4), tmp_path / "latest.png"

    def frames(image):
        for seed in (4, 5, 5):
            buffer[...] = picture(seed)
            Image.fromarray(buffer).save(path)
            yield fj.Request(image=image, prompt="<REGION_PROPOSAL>")

    expected = [pipe(picture(seed), "<REGION_PROPOSAL>", **SHORT) for seed in (4, 5, 5)]
    with pytest.raises(AssertionError):
        assert_close(expected[0], expected[1])
    for image in (buffer, path):
        with counted_images() as runs:
            answers = list(pipe.answer(frames(image), settings, batch_size=1))
        assert runs == [1, 1], "the third frame is the second"
        assert_close(answers, expected)


def test_a_handle_is_asked_again_and_again(pipe):
    images = [picture(6), picture(7), picture(8)]
    with counted_images() as runs:
        encoded = pipe.encode(images)
        one = pipe.encode(images[0])
    assert runs == [2, 1, 1], "three images are two and one"
    with counted_images() as runs:
        answers = [pipe(encoded, task, **SHORT) for task in ("<CAPTION>", "<REGION_PROPOSAL>")]
        region = pipe(one, "<REGION_TO_CATEGORY>", region=(3, 4, 50, 30), **SHORT)
    assert runs == []
    for answer, task in zip(answers, ("<CAPTION>", "<REGION_PROPOSAL>"), strict=True):
        assert_close(answer, pipe(images, task, **SHORT))
    assert_close(region, pipe(images[0], "<REGION_TO_CATEGORY>", region=(3, 4, 50, 30), **SHORT))
    native = dataclasses.replace(pipe, compat="native")
    assert native(one, "<REGION_PROPOSAL>", **SHORT) == native(
        images[0], "<REGION_PROPOSAL>", **SHORT
    )


def test_handles_of_several_sizes_and_new_images_in_one_call(pipe):
    image = picture(9)
    large = pipe.encode(image, image_size=(96, 128))
    assert large.features.shape[0] == 1 + 3 * 4
    wide = dataclasses.replace(pipe, image_config=ImageConfig(size=(96, 128)))
    tasks = ["<REGION_PROPOSAL>", "<REGION_PROPOSAL>", "<CAPTION>"]
    together = pipe([large, image, large], tasks, **SHORT)
    alone = [
        pipeline(image, task, **SHORT)
        for pipeline, task in zip((wide, pipe, wide), tasks, strict=True)
    ]
    assert_close(together, alone)
    with pytest.raises(AssertionError):
        assert_close(together[0], together[1])


def test_a_handle_of_other_weights_is_refused(pipe):
    other = dataclasses.replace(pipe, params=dict(pipe.params))
    with pytest.raises(ValueError, match="a pipeline with other weights"):
        other(pipe.encode(picture(0)), "<CAPTION>", **SHORT)


def test_an_error_comes_after_the_answers_before_it(pipe):
    good = fj.Request(image=picture(0), prompt="<CAPTION>")
    bad = fj.Request(image=b"not an image", prompt="<CAPTION>")
    settings = dataclasses.replace(pipe.generation, **SHORT)
    answers = pipe.answer([good, bad], settings, batch_size=1)
    assert next(answers) == pipe(picture(0), "<CAPTION>", **SHORT)
    with pytest.raises(fj.ImageError):
        next(answers)
