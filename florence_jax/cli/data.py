"""`florence-jax data check`: what a data set would teach, and what is wrong with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_jax.cli.options import add_shared, say_on_stderr
from florence_jax.runtime.atomic_file import atomic_write, check_writable
from florence_jax.runtime.program_parser import positive

if TYPE_CHECKING:
    from florence_jax.training.data_check.rows import Limits

_DESCRIPTION = """\
Look at data before they are trained on. `check` reads SOURCE as the trainer would and says what it
found: the layout, rows and objects by split and class, image sizes, lengths in tokens, and what is
wrong, with the file and the entry."""

_CHECK = """\
Read data sets as the trainer would, and say what they would teach. SOURCE is a file, a folder or a
URL in any of these layouts, with its splits in train/, valid/ and test/ or as the layout has them:
rows (.jsonl, .parquet, .array_record) of image, prefix, suffix; COCO; Pascal VOC; YOLO (data.yaml);
LabelMe; Label Studio's JSON and JSON-MIN; CVAT's XML and COCO exports; saved Hugging Face data
sets; WebDataset's .tar; VQAv2 and DocVQA; annotations of florence-jax annotate. Or it is the
settings of one source as JSON, as --data.train of florence-jax train has them in its list: the only
way to name columns, patterns and URLs of tars, and the Hub."""

_EPILOG = """\
examples:
  florence-jax data check my_coco
  florence-jax data check voc/VOC2012 --output page.html --json report.json
  florence-jax data check '{"kind": "coco", "path": "boxes.json"}'

exit status:
  0 nothing is wrong, 1 something is, 2 a wrong call. Wrong is what the trainer would leave out, put
  aside, refuse or learn wrongly; boxes that are cut at an image's edges and other mended things are
  listed, and are not wrong.
"""


def add_data(commands: Any) -> None:
    """Add the command to the parser's."""
    data = commands.add_parser("data", description=_DESCRIPTION, epilog=_EPILOG)
    actions = data.add_subparsers(metavar="ACTION", dest="action", required=True)
    check = actions.add_parser(
        "check",
        help="say what a data set would teach and what is wrong",
        description=_CHECK,
        epilog=_EPILOG,
    )
    check.add_argument("sources", nargs="+", metavar="SOURCE", help="data sets")
    check.add_argument(
        "--output", type=Path, metavar="FILE", help="an HTML page with samples drawn"
    )
    check.add_argument(
        "--json", type=Path, metavar="FILE", help="the report as JSON; - for standard output"
    )
    check.add_argument(
        "--samples",
        type=positive,
        default=24,
        metavar="N",
        help="rows of each split on the page (default: %(default)s)",
    )
    check.add_argument("--seed", type=int, default=0, help="which rows these are")
    check.add_argument("--no-images", action="store_true", help="check texts alone, open no image")
    add_shared(check, "--model", "--revision")
    check.add_argument(
        "--max-prompt", type=positive, metavar="N", help="default: what the model takes"
    )
    check.add_argument(
        "--max-labels", type=positive, metavar="N", help="default: what the model takes"
    )
    check.add_argument("--quiet", action="store_true", help="no progress bar")
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    from florence_jax.runtime.jsonl import json_text
    from florence_jax.runtime.terminal_bar import terminal_bar
    from florence_jax.training.data_check.compare import compare_splits
    from florence_jax.training.data_check.images import read_images
    from florence_jax.training.data_check.page import page
    from florence_jax.training.data_check.report import report_json, report_lines
    from florence_jax.training.data_check.rows import read_rows
    from florence_jax.training.data_check.sources import open_splits

    to_stdout = str(arguments.json) == "-"
    for path in (arguments.output, None if to_stdout else arguments.json):
        if path is not None:
            check_writable(path.parent)
    # The cheapest first: what is no data set is said before anything is read.
    splits = [split for source in arguments.sources for split in open_splits(source)]
    limits = _limits(arguments)
    rows = sum(len(source) for split in splits for source in split.sources)
    with terminal_bar(total=rows, desc="texts", unit="row", shown=not arguments.quiet) as bar:
        for split in splits:
            read_rows(split, limits, bar.update)
    if not arguments.no_images:
        with terminal_bar(total=rows, desc="images", unit="row", shown=not arguments.quiet) as bar:
            for split in splits:
                read_images(split, bar.update)
    compare_splits(splits)
    found = report_json(splits)
    if to_stdout:
        print(json_text(found, indent=1))
    else:
        print("\n".join(report_lines(splits)))
    if arguments.json is not None and not to_stdout:
        atomic_write(arguments.json, json_text(found, indent=1) + "\n")
    if arguments.output is not None:
        atomic_write(arguments.output, page(splits, arguments.samples, arguments.seed))
        say_on_stderr(f"{arguments.output} has samples of each split")
    return 0 if found["ok"] else 1


def _limits(arguments: argparse.Namespace) -> Limits:
    """The tokenizer and the lengths of the model; without them, lengths are left out by name."""
    from florence_jax.adapters import resolve_model
    from florence_jax.checkpoint.errors import CheckpointError
    from florence_jax.checkpoint.repository import read_config
    from florence_jax.config import PRESETS, Florence2Config
    from florence_jax.inference.processor import Processor
    from florence_jax.training.data_check.rows import Limits

    model = arguments.model
    try:
        directory = resolve_model(model, arguments.revision, weights=False)
        processor = Processor.from_pretrained(directory)
    except (CheckpointError, OSError) as error:
        say_on_stderr(
            f"note: lengths in tokens are left out, because the tokenizer of {model} is not here "
            f"({error}); --model shapes measures with that of the library's own small model"
        )
        return Limits(tokenizer=None, max_prompt=0, max_labels=0)
    try:
        config = Florence2Config.from_hf(read_config(directory).config)
    except CheckpointError as error:
        say_on_stderr(f"note: lengths are compared with what the base model takes ({error})")
        config = PRESETS["base"]()
    positions = config.text.max_position_embeddings
    height, width = processor.image_config.size
    return Limits(
        tokenizer=processor.tokenizer,
        max_prompt=arguments.max_prompt or positions - config.num_image_tokens(height, width),
        max_labels=arguments.max_labels or positions,
        declared=processor.tasks,
    )
