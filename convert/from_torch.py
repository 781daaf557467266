"""A published or fine-tuned PyTorch checkpoint to this library's format.

python -m convert.from_torch SRC DEST [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convert.command import (
    add_dtype,
    add_revision,
    add_writing_options,
    as_size,
    check_apart,
    guarded,
    program_parser,
)
from florence_jax.checkpoint import LoadPlan, Manifest, plan_checkpoint, read_config, resolve
from florence_jax.checkpoint.decoding_settings import decoding_settings
from florence_jax.checkpoint.native.save import Leaf, save_leaves
from florence_jax.checkpoint.plan import Source
from florence_jax.checkpoint.pytorch.read_tensor import checked_dtype, fetch, leaf_dtype

_PROGRAM = "convert.from_torch"
_GENERATION = "generation_config.json"

_EPILOG = """\
examples:
  a published model, in the dtype that it was published in (float16):
    python -m convert.from_torch microsoft/Florence-2-large florence-large/
  the same for a TPU, from a branch, tag or commit:
    python -m convert.from_torch microsoft/Florence-2-large florence-large/ \\
        --dtype bfloat16 --revision main
  your own fine-tune, which also carries a head that is no part of Florence-2:
    python -m convert.from_torch runs/checkpoint-900/ mine/ --ignore 'action_head\\..*'

then:
    florence-jax predict photo.jpg --task "<OD>" --model florence-large/

SRC may be in the original or in transformers' naming, safetensors or .bin (which needs the extra
"torch"). Remote code is never run. DEST holds the parameters for Orbax (params/), config.json,
generation_config.json, the tokenizer and processor files of SRC, and manifest.json with the sha256
of every file, which loading verifies. DEST appears when it is complete: a run that is killed
changes nothing, and the next one removes what it left.
"""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was read and what was written."""

    plan: LoadPlan
    manifest: Manifest

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters written."""
        return sum(parameter.nbytes for parameter in self.manifest.parameters)


def from_torch(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    """Convert one checkpoint; its parameters are in host memory while Orbax writes them.

    Args:
        source: directory or hub id of a checkpoint in either naming, or one in our format.
        destination: directory to write.
        dtype: "float32", "bfloat16" or "float16"; None keeps each tensor's own.
        revision: branch, tag or commit of a hub id.
        ignore: regular expressions for names of tensors to leave out.
        overwrite: replace an existing checkpoint.
        progress: show progress bars on stderr.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    target = None if dtype is None else checked_dtype(dtype)
    directory = resolve(source, revision=revision)
    check_apart(directory, Path(destination))
    plan = plan_checkpoint(directory, ignore=ignore, verify=True, progress=progress)
    repository = read_config(directory)
    settings = decoding_settings(repository.config, repository.generation)
    origin = plan.origin
    if target is not None:
        extra = dict.fromkeys(origin.extra, target.name)
        origin = dataclasses.replace(origin, extra=extra)
    manifest = save_leaves(
        Path(destination),
        plan.config,
        [_leaf(path, entry, target) for path, entry in plan.sources.items()],
        files=directory,
        origin=origin,
        extra_files={_GENERATION: json.dumps(settings, indent=2).encode() + b"\n"},
        overwrite=overwrite,
        progress=progress,
    )
    return Conversion(plan, manifest)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    return guarded(_PROGRAM, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    conversion = from_torch(
        options.source,
        options.destination,
        dtype=options.dtype,
        revision=options.revision,
        ignore=options.ignore,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    if not options.quiet:
        seconds = time.monotonic() - started
        print(_summary(conversion, options.destination, seconds))
    return 0


def _summary(conversion: Conversion, destination: str, seconds: float) -> str:
    parameters = conversion.manifest.parameters
    dtypes = sorted({parameter.dtype.name for parameter in parameters})
    files = conversion.manifest.files
    others = [name for name in files if not name.startswith("params/")]
    return "\n".join(
        [
            f"read {conversion.plan.report}",
            f"wrote {destination}: {len(parameters)} parameters in {', '.join(dtypes)}, "
            f"{as_size(conversion.nbytes)}, in {seconds:.1f} s",
            f"  with {', '.join(sorted(others))} and manifest.json",
        ]
    )


def _leaf(path: str, entry: Source, target: np.dtype | None) -> Leaf:
    dtype = leaf_dtype(entry, target)

    def read() -> np.ndarray:
        return fetch(entry, entry.transform.to_ours(entry.tensor.view()), dtype)

    shape = entry.transform.shape_to_ours(entry.tensor.shape)
    assert shape is not None  # planning has checked it
    return Leaf(path, shape, dtype, read)


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _PROGRAM, "Convert a PyTorch Florence-2 checkpoint to the format of florence_jax.", _EPILOG
    )
    parser.add_argument("source", metavar="SRC", help="checkpoint directory or hub id")
    parser.add_argument("destination", metavar="DEST", help="directory to write")
    add_dtype(parser, "of every parameter (default: each as it is stored)")
    add_revision(parser)
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="REGEX",
        help="leave out the tensors whose whole name matches; repeat it for several",
    )
    add_writing_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
