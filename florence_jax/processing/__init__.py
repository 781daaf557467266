"""Inputs and results: images to pixels, tasks to prompts, generated text to boxes and labels.

No jax and no torch: everything here runs on the host, before and after the model.
"""

from florence_jax.processing.image import ImageError
from florence_jax.processing.image.load import load_image
from florence_jax.processing.image.pixels import ImageConfig, preprocess_image
from florence_jax.processing.locations import (
    box_to_text,
    dequantize,
    quantize,
    text_to_bins,
    text_to_box,
)
from florence_jax.processing.postprocess import parse, parse_tokens
from florence_jax.processing.request_check import check_request
from florence_jax.processing.tasks import TASKS, Task, build_prompt, task_of
from florence_jax.processing.tokenizer import FlorenceTokenizer, demo_tokenizer, load_tokenizer

__all__ = [
    "TASKS",
    "FlorenceTokenizer",
    "ImageConfig",
    "ImageError",
    "Task",
    "box_to_text",
    "build_prompt",
    "check_request",
    "demo_tokenizer",
    "dequantize",
    "load_image",
    "load_tokenizer",
    "parse",
    "parse_tokens",
    "preprocess_image",
    "quantize",
    "task_of",
    "text_to_bins",
    "text_to_box",
]
