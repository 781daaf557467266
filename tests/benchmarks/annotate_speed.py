"""Annotations a second of `florence-jax annotate`, and the share of time with the device at work.

    python -m tests.benchmarks.annotate_speed --preset base
    python -m tests.benchmarks.annotate_speed --model CHECKPOINT --pictures photos/

The command itself, twice into directories of their own: the first run compiles, the second is
counted. Without --model the weights are random, and no threshold takes anything out: the cascade
then asks about every box and phrase that random answers hold, which is more work than trained
weights make and fewer annotations a question. Beams, prompts, constraints and filters are the
command's own.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

OPEN = ("text_score", "box_score", "label_score", "line_score", "least_complexity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base", help="of random weights (default: base)")
    parser.add_argument("--model", help="checkpoint directory, instead of random weights")
    parser.add_argument("--pictures", type=Path, help="default: random ones of 640 x 480")
    parser.add_argument("--images", type=int, default=8, help="random ones (default: 8)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--block-size", type=int, default=4, help="two are in hand (default: 4)")
    parser.add_argument("--image-size", type=int, help="default: the model's")
    parser.add_argument("--beams", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Print both runs' figures."""
    from florence_jax.cli import annotate
    from florence_jax.cli.main import main as florence_jax

    pipeline = _pipeline(options)
    annotate.load_pipeline = lambda options, progress: pipeline
    pictures = options.pictures or _random_pictures(folder / "pictures", options.images)
    words = ["annotate", str(pictures), "--model", options.model or options.preset,
             "--batch-size", str(options.batch), "--block-size", str(options.block_size),
             "--analyser", "rules", "--quiet",
             "--max-new-tokens", str(options.max_new_tokens)]  # fmt: skip
    if options.beams is not None:
        words += ["--beams", str(options.beams)]
    if options.model is None:
        words += [word for name in OPEN for word in ("--threshold", f"{name}=0")]
    for name in ("compiling", "counted"):
        began = time.monotonic()
        status = florence_jax([*words, "--output", str(folder / name)])
        statistics = json.loads((folder / name / "statistics.json").read_text())
        (call,) = statistics["throughput"]
        print(
            f"{name}: {call['images']} images, {call['annotations']} annotations in "
            f"{call['seconds']:.1f} s (with products {time.monotonic() - began:.1f} s, status "
            f"{status}): {call['annotations_per_second']} annotations/s, "
            f"{call['images_per_second']} images/s, {call['tokens_per_second']} tokens/s; device "
            f"({call['devices']} x {call['device']}, {os.cpu_count()} cores) busy "
            f"{call['device_busy']:.1%}; rejected {sum(statistics['rejected'].values())}",
            flush=True,
        )


def _pipeline(options: argparse.Namespace):
    import dataclasses

    import jax
    import jax.numpy as jnp

    from florence_jax import config
    from florence_jax.generation import PUBLISHED
    from florence_jax.inference.pipeline import Florence2Pipeline
    from florence_jax.model import Model, random_params_with_spread_logits
    from florence_jax.processing import demo_tokenizer

    if options.model is not None:
        pipeline = Florence2Pipeline.from_pretrained(options.model, dtype=options.dtype)
    else:
        model = Model(config=config.PRESETS[options.preset](), dtype=options.dtype)
        params = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, options.dtype),
            random_params_with_spread_logits(model.config, 0),
        )
        pipeline = Florence2Pipeline(
            model=model, params=params, tokenizer=demo_tokenizer(), generation=PUBLISHED
        )
    if options.image_size is None:
        return pipeline
    size = (options.image_size, options.image_size)
    image_config = dataclasses.replace(pipeline.image_config, size=size)
    return dataclasses.replace(pipeline, image_config=image_config)


def _random_pictures(folder: Path, count: int) -> Path:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(0, 256, (480, 640, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
