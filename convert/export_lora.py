"""Write a LoRA adapter for PEFT on transformers' class or on Microsoft's code.

python -m convert.export_lora ADAPTER DEST --to native|original
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from florence_jax.adapters import read_adapter, write_adapter
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser

_PROGRAM = "convert.export_lora"

_EPILOG = """\
examples:
  an adapter that was trained here, for PEFT on transformers' own class:
    python -m convert.export_lora runs/mine/adapter/ adapter/ --to native \\
        --base-model florence-community/Florence-2-base-ft
  an adapter that PEFT trained on one naming, for the other:
    python -m convert.export_lora adapter/ adapter-original/ --to original

ADAPTER holds adapter_config.json and adapter_model.safetensors (or .bin). PEFT loads DEST with
PeftModel.from_pretrained(model, DEST). Factors keep their dtype, and an adapter that is written in
its own naming comes back byte for byte. DEST appears when it is complete.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program(
        _PROGRAM,
        lambda: _run(_parser().parse_args(arguments)),
        interrupted=f"{_PROGRAM}: interrupted; nothing is left half-written",
    )


def _run(options: argparse.Namespace) -> int:
    adapter = read_adapter(options.adapter)
    write_adapter(
        options.destination,
        adapter,
        options.to,
        base_model=options.base_model,
        overwrite=options.overwrite,
    )
    if not options.quiet:
        print(f"read {options.adapter}")
        print("\n".join(f"  {line}" for line in adapter.summary()))
        print(f"wrote {options.destination}, for the {options.to} naming")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog=f"python -m {_PROGRAM}",
        description="Write a LoRA adapter for PEFT on a model of the other naming.",
        epilog=_EPILOG,
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="directory of a PEFT adapter")
    parser.add_argument("destination", metavar="DEST", help="directory to write")
    parser.add_argument(
        "--to",
        choices=("native", "original"),
        required=True,
        help="native: transformers' own class; original: Microsoft's code",
    )
    parser.add_argument(
        "--base-model",
        metavar="ID",
        help="directory or hub id of the base model, noted for PEFT (default: what ADAPTER says)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing adapter")
    parser.add_argument("--quiet", action="store_true", help="no summary")
    return parser


if __name__ == "__main__":
    sys.exit(main())
