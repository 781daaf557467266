"""Compare this library with PyTorch on a checkpoint, stage by stage.

python -m convert.verify SRC [--image IMG] [--dtype float32 --dtype bfloat16]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convert.verify.metrics import Row, first_over
from convert.verify.native import compare_with_native
from convert.verify.original import compare_with_original
from convert.verify.reference import UNUSED_TOKEN, random_params_with_spread_logits
from convert.verify.report import as_json, plot, table, verdict
from convert.verify.stages import Inputs, random_inputs
from florence_jax import config as configs
from florence_jax.adapters import resolve_model
from florence_jax.checkpoint import load_checkpoint, read_config
from florence_jax.config import Florence2Config
from florence_jax.model import Model, Params
from florence_jax.processing import (
    ImageConfig,
    build_prompt,
    load_image,
    load_tokenizer,
    preprocess_image,
)
from florence_jax.processing.request_check import check_task_of_data
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser

_PROGRAM = "convert.verify"
_DTYPES = ("float32", "bfloat16", "float16")
_RANDOM = "random:"
_TARGET_TOKENS = 8
_PROMPT_TOKENS = 12

_EPILOG = """\
examples:
  a published model on a photo:
    python -m convert.verify microsoft/Florence-2-base --image photo.jpg --dtype float32
  your own weights on noise, every dtype, with a picture of the errors:
    python -m convert.verify runs/mine/ --plot errors.png --json errors.json
  the code alone, on random weights of a published size:
    python -m convert.verify random:base
  stored outputs of the original implementation:
    python -m convert.verify tiny/original --reference original-npz --npz reference_original.npz

how to read the table: "max abs" to "top-1" compare ours with PyTorch in the same dtype. "to truth"
is each one's distance from PyTorch in float64, relative to the values there, after all stages so
far; "alone" is the same for the stage by itself, on the truth's inputs. A stage passes within 4
times PyTorch's own distance, alone within 3 times; the first that does not is where to look.

