"""Data sets of Hugging Face's `datasets`: by name or in a folder, as tables or as streams."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from florence_jax.training.data.columns import Columns, row_of_columns
from florence_jax.training.data.example import DataError, Example, Source
from florence_jax.training.data.storage import is_url
from florence_jax.training.data.stream import Stream


def load_table(path: str, name: str = "", split: str = "train", revision: str | None = None) -> Any:
    """The `datasets.Dataset` of a split.

    Args:
        path: a data set's name on the Hub, or a folder: one that `save_to_disk` wrote, or one of
            files that `datasets.load_dataset` reads.
        name: a configuration of the data set.
        split: "train" and so on, or a part of it, such as "train[:10%]".

    Raises:
        DataError: there is no such data set or split, or it cannot be fetched.
    """
    return _load(path, name, split, revision, streaming=False)


def load_stream(
    path: str, name: str = "", split: str = "train", revision: str | None = None
) -> Any:
    """As `load_table`, a `datasets.IterableDataset` whose files are read as rows are asked for."""
    return _load(path, name, split, revision, streaming=True)


class HuggingFaceTable(Source):
    """A `datasets.Dataset` as examples; images stay encoded until a row is drawn.

    Args:
        local: whether it is the user's own, whose rows may name any file of this machine.

    Raises:
        DataError: it lacks a column.
    """

    def __init__(self, table: Any, columns: Columns, name: str, *, local: bool = False):
        self.columns, self.name = columns, name
        self._table, self.labels = _prepared(table, columns, name)
        self._local = local
        self.files = [Path(one["filename"]) for one in table.cache_files]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        where = f"{self.name}:{index}"
        row = self._table[int(index)]
        return _example(row, self.columns, where, self.labels, self._local)


class HuggingFaceStream(Stream):
    """A `datasets.IterableDataset` as a stream; its files are shuffled anew for each pass.

    Raises:
        DataError: it lacks a column, or nobody says how many rows it has.
    """

    def __init__(
        self,
        table: Any,
        columns: Columns,
        name: str,
        *,
        rows: int | None,
        seed: int,
        shuffle_rows: int,
        local: bool = False,
    ):
        self.columns, self._name, self._local = columns, name, local
        self._table, self.labels = _prepared(table, columns, name)
        rows = rows or _known_rows(table)
        if rows is None:
            raise DataError(
                f"{name} is a stream that does not say how many rows it has: set rows, which make "
                "an epoch"
            )
        super().__init__(rows=rows, seed=seed, shuffle_rows=shuffle_rows)

    @property
    def name(self) -> str:
        return self._name

    def read_pass(self, number: int) -> Iterator[Any]:
        # Not `shuffle` of the library, which mixes files by threads and waits for these.
        files = self._table.num_shards
        if files < 2 or self._shuffle_rows == 1:
            yield from self._table
            return
        for file in np.random.default_rng((self._seed, number, 1)).permutation(files).tolist():
            yield from self._table.shard(num_shards=files, index=file)

    def example(self, row: Any, where: str) -> Example:
        return _example(row, self.columns, where, self.labels, self._local)


def _load(path: str, name: str, split: str, revision: str | None, *, streaming: bool) -> Any:
    datasets = _library()
    where = f"the data set {path!r:.100}"
    folder = Path(path).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(str(folder))
            if isinstance(table, datasets.DatasetDict):
                if split not in table:
                    raise DataError(f"{where} has no split {split!r}, it has {', '.join(table)}")
                table = table[split]
            return table.to_iterable_dataset() if streaming else table
        return datasets.load_dataset(
            path, name or None, split=split, revision=revision, streaming=streaming
        )
    except DataError:
        raise
    # Each storage and each format raises errors of its own.
    except Exception as error:
        raise DataError(
            f"{where} cannot be loaded ({type(error).__name__}: {_line(error)}): check its name, "
            "configuration and split, the network and this machine's credentials (hf auth login)"
        ) from error


def _library() -> Any:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            'a huggingface source needs the package datasets: pip install "florence-jax[datasets]"'
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _prepared(table: Any, columns: Columns, name: str) -> tuple[Any, Sequence[str]]:
    """The table with encoded images, and the names of classes of its labels."""
    datasets = _library()
    features = table.features
    if features is None:  # of a stream of files without a schema
        return table, ()
    columns.check(name, list(_flat(features)))
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table, tuple(_names(features, columns.labels))


def _example(
    row: Mapping[str, Any], columns: Columns, where: str, names: Sequence[str], local: bool
) -> Example:
    return row_of_columns(row, columns, where, _image(row, columns, where, local), names)


def _image(row: Mapping[str, Any], columns: Columns, where: str, local: bool) -> Any:
    image = row.get(columns.image)
    # An image that is open already comes from files without a schema.
    if isinstance(image, bytes | Image.Image):
        return image
    if not isinstance(image, Mapping) or not (image.get("bytes") or image.get("path")):
        raise DataError(
            f"{where}: the column {columns.image} must hold an image or its bytes, got "
            f"{image!r:.80}"
        )
    if image.get("bytes"):
        return image["bytes"]
    return _fetched(str(image["path"]), where, local)


def _fetched(path: str, where: str, local: bool) -> bytes:
    """The bytes of a file that a row names, on this machine or behind a URL."""
    import fsspec

    if not local and not is_url(path) and not _is_cached(path):
        raise DataError(
            f"{where} names the file {path!r:.200}, and a data set of the Hub must name its own: "
            "it is not read"
        )
    try:
        with fsspec.open(path, "rb") as stream:
            return stream.read()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:
        raise DataError(
            f"{where}: the image {path!r:.200} cannot be fetched ({type(error).__name__}: "
            f"{_line(error)})"
        ) from error


def _is_cached(path: str) -> bool:
    """Whether a file is one that was downloaded from the Hub."""
    config = _library().config
    caches = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)
    return any(Path(path).resolve().is_relative_to(Path(one).resolve()) for one in caches)


def _flat(features: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of columns, those within columns as "objects.bbox"."""
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _names(features: Mapping[str, Any], column: str) -> Sequence[str]:
    """Names of the classes of a column of labels; none where it holds texts or bare numbers."""
    found: Any = features
    for part in filter(None, column.split(".")):
        found = getattr(found, "feature", found)
        found = found.get(part) if isinstance(found, Mapping) else None
    while hasattr(found, "feature"):
        found = found.feature
    return getattr(found, "names", None) or ()


def _known_rows(table: Any) -> int | None:
    splits = getattr(table.info, "splits", None) or {}
    known = splits.get(str(table.split)) if table.split is not None else None
    return getattr(known, "num_examples", None) or None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
