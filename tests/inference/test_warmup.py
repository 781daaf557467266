"""After a warmup nothing is traced or compiled, whatever is mixed in a batch."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from florence_jax.processing import TASKS, ImageConfig
from tests.inference.counting import counted_programs
from tests.random_pipeline import random_pipeline

# Greedy, because its programs compile in half the time.
SETTINGS = {"num_beams": 1, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def demo():
    return dataclasses.replace(random_pipeline(), image_config=ImageConfig(size=(64, 64)))


def mixed_batch(rng, number):
    """Images, prompts and what goes with them: 1 to 9 requests about 1 to 4 images."""
    images = [rng.integers(0, 255, (*rng.integers(8, 80, 2), 3), np.uint8) for _ in range(4)]
    requests = []
    for _ in range(rng.integers(1, 10)):
        token = str(rng.choice(list(TASKS)))
        image = images[rng.integers(1 + number % 4)]
        text, region = None, None
        if TASKS[token].takes == "text":
            text = "cat " * int(rng.integers(1, 7))
        elif TASKS[token].takes == "region":
            height, width, _ = image.shape
            (x0, x1), (y0, y1) = (np.sort(rng.uniform(0, side, 2)) for side in (width, height))
            region = [float(x0), float(y0), float(x1), float(y1)]
        requests.append((image, token, text, region))
    return [list(column) for column in zip(*requests, strict=True)]


def test_twenty_mixed_batches_compile_nothing(demo):
    seconds = demo.warmup(
        # 31 and 62 tokens of the byte-level tokenizer.
        prompts=["<CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>" + "x" * 25],
        batch_sizes=(1, 2),
        image_sizes=[(64, 64), (96, 64)],
        progress=False,
        **SETTINGS,
    )
    # Two image sizes, two batch sizes, and for each one encoder and two prompt lengths.
    assert len(seconds) == 2 * 2 * (1 + 2)
    assert all(taken > 0 for taken in seconds.values())
    rng = np.random.default_rng(0)
    with counted_programs() as programs:
        for number in range(20):
            images, prompts, texts, regions = mixed_batch(rng, number)
            settings = {
                "num_beams": 1,
                "max_new_tokens": int(rng.integers(4, 64)),
                "length_penalty": float(rng.uniform(0.5, 2)),
                "repetition_penalty": float(rng.choice([1.0, 1.5])),
            }
            if number % 5 == 4:
                images = demo.encode(images, image_size=(96, 64), batch_size=2)
            answers = demo(images, prompts, text=texts, region=regions, batch_size=2, **settings)
            assert [list(answer) for answer in answers] == [[prompt] for prompt in prompts]
    assert programs == []


def test_weights_that_pin_their_device(demo):
    """Programs of placed arguments are others, and so are the features that they exchange."""
    params = jax.device_put(demo.params, jax.devices()[0])
    pipe = dataclasses.replace(demo, params=params)
    pipe.warmup(prompts=["<CAPTION>"], batch_sizes=(1,), progress=False, **SETTINGS)
    with counted_programs() as programs:
        pipe(np.zeros((8, 8, 3), np.uint8), "<CAPTION>", **SETTINGS)
    assert programs == []


def test_constrained_answers_where_they_were_asked_for(demo):
    seconds = demo.warmup(
        prompts=["<OD>"], batch_sizes=(1,), constrained=True, progress=False, **SETTINGS
    )
    assert [name.split(" 64x64")[0] for name in seconds] == [
        "encode",
        "generate",
        "generate constrained",
    ]
    image = np.zeros((8, 8, 3), np.uint8)
    with counted_programs() as programs:
        demo(image, "<OD>", constrained=True, **SETTINGS)
        demo(image, "<OD>", constrained=True, labels=["cat", "dog"], **SETTINGS)
        demo(image, "<OD>", **SETTINGS)
    assert programs == []


def test_what_was_not_warmed_up_is_counted(demo):
    """The counter above sees a compilation where there is one."""
    image = np.zeros((8, 8, 3), np.uint8)
    with counted_programs() as programs:
        demo(image, "<CAPTION>", max_new_tokens=4, num_beams=1, no_repeat_ngram_size=5)
    assert any("generate_jit" in name for name in programs)


def test_the_default_is_every_task_and_the_default_batches(demo):
    seconds = dataclasses.replace(demo).warmup(progress=False, num_beams=1, max_new_tokens=4)
    # The byte-level tokenizer's prompts are longer than the published one's.
    assert [name for name in seconds if "batch 8" in name] == [
        "encode 64x64, batch 8",
        "generate 64x64, batch 8, prompt 32",
        "generate 64x64, batch 8, prompt 64",
    ]
    with counted_programs() as programs:
        for count in (1, 2, 3, 8, 11):
            images = [np.full((8, 8, 3), shade, np.uint8) for shade in range(count)]
            demo(images, "<MORE_DETAILED_CAPTION>", num_beams=1, max_new_tokens=4)
    assert programs == []


def test_progress_is_on_stderr_and_can_be_left_out(demo, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # a bar is for a terminal
    for progress in (True, False):
        demo.warmup(
            prompts=["<OD>"], batch_sizes=(1,), progress=progress, num_beams=1, max_new_tokens=4
        )
        output = capsys.readouterr()
        assert output.out == ""
        assert ("2/2" in output.err and "generate 64x64" in output.err) is progress


def test_a_prompt_that_no_request_could_have_is_refused(demo):
    with pytest.raises(ValueError, match="the prompt is too long"):
        demo.warmup(prompts=["<DocVQA>" + "very " * 900], progress=False)
