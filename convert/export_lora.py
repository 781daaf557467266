"""LoRA factors trained here to a PEFT adapter, or an adapter to the other naming, or to ours.

python -m convert.export_lora SOURCE DEST --to native|original|ours
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.command import as_size, guarded
from florence_jax.adapters.adapter import Adapter
from florence_jax.adapters.file import read_adapter, write_lora
from florence_jax.adapters.peft import CONFIG_FILE, WEIGHTS_FILE, peft_files
from florence_jax.checkpoint import CheckpointError
from florence_jax.checkpoint.files import checkpoint_directory
from florence_jax.checkpoint.pytorch.key_map import Naming
from florence_jax.checkpoint.pytorch.safetensors_writer import save_tensors

_PROGRAM = "convert.export_lora"

_EPILOG = """\
examples:
  factors that were trained here, for PEFT on transformers' own class:
    python -m convert.export_lora run/lora.safetensors adapter/ --to native \\
        --base-model florence-community/Florence-2-base-ft
  the same for Microsoft's repository code:
    python -m convert.export_lora run/lora.safetensors adapter/ --to original \\
        --base-model microsoft/Florence-2-base-ft
  a PEFT adapter that was trained on one naming, for the other:
    python -m convert.export_lora adapter-original/ adapter-native/ --to native
  a PEFT adapter as factors to go on training with here:
    python -m convert.export_lora adapter/ lora.safetensors --to ours

SOURCE is the directory of a PEFT adapter, or a .safetensors file of low-rank factors; its format
stands at the top of florence_jax/adapters/file.py. PEFT loads DEST with
PeftModel.from_pretrained(model, DEST). Factors keep their dtype, and an adapter that goes to ours
and back comes back byte for byte.
"""


def export_lora(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    base_model: str | None = None,
) -> Adapter:
    """Write the adapter `source` to `destination`, all of it or nothing.

    Args:
        source: directory of a PEFT adapter, or file of low-rank factors.
        destination: directory for PEFT, file for ours; must not exist.
        to: "native" or "original" for PEFT on a model of that naming, "ours" for low-rank factors.
        base_model: directory or hub id of the model, for adapter_config.json.

    Returns:
        What was read.

    Raises:
        CheckpointError: `source` is no adapter of a Florence-2, has a weight that `to` has no
            place for, or `destination` exists.
        ValueError: `to` is none of the three.
    """
    adapter, destination = read_adapter(source), Path(destination).expanduser()
    if to == "ours":
        if destination.exists():
            raise CheckpointError(f"{destination} exists already: name another file, or remove it")
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_lora(destination, adapter)
    elif to == "native" or to == "original":
        write_peft(destination, adapter, to, base_model)
    else:
        raise ValueError(f"to is {to!r}, expected 'native', 'original' or 'ours'")
    return adapter


def write_peft(
    destination: Path, adapter: Adapter, naming: Naming, base_model: str | None = None
) -> None:
    """Write `adapter` as a directory that PEFT loads; see `florence_jax.adapters.peft.peft_files`.

    Raises:
        CheckpointError: as `peft_files`, or `destination` exists already, or the disk is full.
    """
    config, tensors = peft_files(adapter, naming, base_model)
    with checkpoint_directory(destination) as new:
        # As PEFT writes both files.
        (new / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True))
        save_tensors(tensors, new / WEIGHTS_FILE, {"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    return guarded(_PROGRAM, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    adapter = export_lora(
        options.source, options.destination, options.to, base_model=options.base_model
    )
    if not options.quiet:
        print(f"read {options.source}")
        print("\n".join(f"  {line}" for line in adapter.summary()))
        print(f"wrote {options.destination} ({as_size(_written(options.destination))})")
    return 0


def _written(destination: str) -> int:
    path = Path(destination).expanduser()
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_PROGRAM}",
        description="Write LoRA factors as a PEFT adapter, or an adapter in another naming.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="PEFT adapter directory, or factors file")
    parser.add_argument("destination", metavar="DEST", help="directory, or file for --to ours")
    parser.add_argument(
        "--to",
        choices=("native", "original", "ours"),
        required=True,
        help="PEFT for transformers' class, PEFT for Microsoft's class, or low-rank factors",
    )
    parser.add_argument(
        "--base-model",
        metavar="ID",
        help="directory or hub id of the base model, noted for PEFT (default: what SOURCE says)",
    )
    parser.add_argument("--quiet", action="store_true", help="no summary")
    return parser


if __name__ == "__main__":
    sys.exit(main())
