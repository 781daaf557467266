"""`florence-jax embed` and `classify`: a backbone over images, printed or into a directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.options import (
    PROCESSES,
    add_shared,
    options_from,
    run_options,
    say_on_stderr,
)
from florence_jax.cli.run_outcome import how_to_go_on, outcome_text
from florence_jax.runtime.atomic_file import named_errors
from florence_jax.runtime.program_parser import positive
from florence_jax.runtime.signals import INTERRUPTED, exit_on_interrupt
from florence_jax.runtime.standard_streams import standard_output
from florence_jax.runtime.text_file import read_text, split_lines

if TYPE_CHECKING:
    from florence_jax.backbone.backbone import Backbone
    from florence_jax.batch.backbone_job import BackboneJob
    from florence_jax.batch.blocks import RowFormat, RunOptions
    from florence_jax.batch.job import Source
    from florence_jax.model.handle import Params

_MODEL_HELP = (
    "DaViT by timm's name (davit_tiny), weight file or directory of timm's or the original code's, "
    "or any Florence-2, of which the tower is read (default: %(default)s)"
)
_RUNS_HELP = """\
With --output-dir, rows are written in blocks, and the same command goes on where it was
stopped; `florence-jax verify-output DIR` checks them. IMAGE may also be a .jsonl, .parquet or
WebDataset .tar file. The exit status is 1 where rows have errors, and 130 where the run was
interrupted."""
_EMBED_EXAMPLES = """\
examples:
  florence-jax embed photo.jpg --model davit_tiny
  florence-jax embed photos/ --output-dir vectors/ --format npy
  florence-jax embed shards/*.tar --output-dir table/ --format parquet --vectors float16
"""
_CLASSIFY_EXAMPLES = """\
examples:
  florence-jax classify photo.jpg --names imagenet_classes.txt
  florence-jax classify photos/ --model runs/my-classes --top 1 --output-dir classes/
"""
# Options that mean something with --output-dir alone, and their defaults.
_RUN_DEFAULTS = {
    "block_size": None,
    "process_index": None,
    "process_count": None,
    "extend": False,
    "dry_run": False,
}
NPY = "npy"


@dataclass(frozen=True, kw_only=True)
class TowerOptions:
    """The backbone, and how it is loaded; see the options' help.

    Raises:
        ValueError: --rules without --mesh.
    """

    model: str
    revision: str | None = None
    dtype: str | None = None
    matmul_precision: str | None = None
    mesh: str | None = None
    rules: str | None = None

    def __post_init__(self) -> None:
        if self.rules is not None and self.mesh is None:
            raise ValueError("--rules belongs to --mesh: give both")


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """The checked options of both commands; help texts explain those not listed here.

    Attributes:
        output_dir: None for rows on standard output.
        run: how the run is divided.
    """

    images: tuple[str, ...]
    tower: TowerOptions
    image_root: Path | None
    output_dir: Path | None
    format: str | None
    run: RunOptions
    dry_run: bool
    quiet: bool


def add_embed(commands: Any) -> None:
    """Add `embed` to the parser's commands."""
    embed = commands.add_parser(
        "embed",
        description="Embed each image by a DaViT: its pooled and normalised last feature map, with "
        "the sha256 of the image's file.",
        epilog=_EMBED_EXAMPLES,
    )
    _add_options(embed, "microsoft/Florence-2-base-ft", ("jsonl", "parquet", NPY))
    embed.add_argument(
        "--vectors",
        choices=("float32", "float16"),
        default="float32",
        help="dtype of embeddings (default: %(default)s)",
    )
    embed.set_defaults(run=_embed)


def add_classify(commands: Any) -> None:
    """Add `classify` to the parser's commands."""
    classify = commands.add_parser(
        "classify",
        description="Classify each image by a DaViT with a classifier; the most probable classes "
        "come first.",
        epilog=_CLASSIFY_EXAMPLES,
    )
    _add_options(classify, "davit_tiny", ("jsonl", "parquet"))
    classify.add_argument(
        "--top", type=positive, default=5, metavar="K", help="classes (default: %(default)s)"
    )
    classify.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line in their order (default: those of the model's "
        "config.json, if it has any)",
    )
    classify.set_defaults(run=_classify)


def _add_options(parser: argparse.ArgumentParser, model: str, formats: Collection[str]) -> None:
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, directory of images, or .txt file with one path per line; see also "
        "--output-dir",
    )
    parser.add_argument("--model", default=model, help=_MODEL_HELP)
    add_shared(parser, "--revision", "--mesh", "--rules", "--dtype", "--matmul-precision")
    add_shared(parser, "--batch-size")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    group = parser.add_argument_group("runs over many images", _RUNS_HELP)
    group.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="write blocks of rows into this directory"
    )
    npy = (
        f"; {NPY} adds embeddings.npy and embeddings.sha256.txt to jsonl" if NPY in formats else ""
    )
    group.add_argument("--format", choices=formats, help=f"of the rows (default: jsonl){npy}")
    group.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="rows of data name images below this directory (default: that of their file)",
    )
    add_shared(group, "--block-size", *PROCESSES, "--extend")
    group.add_argument(
        "--dry-run", action="store_true", help="say what would run, and load no model"
    )


def _embed(arguments: argparse.Namespace) -> int:
    options = _options(arguments)

    def make_job() -> BackboneJob:
        from florence_jax.batch.backbone_job import EmbedJob

        backbone, params = load(options.tower)
        size = options.run.batch_size
        return EmbedJob(backbone, params, vectors=arguments.vectors, batch_size=size)

    return _run(options, make_job, {"sha256", "embedding"})


def _classify(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    given = None if arguments.names is None else read_names(arguments.names)

    def make_job() -> BackboneJob:
        from florence_jax.backbone.load import read_label_names
        from florence_jax.batch.backbone_job import ClassifyJob

        backbone, params = load(options.tower)
        names = (
            read_label_names(options.tower.model, options.tower.revision)
            if given is None
            else given
        )
        size = options.run.batch_size
        return ClassifyJob(backbone, params, names=names, top=arguments.top, batch_size=size)

    return _run(options, make_job, {"sha256", "classes"})


def _options(arguments: argparse.Namespace) -> BackboneOptions:
    if arguments.output_dir is None:
        for name, default in (_RUN_DEFAULTS | {"format": None}).items():
            if getattr(arguments, name) != default:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --output-dir: give both")
    row_format: RowFormat | None = {"parquet": "parquet", "jsonl": "jsonl", NPY: None}.get(
        arguments.format
    )
    return options_from(
        BackboneOptions,
        arguments,
        images=tuple(arguments.images),
        tower=options_from(TowerOptions, arguments),
        run=run_options(arguments, row_format=row_format),
    )


def load(options: TowerOptions) -> tuple[Backbone, Params]:
    """Load the backbone: on --mesh, or whole on each of this host's devices."""
    from florence_jax.batch.backbone_job import load_for_jobs

    given: dict[str, Any] = {k: value for k, value in vars(options).items() if value is not None}
    return load_for_jobs(given.pop("model"), **given)


def read_names(path: Path) -> tuple[str, ...]:
    """The lines of a file of names.

    Raises:
        OSError, ValueError: the file cannot be read, is no UTF-8 text, or has a blank line.
    """
    names = tuple(map(str.strip, split_lines(read_text(path))))
    if not all(names):
        raise ValueError(
            f"{path}: line {names.index('') + 1} is blank, expected the name of a class on each"
        )
    return names


def _run(
    options: BackboneOptions, make_job: Callable[[], BackboneJob], columns: Collection[str]
) -> int:
    from florence_jax.batch.sources.open import open_source

    source = open_source(
        options.images,
        None,
        columns=columns,
        image_root=options.image_root,
        say=None if options.quiet else say_on_stderr,
    )
    if options.output_dir is None:
        return _print_rows(source, make_job(), options)
    return _write_blocks(source, make_job, options, options.output_dir)


def _print_rows(source: Source, job: BackboneJob, options: BackboneOptions) -> int:
    """Rows on standard output, a block at a time."""
    from florence_jax.batch.blocks import encode_block, writable
    from florence_jax.batch.job import block_rows, read_items
    from florence_jax.batch.reader_pool import WorkerPool

    pool, output, errors = WorkerPool(options.run.workers or 0), standard_output(), 0
    size = options.run.default_block_size()
    try:
        for start in range(0, len(source), size):
            span = range(start, min(start + size, len(source)))
            rows = block_rows(map(writable, read_items(source, span)), job, pool)
            with named_errors("standard output"):
                output.write(encode_block(rows, "jsonl").decode())
                output.flush()
            errors += sum("error" in row for row in rows)
    finally:
        pool.close()
    return 1 if errors else 0


def _write_blocks(
    source: Source,
    make_job: Callable[[], BackboneJob],
    options: BackboneOptions,
    directory: Path,
) -> int:
    from florence_jax.batch.run import plan_run, run_blocks
    from florence_jax.batch.vector_file import VECTORS, write_vectors

    plan = plan_run(source, directory, options.run)
    if options.format == NPY and plan.row_format == "parquet":
        raise ValueError(
            f"{directory} is a table of Parquet files, among which {VECTORS} would make it "
            "unreadable: read the table, or run into another directory"
        )
    if options.dry_run:
        print(f"{len(source)} images; model: {options.tower.model}\n{plan.describe()}")
        return 0
    plan.prepare()
    job = make_job()
    with exit_on_interrupt(how_to_go_on(directory)):
        summary = run_blocks(
            source,
            job,
            directory,
            options.run,
            columns=job.columns,
            progress=not options.quiet,
        )
    if not options.quiet:
        print(outcome_text(summary, directory, counts_tokens=False), file=sys.stderr)
    if summary.missing:
        return INTERRUPTED
    # Files of an earlier call would lack what --extend has added.
    if options.format == NPY or (directory / VECTORS).exists():
        count = write_vectors(directory)
        if not options.quiet:
            print(f"{count} embeddings are in {directory / VECTORS}", file=sys.stderr)
    return 1 if summary.errors else 0