exit status: 0 all within tolerance, 1 something is not, 2 a wrong call.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; see its `--help` for the exit status."""
    options = _parser().parse_args(arguments)
    return run_program(
        _PROGRAM,
        lambda: _run(options),
        interrupted=f"{_PROGRAM}: interrupted; nothing is left half-written",
    )


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog=f"python -m {_PROGRAM}",
        description="Run PyTorch and JAX side by side on one checkpoint and compare every stage.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="directory or hub id of a checkpoint, or random:PRESET for random weights of "
        + ", ".join(configs.PRESETS),
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--image", help="picture to look at (default: seeded noise)")
    parser.add_argument(
        "--prompt",
        default="<CAPTION>",
        help="task or free prompt, used where SRC has a tokenizer (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=_DTYPES,
        help="of weights and activations; may be repeated (default: all three, or float32 with "
        "--reference original-npz)",
    )
    parser.add_argument(
        "--size", type=_positive, default=768, help="pixels a side of the noise (default: 768)"
    )
    parser.add_argument("--batch", type=_positive, default=1, help="rows of noise (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and random weights")
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=20,
        help="length of the generated answers; 0 generates none (default: 20)",
    )
    parser.add_argument(
        "--reference",
        choices=("native", "original-npz"),
        default="native",
        help="transformers' class, run here (default), or stored outputs of the original code",
    )
    parser.add_argument("--npz", type=Path, help="the stored outputs, for original-npz")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the errors (.png)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _run(options: argparse.Namespace) -> int:
    _check(options)
    dtypes = tuple(dict.fromkeys(options.dtype or _DTYPES))
    config, params, directory = _load(options)
    model = Model(config=config)
    if options.reference == "original-npz":
        about = f"{options.source} beside {options.npz.name}"
        rows = {"float32": compare_with_original(model, params, options.npz)}
    else:
        inputs, subject = _inputs(options, model, directory)
        about = f"{options.source} beside transformers' native class, {subject}"
        rows = compare_with_native(
            config, params, inputs, dtypes, new_tokens=options.new_tokens, progress=True
        )
    _print(about, rows)
    if options.json:
        report = as_json(rows, source=options.source, compared=about, versions=_versions())
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(rows, about, options.plot)
    return 1 if any(first_over(found) for found in rows.values()) else 0


def _check(options: argparse.Namespace) -> None:
    if options.reference == "original-npz":
        if options.npz is None:
            raise ValueError("--reference original-npz needs --npz FILE, the stored outputs")
        if options.dtype and set(options.dtype) != {"float32"}:
            raise ValueError(
                f"--dtype {' '.join(options.dtype)}: stored outputs are float32 and cannot judge "
                "halves; leave --dtype out, or use --reference native"
            )
        if options.image:
            raise ValueError("--image: stored outputs have their own inputs; leave it out")
    elif options.npz is not None:
        raise ValueError("--npz is for --reference original-npz")
    if options.new_tokens < 0:
        raise ValueError(f"--new-tokens is {options.new_tokens}, expected 0 or more")
    if options.reference == "native":
        try:
            import torch  # noqa: F401
            import transformers  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"comparing with PyTorch needs torch and transformers ({error}): "
                'pip install "florence-jax[torch]"'
            ) from error


def _load(options: argparse.Namespace) -> tuple[Florence2Config, Params, Path | None]:
    if options.source.startswith(_RANDOM):
        preset = options.source.removeprefix(_RANDOM)
        if preset not in configs.PRESETS:
            raise ValueError(
                f"{options.source}: there is no preset {preset!r}; there are "
                + ", ".join(configs.PRESETS)
            )
        config = configs.PRESETS[preset]()
        return config, random_params_with_spread_logits(config, options.seed), None
    directory = resolve_model(options.source, options.revision)
    # In float32, which holds the halves that checkpoints are stored in.
    checkpoint = load_checkpoint(directory, dtype="float32", progress=True)
    return checkpoint.config, checkpoint.params, directory


def _inputs(
    options: argparse.Namespace, model: Model, directory: Path | None
) -> tuple[Inputs, str]:
    """One batch for both implementations, and its description for people."""
    inputs = random_inputs(
        model,
        batch=1 if options.image else options.batch,
        size=(options.size, options.size),
        text=_PROMPT_TOKENS,
        target=_TARGET_TOKENS,
        seed=options.seed,
    )
    files = read_config(directory) if directory is not None else None
    pixels, looked_at = inputs.pixel_values, f"noise of {options.size} x {options.size}"
    if options.image:
        layout = ImageConfig.from_hf((files.preprocessor if files else None) or {})
        picture = load_image(options.image)
        pixels = preprocess_image(picture, **dataclasses.asdict(layout))[None]
        looked_at = Path(options.image).name
    ids, mask, asked = inputs.input_ids, inputs.attention_mask, "random tokens"
    if directory is not None and files is not None and files.has_tokenizer:
        check_task_of_data(options.prompt)
        prompt = build_prompt(options.prompt, image_size=pixels.shape[2:0:-1])
        ids, mask = load_tokenizer(directory).encode_batch([prompt] * len(pixels))
        vocabulary = model.config.text.vocab_size
        if ids.max() >= vocabulary:
            raise ValueError(
                f"{directory}: its tokenizer gives the token {ids.max()}, its model has a "
                f"vocabulary of {vocabulary}: they do not belong together"
            )
        # transformers would take this token for its image placeholder.
        if (ids == _placeholder(model.config)).any():
            raise ValueError(f"the prompt {prompt!r} contains the image token: leave it out")
        asked = repr(options.prompt)
    inputs = dataclasses.replace(
        inputs,
        pixel_values=pixels,
        input_ids=np.asarray(ids, np.int32),
        attention_mask=np.asarray(mask, np.int32),
    )
    return inputs, f"{looked_at}, {asked}"


def _placeholder(config: Florence2Config) -> int:
    in_table = config.image_token_id < config.text.vocab_size
    return config.image_token_id if in_table else UNUSED_TOKEN


def _print(about: str, rows: dict[str, list[Row]]) -> None:
    print(about)
    for dtype, found in rows.items():
        print(f"\n{dtype}\n")
        for line in table(found):
            print(line)
    print()
    for dtype, found in rows.items():
        print(verdict(dtype, found))


def _versions() -> dict[str, str]:
    names = ("jax", "flax", "numpy", "torch", "transformers")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
