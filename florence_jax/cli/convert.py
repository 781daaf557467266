"""`florence-jax convert`: a checkpoint from PyTorch to this library's format, or back."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from florence_jax.runtime.atomic_dir import check_destination
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser

if TYPE_CHECKING:
    from florence_jax.conversion import Conversion, Export

Direction = Literal["jax", "torch"]

_FROM_TORCH_EXAMPLES = """\
  a published model, in the dtype that it was published in (float16):
    {command} microsoft/Florence-2-large florence-large/
  the same for a TPU, from a branch, tag or commit:
    {command} microsoft/Florence-2-large florence-large/ \\
        --dtype bfloat16 --revision main
  your own fine-tune, which also carries a head that is no part of Florence-2:
    {command} runs/checkpoint-900/ mine/ --ignore 'action_head\\..*'
"""
_TO_TORCH_EXAMPLES = """\
  for transformers' own class (florence-community's naming):
    {command} mine/ mine-torch/ --naming native
  the image tower alone, for timm:
    {command} mine/ mine-timm/ --naming timm
  for the original code of microsoft/Florence-2-*, back to its very tensors:
    {command} mine/ mine-original/ --naming original
  an original checkpoint for transformers, which needs row 51289, <image>:
    {command} microsoft/Florence-2-base-ft base-native/ \\
        --naming native --vocab-size 51328
"""
_SOURCE = """
SRC is a directory or hub id: a checkpoint in either naming of PyTorch's or in
this library's format, a training run, or a PEFT adapter, which is merged into
its base.
"""
_FROM_TORCH = """
To this library's format (--to jax): safetensors and .bin (which needs the extra
"torch") are read, and remote code is never run. DEST holds the parameters for
Orbax (params/), config.json, generation_config.json, the tokenizer and
processor files of SRC, and manifest.json with the sha256 of every file, which
loading verifies. DEST appears when it is complete: a run that is killed changes
nothing, and the next one removes what it left.
"""
_TO_TORCH = """
To PyTorch (--to torch): DEST gets model.safetensors, config.json and
generation_config.json in the dialect of the naming, and SRC's tokenizer and
processor files. It appears when it is complete.

timm's naming has the image tower alone, of a Florence-2 or of a backbone: SRC may
then also be weights in timm's naming or the original DaViT repository's (a
directory, hub id or weight file). timm.create_model("local-dir:DEST") reads DEST.

Token table: PyTorch knows it under up to four names. --tied-names source (the
default) writes the names that the PyTorch file had which SRC came from, so that
the way there and back gives the same tensors; where SRC came from another
naming or from training, and with `once`, there is one name, as in published
safetensors files. `all` writes every name of the class's state_dict, for a
strict load_state_dict. An lm_head with values of its own is always written, and
then so are the embed_tokens, which PyTorch may not tie then; only names of a
file in transformers' naming stay as they were, with
text_config.tie_word_embeddings true.

Output bias: the original naming always has `final_logits_bias`, of zeros where
SRC has none; in transformers' naming there is none, and an output bias that is
not zero is refused.

Vocabulary: rows are added or removed only by --vocab-size. Added rows are the
mean of the others.
"""


def _epilog(command: str, *directions: Direction) -> str:
    texts = {
        "jax": (_FROM_TORCH_EXAMPLES, _FROM_TORCH),
        "torch": (_TO_TORCH_EXAMPLES, _TO_TORCH),
    }
    examples = "".join(texts[to][0] for to in directions).replace("{command}", command)
    return "examples:\n" + examples + _SOURCE + "".join(texts[to][1] for to in directions)


def add_convert(commands: Any) -> None:
    """Add the subcommand to an argparse `add_subparsers` object."""
    parser = commands.add_parser(
        "convert",
        description="Convert a Florence-2 checkpoint from PyTorch to this library's format,\n"
        "or back to PyTorch.",
        epilog=_epilog("florence-jax convert", "jax", "torch"),
    )
    _add_paths(parser)
    parser.add_argument(
        "--to",
        choices=("jax", "torch"),
        help="the format to write (default: the one that SRC is not in)",
    )
    add_writing_options(parser)
    _add_from_torch_options(parser)
    _add_to_torch_options(parser, required=False)
    parser.set_defaults(run=_convert)


def convert_program(program: str, to: Direction, arguments: Sequence[str] | None) -> int:
    """`python -m convert.from_torch` and `python -m convert.to_torch`: one direction alone."""

    def run() -> int:
        described = "to the format of florence_jax" if to == "jax" else "to PyTorch"
        parser = ProgramParser(
            prog=f"python -m {program}",
            description=f"Convert a Florence-2 checkpoint {described}.",
            epilog=_epilog(f"python -m {program}", to),
        )
        _add_paths(parser)
        add_writing_options(parser)
        if to == "jax":
            _add_from_torch_options(parser)
        else:
            _add_to_torch_options(parser, required=True)
        options = parser.parse_args(arguments)
        return _run_from_torch(options) if to == "jax" else _run_to_torch(options)

    return run_program(
        program, run, interrupted=f"{program}: interrupted; nothing is left half-written"
    )


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="checkpoint directory or hub id")
    parser.add_argument("destination", metavar="DEST", help="directory to write")


def add_writing_options(parser: argparse.ArgumentParser) -> None:
    """--dtype, --revision, --overwrite and --quiet."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of every parameter (default: each as it is stored)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DEST, if it is a checkpoint"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")


