"""Drawings of a run's answers, and its rows as CSV, COCO or sidecars after the last block."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.batch.blocks import RowFormat
from florence_jax.batch.image_reader import ImageSource, open_image
from florence_jax.batch.job import Item, Row, Source
from florence_jax.batch.manifest import read_run
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.inference.image_files import DATA_SUFFIXES
from florence_jax.results.coco import CocoFile
from florence_jax.results.draw import save_drawn
from florence_jax.results.formats import BLOCKS, SIDECARS, OutputOptions
from florence_jax.results.row_writer import line_writer, skipped_text, write_rows
from florence_jax.results.rows import image_name
from florence_jax.results.sidecars import (
    SidecarPlaces,
    check_sidecars,
    common_folder,
    inside,
    open_sidecars,
    relative_name,
)
from florence_jax.runtime.atomic_file import (
    atomic_open,
    atomic_write,
    check_writable,
    file_name,
    remove_leftovers,
)
from florence_jax.runtime.directory_lock import DirectoryInUseError, directory_lock
from florence_jax.runtime.error_text import is_of_one_input, row_error_text

CSV, COCO = "answers.csv", "annotations.json"
_LOCK = ".formats.lock"


def open_export(options: OutputOptions, source: Source, row_format: RowFormat) -> Export | None:
    """The export that `--format` asks for; None for a block format.

    Args:
        options: the format and its files; `directory` is the run's.
        source: the run's inputs.
        row_format: format of the run's blocks.

    Raises:
        ValueError, OSError: the format cannot be written there; nothing was begun.
    """
    directory, kind, inputs = options.directory, options.kind, options.inputs
    assert directory is not None
    if row_format == "parquet":
        _check_table(options, directory)
    if kind in BLOCKS:
        return None
    files = [one for one in inputs if Path(one).suffix.lower() not in DATA_SUFFIXES]
    has_lists = any(Path(one).suffix.lower() == ".txt" for one in files)
    named = [one for one in inputs if Path(one).suffix.lower() != ".txt"]
    alone = [one for one in named if not os.path.isdir(one)]
    root = common_folder(inputs, [*alone, *(source.ids() if has_lists else ())])
    places = None
    if kind in SIDECARS:
        places = SidecarPlaces(root, options.sidecar_dir or directory, SIDECARS[kind])
        # Rows of data name their images only when they are read.
        if len(files) == len(inputs):
            check_sidecars(kind, places, list(source.ids()), inputs, overwrite=options.overwrite)
    return Export(options=options, directory=directory, root=root, places=places)


@dataclass(frozen=True, kw_only=True)
class Export:
    """The rows of a run in a format that is no block format.

    Attributes:
        options: the format and its files.
        directory: the run's.
        root: the folder below which rows of data name their images.
        places: the path of each image's sidecar; None for a format of one file.
    """

    options: OutputOptions
    directory: Path
    root: Path
    places: SidecarPlaces | None

    def write(self) -> int:
        """Write the format from all rows, after the last block.

        Returns:
            How many rows the format could not hold; each was reported on stderr.
        """
        try:
            with directory_lock(self.directory, _LOCK):
                places = self.places
                return self._write_file() if places is None else self._write_sidecars(places)
        except DirectoryInUseError as error:
            print(f"another process writes {self.options.kind}: {error}", file=sys.stderr)
            return 0

    def _write_file(self) -> int:
        if self.options.kind == "coco":
            place = self.directory / COCO
            coco = CocoFile(
                functools.partial(atomic_write, place),
                functools.partial(relative_name, root=self.root),
            )
            unsuitable = write_rows(self._rows(), coco.write)
            coco.save()
        else:
            place = self.directory / CSV
            with atomic_open(place) as stream:
                lines = line_writer(self.options.kind, functools.partial(print, file=stream))
                unsuitable = write_rows(self._rows(), lines)
        self._say(f"all rows are in {place} too")
        return unsuitable

    def _write_sidecars(self, places: SidecarPlaces) -> int:
        kind, overwrite = self.options.kind, self.options.overwrite
        names = [image_name(row) for row in self._rows() if "error" not in row]
        there = check_sidecars(kind, places, names, self.options.inputs, overwrite=overwrite)
        with open_sidecars(kind, places, overwrite=overwrite) as sidecars:
            unsuitable = write_rows(self._rows(), sidecars.write)
        if there:
            self._say(skipped_text(len(there), len(names), kind))
        self._say(f"{sidecars.written} {kind} files are written below {places.base}/")
        return unsuitable

    def _rows(self) -> Iterator[Row]:
        """The rows of all blocks; the images that rows of data name are below the root."""
        for row in read_run(self.directory):
            named = "image" in row and self.options.kind != "csv"
            yield row | {"image": str(self.root / inside(row["image"]))} if named else row

    def _say(self, text: str) -> None:
        if not self.options.quiet:
            print(text, file=sys.stderr)


def _check_table(options: OutputOptions, directory: Path) -> None:
    """Refuse files that would make a directory of Parquet unreadable as one table."""
    kind = options.kind
    if kind not in BLOCKS and options.sidecar_dir is None:
        raise ValueError(
            f"{directory} is a table of Parquet files, among which {kind} would make it "
            "unreadable: "
            + (
                "name another folder (--sidecar-dir DIR)"
                if kind in SIDECARS
                else "read the table, or run into another directory"
            )
        )
    table = Path(os.path.realpath(directory))
    for option in ("save_images", "sidecar_dir"):
        folder = getattr(options, option)
        place = Path(os.path.realpath(folder or os.devnull))
        if not place.is_relative_to(table):
            continue
        # Readers skip names that begin so, and folders of such names.
        if not any(part.startswith((".", "_")) for part in place.relative_to(table).parts):
            raise ValueError(
                f"--{option.replace('_', '-')} {folder} is in {directory}, which is a table of "
                "Parquet files, and its files would make that unreadable: name a folder "
                f"elsewhere, or one that readers pass over ({directory / f'_{place.name}'})"
            )


class DrawAnswers:
    """Draws the answers of a block into a folder, before the block's file is written.

    A file is `<name>-<digest of the id>.<task>.png`: a function of the row alone, so that a block
    that is done again draws the same files. An answer that cannot be drawn gets a `drawing_error`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
        remove_leftovers(folder)
        self._folder = folder

    def __call__(self, items: Sequence[Item], rows: Sequence[Row], pool: WorkerPool) -> None:
        drawings = [
            (
                name,
                answer,
                pool.submit(draw_answer, item.image, answer["result"], str(self._folder / name)),
            )
            for item, row in zip(items, rows, strict=True)
            for name, answer in _named(row)
        ]
        for name, answer, drawing in drawings:
            try:
                drawing.result()
            except Exception as error:
                if not is_of_one_input(error) or isinstance(error, EOFError):
                    raise
                answer["drawing_error"] = row_error_text(error)
                print(
                    f"{self._folder / name} is not drawn: {answer['drawing_error']}",
                    file=sys.stderr,
                )


def draw_answer(source: ImageSource, result: dict[str, Any], path: str) -> None:
    """Write the image with one result drawn on it to `path`, atomically."""
    save_drawn(open_image(source), result, path)


def _named(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """A file name for each answer of a row that has a result."""
    digest = hashlib.blake2b(row["id"].encode("utf-8", "surrogatepass"), digest_size=4)
    stem = re.sub(r"[^\w.-]+", "_", Path(row["id"]).stem)[:60]
    named: dict[str, dict[str, Any]] = {}
    for answer in row.get("answers", ()):
        if "result" not in answer:
            continue
        task = re.sub(r"\W+", "_", answer["prompt"]).strip("_").lower()[:60] or "text"
        name, number = task, 1
        file = file_name(stem, f"-{digest.hexdigest()}.{name}.png")
        while file in named:
            number += 1
            file = file_name(stem, f"-{digest.hexdigest()}.{task}.{number}.png")
        named[file] = answer
    return list(named.items())
