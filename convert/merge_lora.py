"""Merge a LoRA adapter into its base model and write a PyTorch checkpoint of either naming.

python -m convert.merge_lora ADAPTER BASE DEST
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from florence_jax.adapters.merge import MergeReport, merge_lora
from florence_jax.cli.convert import add_writing_options, as_size
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser

_PROGRAM = "convert.merge_lora"

_EPILOG = """\
examples:
  an adapter that PEFT trained, into the model that it was trained on:
    python -m convert.merge_lora adapter/ microsoft/Florence-2-base-ft merged/
  the same for transformers' own class, in bfloat16:
    python -m convert.merge_lora adapter/ microsoft/Florence-2-base-ft merged/ \\
        --naming native --dtype bfloat16
  an adapter that was trained here:
    python -m convert.merge_lora run/adapter/ florence-base/ merged/

then:
    florence-jax predict photo.jpg --task "<OD>" --model merged/
    python -m convert.from_torch merged/ mine/       (to this library's format)
    python -m convert.inspect adapter/               (what an adapter is)

ADAPTER holds adapter_config.json and adapter_model.safetensors (or .bin), with names of the
original or of transformers' own class; BASE may be in either naming, or in this library's format.
Plain LoRA on linear layers is merged, with rank_pattern, alpha_pattern, rsLoRA, lora_bias, trained
biases and modules_to_save. Everything else is refused with its reason, in one error: convolutions,
embeddings, DoRA, IA3, AdaLoRA, ...: those PEFT itself merges, and convert.from_torch reads the
result.

A tied lm_head that the adapter changes is written as a weight of its own. PEFT's merge_and_unload
adds the update to the one tensor that both share, which changes the embeddings as well; the result
here is the model that was trained.

Sums are taken in float32 and rounded once, to each weight's dtype in BASE or to --dtype. DEST
appears when it is complete.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program(
        _PROGRAM,
        lambda: _run(_parser().parse_args(arguments)),
        interrupted=f"{_PROGRAM}: interrupted; nothing is left half-written",
    )


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    merged = merge_lora(
        options.adapter,
        options.base,
        options.destination,
        dtype=options.dtype,
        naming=options.naming,
        revision=options.revision,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    if not options.quiet:
        print(_summary(merged, options, time.monotonic() - started))
    return 0


def _summary(merged: MergeReport, options: argparse.Namespace, seconds: float) -> str:
    found = merged.adapter
    source = f" ({found.naming} naming)" if found.naming else ""
    return "\n".join(
        [
            f"read {merged.base}",
            f"merged {options.adapter}{source}: {len(found.modules)} low-rank updates, "
            f"{len(found.replaced)} whole parameters",
            *(f"  {line}" for line in found.summary()),
            *(f"  note: {note}" for note in merged.notes),
            f"wrote {options.destination}: {merged.tensors} tensors in the {merged.naming} naming, "
            f"{', '.join(sorted(merged.dtypes))}, {as_size(merged.nbytes)}, in {seconds:.1f} s",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog=f"python -m {_PROGRAM}",
        description="Merge a LoRA adapter into its base model.",
        epilog=_EPILOG,
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="directory of a PEFT adapter")
    parser.add_argument("base", metavar="BASE", help="base model: checkpoint directory or hub id")
    parser.add_argument("destination", metavar="DEST", help="directory to write")
    parser.add_argument(
        "--naming",
        choices=("native", "original"),
        help="native: transformers' own class; original: Microsoft's code (default: BASE's)",
    )
    add_writing_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