def _add_from_torch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="REGEX",
        help="to jax: leave out the tensors whose whole name matches; repeat it for several",
    )


def _add_to_torch_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--naming",
        choices=("native", "original", "timm"),
        required=required,
        help="to torch: native is transformers' own class, original is Microsoft's code, timm is "
        "timm's DaViT with the image tower alone" + ("" if required else " (default: native)"),
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="ROWS",
        help="to torch: pad or cut the token table to ROWS",
    )
    parser.add_argument(
        "--tied-names",
        choices=("source", "once", "all"),
        help="to torch: names of a tied token table (default: source)",
    )


def _convert(options: argparse.Namespace) -> int:
    check_destination(Path(options.destination), overwrite=options.overwrite)
    if options.to is None:
        options.to = "torch" if options.naming else _other_format(options.source, options.revision)
    belongs = {"ignore": "jax", "naming": "torch", "vocab_size": "torch", "tied_names": "torch"}
    for name, to in belongs.items():
        if to != options.to and getattr(options, name):
            raise ValueError(
                f"--{name.replace('_', '-')} belongs to --to {to}, and {options.source} is "
                f"converted to {options.to}"
            )
    if options.to == "jax":
        return _run_from_torch(options)
    options.naming = options.naming or "native"
    return _run_to_torch(options)


def _run_to_timm(options: argparse.Namespace) -> int:
    from florence_jax.backbone.save import convert_to_timm

    for name in ("vocab_size", "tied_names"):
        if getattr(options, name):
            raise ValueError(
                f"--{name.replace('_', '-')} is about the token table, which timm's DaViT has not"
            )
    started = time.monotonic()
    written = convert_to_timm(
        options.source,
        options.destination,
        dtype=options.dtype,
        revision=options.revision,
        overwrite=options.overwrite,
    )
    if not options.quiet:
        arrays = written.tensors.values()
        dtypes = ", ".join(sorted({array.dtype.name for array in arrays}))
        nbytes = as_size(sum(array.nbytes for array in arrays))
        print(
            f"wrote {options.destination}: {len(arrays)} tensors in timm's naming, {dtypes}, "
            f"{nbytes}, in {time.monotonic() - started:.1f} s\n"
            f'  timm.create_model("local-dir:{options.destination}", pretrained=True) loads it'
        )
    return 0


def _other_format(source: str, revision: str | None) -> Direction:
    from florence_jax.adapters import resolve_model
    from florence_jax.checkpoint.repository import is_saved

    return "torch" if is_saved(resolve_model(source, revision)) else "jax"


def _run_from_torch(options: argparse.Namespace) -> int:
    import jax

    from florence_jax.conversion import from_torch

    # Orbax asks jax for its devices, and a conversion needs no accelerator, which may be in use.
    jax.config.update("jax_platforms", "cpu")
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
        print("\n".join(_from_torch_summary(conversion, options.destination, seconds)))
    return 0


def _run_to_torch(options: argparse.Namespace) -> int:
    if options.naming == "timm":
        return _run_to_timm(options)
    from florence_jax.conversion import to_torch

    started = time.monotonic()
    export = to_torch(
        options.source,
        options.destination,
        naming=options.naming,
        dtype=options.dtype,
        vocab_size=options.vocab_size,
        tied_names=options.tied_names or "source",
        revision=options.revision,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    if not options.quiet:
        print("\n".join(_to_torch_summary(export, options, time.monotonic() - started)))
    return 0


def _from_torch_summary(conversion: Conversion, destination: str, seconds: float) -> list[str]:
    parameters = conversion.manifest.parameters
    dtypes = sorted({parameter.dtype.name for parameter in parameters})
    others = [name for name in conversion.manifest.files if not name.startswith("params/")]
    return [
        f"read {conversion.plan.report}",
        f"wrote {destination}: {len(parameters)} parameters in {', '.join(dtypes)}, "
        f"{as_size(conversion.nbytes)}, in {seconds:.1f} s",
        f"  with {', '.join(sorted(others))} and manifest.json",
    ]


def _to_torch_summary(export: Export, options: argparse.Namespace, seconds: float) -> list[str]:
    return [
        f"read {export.plan.report}",
        f"wrote {options.destination}: {len(export.shapes)} tensors in the {options.naming} "
        f"naming, {', '.join(sorted(export.dtypes))}, {as_size(export.nbytes)}, in {seconds:.1f} s",
        f"  files: {', '.join(export.files)}",
        *(f"  note: {note}" for note in export.notes),
    ]


def as_size(count: int) -> str:
    """1552613376 -> "1.55 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
