"""Export the rows of a run as CSV, COCO or sidecars once its last block is finished."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from florence_jax.batch.blocks import read_rows
from florence_jax.batch.job import Row, Source
from florence_jax.batch.manifest import blocks_of_manifest, read_manifest
from florence_jax.batch.sources.open import DATA_FILES
from florence_jax.results.coco import CocoFile
from florence_jax.results.formats import BLOCKS, SIDECARS, OutputOptions
from florence_jax.results.places import SidecarPlaces, common_folder, inside, relative_name
from florence_jax.results.row_writer import line_writer, skipped_text, write_rows
from florence_jax.results.rows import picture_name
from florence_jax.results.sidecars import check_sidecars, open_sidecars
from florence_jax.runtime.atomic_file import atomic_open, atomic_write
from florence_jax.runtime.directory_lock import DirectoryInUseError, directory_lock

CSV, COCO = "answers.csv", "annotations.json"
_LOCK = ".formats.lock"


class RowExporter:
    """Writes the format of `--format` from the finished blocks, where that is no block format."""

    def __init__(self, options: OutputOptions, source: Source) -> None:
        """
        Args:
            options: the format and its files; `directory` is the run's.
            source: the run's inputs.

        Raises:
            ValueError, OSError: the format cannot be written there; nothing was begun.
        """
        assert options.directory is not None
        self._options, self._kind, self._directory = options, options.kind, options.directory
        begun = read_manifest(self._directory)
        if (begun["blocks"]["format"] if begun else self._kind) == "parquet":
            self._check_table()
        if self._kind in BLOCKS:
            return
        files = [one for one in options.inputs if Path(one).suffix.lower() not in DATA_FILES]
        has_rows = len(files) < len(options.inputs)
        has_lists = any(Path(one).suffix.lower() == ".txt" for one in files)
        ids = source.ids() if has_lists else ()
        named = [one for one in options.inputs if Path(one).suffix.lower() != ".txt"]
        alone = [one for one in named if not os.path.isdir(one)]
        self._root = common_folder(options.inputs, [*alone, *ids])
        if self._kind in SIDECARS:
            folder = options.sidecar_dir or self._directory
            self._places = SidecarPlaces(self._root, folder, SIDECARS[self._kind])
            # Rows of data name their images only when they are read.
            if not has_rows:
                self._check(list(source.ids()))

    def write(self) -> int:
        """Write the format from all rows, after the last block.

        Returns:
            How many rows the format could not hold; each was reported on stderr.
        """
        if self._kind in BLOCKS:
            return 0
        try:
            with directory_lock(self._directory, _LOCK):
                return self._write_sidecars() if self._kind in SIDECARS else self._write_file()
        except DirectoryInUseError as error:
            print(f"another process writes {self._kind}: {error}", file=sys.stderr)
            return 0

    def _write_file(self) -> int:
        if self._kind == "coco":
            place = self._directory / COCO
            coco = CocoFile(
                functools.partial(atomic_write, place),
                functools.partial(relative_name, root=self._root),
            )
            unsuitable = write_rows(self._rows(), coco)
            coco.save()
        else:
            place = self._directory / CSV
            with atomic_open(place) as stream:
                add_line = functools.partial(print, file=stream)
                unsuitable = write_rows(self._rows(), line_writer(self._kind, add_line))
        self._say(f"all rows are in {place} too")
        return unsuitable

    def _write_sidecars(self) -> int:
        names = [picture_name(row) for row in self._rows() if "error" not in row]
        there = self._check(names)
        overwrite = self._options.overwrite
        with open_sidecars(self._kind, self._places, overwrite=overwrite) as sidecars:
            unsuitable = write_rows(self._rows(), sidecars)
        if there:
            self._say(skipped_text(len(there), len(names), self._kind))
        self._say(f"{sidecars.written} {self._kind} files are written below {self._places.base}/")
        return unsuitable

    def _check(self, names: list[str]) -> set[str]:
        overwrite, inputs = self._options.overwrite, self._options.inputs
        return check_sidecars(self._kind, self._places, names, inputs, overwrite=overwrite)

    def _check_table(self) -> None:
        """Refuse files that would make a directory of Parquet unreadable as one table."""
        if self._kind not in BLOCKS and self._options.sidecar_dir is None:
            raise ValueError(
                f"{self._directory} is a table of Parquet files, among which {self._kind} would "
                "make it unreadable: "
                + (
                    "name another folder (--sidecar-dir DIR)"
                    if self._kind in SIDECARS
                    else "read the table, or run into another directory"
                )
            )
        table = Path(os.path.realpath(self._directory))
        for option in ("save_images", "sidecar_dir"):
            folder = getattr(self._options, option)
            place = Path(os.path.realpath(folder or os.devnull))
            if not place.is_relative_to(table):
                continue
            # Readers skip names that begin so, and folders of such names.
            if not any(part.startswith((".", "_")) for part in place.relative_to(table).parts):
                raise ValueError(
                    f"--{option.replace('_', '-')} {folder} is in {self._directory}, which is a "
                    "table of Parquet files, and its files would make that unreadable: name a "
                    "folder elsewhere, or "
                    f"one that readers pass over ({self._directory / f'_{place.name}'})"
                )

    def _rows(self) -> Iterator[Row]:
        """The rows of all blocks; the images that rows of data name are below the root."""
        manifest = read_manifest(self._directory)
        assert manifest is not None
        blocks = blocks_of_manifest(manifest)
        for name in blocks.names(manifest["blocks"]["format"]):
            for row in read_rows(self._directory / name):
                named = "image" in row and self._kind != "csv"
                yield row | {"image": str(self._root / inside(row["image"]))} if named else row

    def _say(self, text: str) -> None:
        if not self._options.quiet:
            print(text, file=sys.stderr)
