"""Rows `image, prefix, suffix`: JSONL (Roboflow's and maestro's), Parquet, ArrayRecord."""

import array
import base64
import bisect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florence_jax.datasets.text_rows import (
    COLUMNS,
    FILE_NAME,
    DatasetError,
    columns_error,
    missing_columns,
    row_columns,
)
from florence_jax.processing import task_of
from florence_jax.runtime.text_file import TextFileError, check_regular, parse_json
from florence_jax.training.data.example import DataError, Example, Source
from florence_jax.training.data.storage import Place, as_path, local_copy, resolve_inside

# So many first rows are looked at for columns before a run starts.
_LOOKED_AT = 16


class Jsonl(Source):
    """One JSON object a line; images are files below `image_root`, by default the file's folder.

    Lines are read when asked for: only their offsets are held, 8 bytes a line.

    Raises:
        DataError: there is no row, or none of the first ones has the columns.
    """

    def __init__(self, path: str | Place, image_root: str | Place | None = None):
        self.path = as_path(path)
        self.image_root = as_path(image_root) if image_root else self.path.parent
        self._file = local_copy(self.path)
        self._offsets = array.array("q", _line_offsets(self._file))
        if not self._offsets:
            raise DataError(f"{self.path} holds no rows")
        self._look()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        where = f"{self.path}:{index}"
        return row_example(where, self._row(index, where), self.image_root)

    def _row(self, index: int, where: str) -> Any:
        with self._file.open("rb") as stream:
            stream.seek(self._offsets[index])
            line = stream.readline()
        try:
            return parse_json(line, where)
        except TextFileError as error:
            raise DataError(str(error)) from None

    def _look(self) -> None:
        """One bad row is put aside when it is drawn; a file of other columns is refused at once."""
        faults: list[str] = []
        for index in range(min(_LOOKED_AT, len(self))):
            where = f"{self.path}:{index}"
            try:
                row_columns(self._row(index, where), where)
            except (DataError, DatasetError) as error:
                faults.append(str(error))
            else:
                return
        raise DataError(faults[0])


class Parquet(Source):
    """A Parquet file, or a directory of them, in the order of their names.

    The column `image` holds encoded bytes, a struct with `bytes` (as Hugging Face writes it), or
    the name of a file below `image_root`. A row group is decoded once and kept.
    """

    def __init__(self, path: str | Place, image_root: str | Place | None = None):
        import pyarrow.parquet as parquet

        self.path = as_path(path)
        is_folder = self.path.is_dir()
        folder = self.path if is_folder else self.path.parent
        self.image_root = as_path(image_root) if image_root else folder
        files = sorted(self.path.glob("*.parquet")) if is_folder else [self.path]
        if not files:
            raise DataError(f"{self.path} holds no .parquet files")
        self._groups: list[tuple[int, Place, int]] = []
        count = 0
        for file in files:
            try:
                metadata = parquet.read_metadata(_opened(file))
            except (OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read as Parquet: {error}") from None
            names = metadata.schema.to_arrow_schema().names
            if missing_columns(names):
                raise DataError(str(columns_error(str(file), names)))
            for group in range(metadata.num_row_groups):
                self._groups.append((count, file, group))
                count += metadata.row_group(group).num_rows
        self._count = count
        self._kept: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        number = bisect.bisect_right(self._groups, index, key=lambda group: group[0]) - 1
        first, file, _ = self._groups[number]
        row = self._table(number).slice(index - first, 1).to_pylist()[0]
        return row_example(f"{file}:{index}", row, self.image_root)

    def _table(self, number: int) -> Any:
        import pyarrow.parquet as parquet

        kept = self._kept
        if kept is None or kept[0] != number:
            _, file, group = self._groups[number]
            # The pieces of an object's columns are fetched together, not one after another.
            content = parquet.ParquetFile(_opened(file), pre_buffer=not isinstance(file, Path))
            names = content.schema_arrow.names
            wanted = [*([] if "image" in names else [FILE_NAME]), *COLUMNS]
            wanted = [column for column in wanted if column in names]
            kept = (number, content.read_row_group(group, columns=wanted))
            self._kept = kept
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}


class ArrayRecord(Source):
    """ArrayRecord files whose records are JSON rows with the image's bytes in base64."""

    def __init__(self, path: str | Place):
        import grain

        found = as_path(path)
        if not isinstance(found, Path):
            raise DataError(
                f"{path}: ArrayRecord files are read from file systems alone: copy them to this "
                "machine, or mount the bucket (Cloud Storage FUSE)"
            )
        self.path = found
        files = sorted(self.path.glob("*.array_record")) if self.path.is_dir() else [self.path]
        if not files:
            raise DataError(f"{self.path} holds no .array_record files")
        try:
            self._records: Any = grain.sources.ArrayRecordDataSource([str(file) for file in files])
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.path} cannot be read as ArrayRecord: {error}") from None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        where = f"{self.path}:{index}"
        try:
            row = parse_json(self._records[index], where)
            image, _, _ = row_columns(row, where)
            row["image"] = base64.b64decode(image, validate=True)
        except (TextFileError, DatasetError) as error:
            raise DataError(str(error)) from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{where} is not a row with a base64 image: {error}") from None
        return row_example(where, row, self.path)


def row_example(where: str, row: Any, image_root: Place) -> Example:
    """A row `image, prefix, suffix` as an example; the prefix's task token is split off.

    Raises:
        DataError: a column is missing or of the wrong type, or the image lies outside of the root.
    """
    try:
        image, prefix, labels = row_columns(row, where)
    except DatasetError as error:
        raise DataError(str(error)) from None
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        image = resolve_inside(image_root, image, where)
    for name, value in (("prefix", prefix), ("suffix", labels)):
        if not isinstance(value, str):
            raise DataError(f"{where}: {name} must be text, got {value!r:.80}")
    if not isinstance(image, Place | bytes):
        raise DataError(f"{where}: image must be a file name or bytes, got {image!r:.80}")
    task = task_of(prefix)
    task = task if prefix.startswith(task) else ""
    return Example(id=where, image=image, task=task, prompt=prefix[len(task) :], labels=labels)


def _opened(file: Place) -> Any:
    """The argument that pyarrow opens: a file's name, or a stream of an object's bytes."""
    return file if isinstance(file, Path) else file.open("rb")


def _line_offsets(path: Path) -> list[int]:
    offsets, position = [], 0
    try:
        if not path.is_dir():
            check_regular(path)
        with path.open("rb") as stream:
            for line in stream:
                if line.strip():
                    offsets.append(position)
                position += len(line)
    except IsADirectoryError:
        raise DataError(
            f"{path} is a directory: name the .jsonl file in it, or set data.directory to the one "
            "that holds train/ and valid/"
        ) from None
    except TextFileError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    return offsets
