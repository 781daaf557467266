"""A tiny Florence-2 with random weights, and every task on one picture: `--model demo`.

Nothing is downloaded. The architecture, the compiled generation loop and the parsers are the real
ones; only the weights are not trained, so the answers are noise in the right grammar.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from PIL import Image

from florence_jax import config as configs
from florence_jax.demo.street_scene import demo_scene
from florence_jax.generation import PUBLISHED
from florence_jax.inference.pipeline import Florence2Pipeline, Request
from florence_jax.model import Model, random_params_with_spread_logits
from florence_jax.processing import TASKS, demo_tokenizer
from florence_jax.processing.tasks import Compat
from florence_jax.quantization import Quantization, quantized

WEIGHTS_NOTICE = (
    "The demonstration's weights are random: its answers show the machinery and mean nothing."
)
_SEED = 0


def demo_pipeline(
    dtype: str = "float32", *, quantize: Quantization | None = None, compat: Compat = None
) -> Florence2Pipeline:
    """A pipeline around a tiny Florence-2 with random weights and a byte-level tokenizer."""
    model = Model(config=configs.tiny(), dtype=dtype)
    params = random_params_with_spread_logits(model.config, _SEED)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    return Florence2Pipeline(
        model=model,
        params=quantized(params, quantize),
        tokenizer=demo_tokenizer(),
        generation=PUBLISHED,
        compat=compat,
    )


def demo_requests() -> tuple[Image.Image, list[Request]]:
    """The bundled picture, and one request for each of the 15 tasks on it."""
    image, truth = demo_scene()
    objects = truth["<OD>"]
    region = objects["bboxes"][0]
    inputs = {
        "<CAPTION_TO_PHRASE_GROUNDING>": {"text": truth["<CAPTION>"]},
        "<REFERRING_EXPRESSION_SEGMENTATION>": {"text": "the red car"},
        "<OPEN_VOCABULARY_DETECTION>": {"text": sorted(set(objects["labels"]))[:2]},
    }
    requests = []
    for token, task in TASKS.items():
        given = {"region": region} if task.takes == "region" else inputs.get(token, {})
        requests.append(Request(image=image, prompt=token, **given))
    return image, requests
