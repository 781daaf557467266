"""A small Florence-2 with random weights, for tests whose answers need not mean anything."""

import atexit
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from florence_jax.generation import PUBLISHED
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.inference.requests import Request
from florence_jax.model import Model, random_params_with_spread_logits
from florence_jax.processing import TASKS, demo_tokenizer
from florence_jax.quantization import quantized
from tests.small_model import small_model_config

SETTINGS = {"max_new_tokens": 10, "num_beams": 1}


def random_pipeline(dtype="float32", *, quantize=None, compat=None):
    """A pipeline for images of 768 x 768 pixels with a byte-level tokenizer."""
    model = Model(config=small_model_config(), dtype=dtype)
    params = random_params_with_spread_logits(model.config, 0)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    return Florence2Pipeline(
        model=model,
        params=quantized(params, quantize),
        tokenizer=demo_tokenizer(),
        generation=PUBLISHED,
        compat=compat,
    )


def small_pipeline(**changes):
    """The same model for images of 64 x 64 pixels and short answers: it answers in milliseconds."""
    pipeline = random_pipeline()
    return dataclasses.replace(
        pipeline,
        image_config=dataclasses.replace(pipeline.image_config, size=(64, 64)),
        generation=dataclasses.replace(pipeline.generation, **SETTINGS),
        **changes,
    )


@functools.cache
def random_checkpoint() -> Path:
    """Checkpoint directory of `small_pipeline()`, for `--model`; removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="random-checkpoint-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    small_pipeline().save_pretrained(folder / "model")
    return folder / "model"


def random_image(width=80, height=60):
    """A picture of noise, the same one on every call."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def one_request_a_task() -> list[Request]:
    """A request for each of the 15 tasks about the same picture."""
    image = random_image()
    texts = {
        "<CAPTION_TO_PHRASE_GROUNDING>": "A red car parked in front of a house and a tree.",
        "<REFERRING_EXPRESSION_SEGMENTATION>": "the red car",
        "<OPEN_VOCABULARY_DETECTION>": ["car", "door"],
    }
    region = [30, 20, 50, 40]
    return [
        Request(
            image=image,
            prompt=token,
            text=texts.get(token),
            region=region if task.takes == "region" else None,
        )
        for token, task in TASKS.items()
    ]
