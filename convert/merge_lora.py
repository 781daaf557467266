"""A LoRA adapter merged into its base model, as a PyTorch checkpoint of either naming.

python -m convert.merge_lora ADAPTER BASE DEST
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.command import (
    add_dtype,
    add_revision,
    add_writing_options,
    as_size,
    check_apart,
    copy_metadata,
    guarded,
    program_parser,
)
from florence_jax.adapters.adapter import Adapter, merge
from florence_jax.adapters.file import read_adapter
from florence_jax.checkpoint import Report, plan_checkpoint, read_config, resolve, torch_tensors
from florence_jax.checkpoint.files import checkpoint_directory
from florence_jax.checkpoint.param_tree import insert
from florence_jax.checkpoint.pytorch.config_files import torch_config
from florence_jax.checkpoint.pytorch.key_map import Naming
from florence_jax.checkpoint.pytorch.read_tensor import checked_dtype, leaf_dtype
from florence_jax.checkpoint.pytorch.safetensors_writer import save_tensors

_PROGRAM = "convert.merge_lora"
_WEIGHTS = "model.safetensors"
_CONFIG, _GENERATION = "config.json", "generation_config.json"

_EPILOG = """\
examples:
  an adapter that PEFT trained, into the model that it was trained on:
    python -m convert.merge_lora adapter/ microsoft/Florence-2-base-ft merged/
  the same for transformers' own class, in bfloat16:
    python -m convert.merge_lora adapter/ microsoft/Florence-2-base-ft merged/ \\
        --naming native --dtype bfloat16
  factors that were trained here:
    python -m convert.merge_lora run/lora.safetensors florence-base/ merged/

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


@dataclasses.dataclass(frozen=True)
class Merge:
    """What was read, decided and written.

    Attributes:
        adapter: the adapter.
        base: what loading the base model found.
        naming: of the tensors written.
        tensors: their number.
        nbytes: their size.
        dtypes: their dtypes.
        notes: what merging decided, one sentence each.
    """

    adapter: Adapter
    base: Report
    naming: Naming
    tensors: int
    nbytes: int
    dtypes: frozenset[str]
    notes: tuple[str, ...]


def merge_lora(
    adapter: str | Path,
    base: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    naming: Naming | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Merge:
    """Merge one adapter and write the model; weights that stay as they are are never copied.

    Args:
        adapter: directory of a PEFT adapter, or file of low-rank factors
            (`florence_jax.adapters.file`).
        base: directory or hub id of the base model, in either naming or in our format.
        destination: directory to write.
        dtype: "float32", "bfloat16" or "float16"; None keeps each parameter's own.
        naming: of the tensors and config.json to write; None is the base model's.
        revision: branch, tag or commit of a hub id.
        overwrite: replace an existing checkpoint.
        progress: show progress bars on stderr.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    target = None if dtype is None else checked_dtype(dtype)
    updates = read_adapter(adapter)
    directory = resolve(base, revision=revision)
    for source in (directory, Path(adapter).expanduser()):
        check_apart(source, Path(destination))
    plan = plan_checkpoint(directory, verify=True, progress=progress)
    params: dict[str, Any] = {}
    for path, entry in plan.sources.items():
        leaf_dtype(entry, target)  # refuses a dtype that parameters do not have
        insert(params, path, entry.transform.to_ours(entry.tensor.view()))
    merged = merge(params, plan.config, updates, dtype=target, progress=progress)
    naming = naming or plan.report.naming
    # With an lm_head of its own config.json says "not tied", and then PyTorch's classes tie none of
    # the token table's other names either: a name that is not in the file would be drawn at random.
    tied_names = not merged.config.tie_word_embeddings
    tensors = {
        name: np.ascontiguousarray(array)
        for name, array in torch_tensors(merged.params, naming, tied_names=tied_names)
    }
    dtypes = frozenset(array.dtype.name for array in tensors.values())
    written = torch_config(read_config(directory), merged.config, naming, dtypes)
    with checkpoint_directory(Path(destination).expanduser(), overwrite=overwrite) as new:
        copy_metadata(directory, new)
        for name, content in zip((_CONFIG, _GENERATION), written, strict=True):
            (new / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, new / _WEIGHTS, {"format": "pt"})
    return Merge(
        adapter=updates,
        base=plan.report,
        naming=naming,
        tensors=len(tensors),
        nbytes=sum(array.nbytes for array in tensors.values()),
        dtypes=dtypes,
        notes=merged.notes,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    return guarded(_PROGRAM, lambda: _run(options))


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


def _summary(merged: Merge, options: argparse.Namespace, seconds: float) -> str:
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
    parser = program_parser(_PROGRAM, "Merge a LoRA adapter into its base model.", _EPILOG)
    parser.add_argument("adapter", metavar="ADAPTER", help="PEFT directory, or factors file")
    parser.add_argument("base", metavar="BASE", help="base model: checkpoint directory or hub id")
    parser.add_argument("destination", metavar="DEST", help="directory to write")
    add_dtype(parser, "of every tensor (default: each as in BASE)")
    parser.add_argument(
        "--naming",
        choices=("native", "original"),
        help="native: transformers' own class; original: Microsoft's code (default: BASE's)",
    )
    add_revision(parser, " of BASE")
    add_writing_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
