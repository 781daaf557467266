"""Settings of data sets with columns of any name: Hugging Face's, and WebDataset's tars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from florence_jax.training.checked import counted
from florence_jax.training.data.columns import Columns
from florence_jax.training.data.example import ObjectOrder, Ordered, Source
from florence_jax.training.data.huggingface import (
    HuggingFaceStream,
    HuggingFaceTable,
    load_stream,
    load_table,
)
from florence_jax.training.data.source_config import Named, SourceConfig
from florence_jax.training.data.storage import Place, is_url
from florence_jax.training.data.webdataset import WebDataset, WebDatasetStream, tars_at


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig(SourceConfig):
    """A data set with columns of any name.

    Attributes:
        path: what is read.
        columns: which column holds what.
        order: in which labels name objects, as in `FileConfig`: random by default where they come
            from `columns.boxes`, else as annotated.
        streaming: Read from the start on instead of at any place: nothing is copied to this machine
            first, and a resumed run reads over the rows that it has had.
        rows: Rows of a stream that make an epoch, where the data set does not say how many it has.
        shuffle_rows: Rows of a stream that are shuffled together, and held in memory, encoded; 1
            keeps the order.
    """

    kind: str = field(init=False, default="")
    path: str = ""
    columns: Columns = field(default_factory=Columns)
    order: ObjectOrder | None = None
    streaming: bool = False
    rows: int | None = None
    shuffle_rows: int = 1024

    def problems(self) -> Iterator[str]:
        if not self.path:
            yield f"a {self.kind} source needs a path"
        yield from counted("shuffle_rows", self.shuffle_rows, 1)
        yield from counted("rows", self.rows, 1, 10**12)
        yield from super().problems()

    def _ordered(self, source: Source) -> Source:
        order = self.order or ("random" if self.columns.boxes else "as_annotated")
        return source if order == "as_annotated" else Ordered(source, order)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig(ColumnsConfig):
    """A data set of Hugging Face's `datasets`; needs the extra "datasets".

    Attributes:
        path: its name on the Hub, or a folder: one that `save_to_disk` wrote, or one of files that
            `datasets.load_dataset` reads.
        name: a configuration of the data set.
        split: "train" and so on, or a part of it, such as "train[:10%]".
        revision: Branch, tag or commit on the Hub.
    """

    kind: str = field(init=False, default="huggingface")
    name: str = ""
    split: str = "train"
    revision: str | None = None

    def open(self, seed: int) -> Iterator[Named]:
        yield self._title, self._ordered(self._source(seed)), self.weight

    def files(self) -> list[tuple[str, Place]]:
        if self.streaming:
            return []  # a stream has none on this machine
        source = self._source(0)
        assert isinstance(source, HuggingFaceTable)
        return [(str(file), file) for file in source.files]

    @property
    def _title(self) -> str:
        return " ".join(part for part in (self.path, self.name, self.split) if part)

    def _source(self, seed: int) -> Source:
        asked = (self.path, self.name, self.split, self.revision)
        local = Path(self.path).expanduser().is_dir()
        if not self.streaming:
            return HuggingFaceTable(load_table(*asked), self.columns, self._title, local=local)
        return HuggingFaceStream(
            load_stream(*asked),
            self.columns,
            self._title,
            rows=self.rows,
            seed=seed,
            shuffle_rows=self.shuffle_rows,
            local=local,
        )


@dataclass(frozen=True, kw_only=True)
class WebDatasetConfig(ColumnsConfig):
    """WebDataset's tars.

    Attributes:
        path: a tar, a folder of them, or a pattern such as "train-{000..009}.tar"; or URLs of one,
            which are streams: https://, s3://, gs:// and what else fsspec opens.
    """

    kind: str = field(init=False, default="webdataset")

    def open(self, seed: int) -> Iterator[Named]:
        yield self.path, self._ordered(self._source(seed)), self.weight

    def files(self) -> list[tuple[str, Place]]:
        if self.streaming or is_url(self.path):
            return []
        return [(tar, Path(tar)) for tar in tars_at(self.path)]

    def _source(self, seed: int) -> Source:
        tars = tars_at(self.path)
        if not (self.streaming or is_url(self.path)):
            return WebDataset(tars, self.columns, self.path)
        return WebDatasetStream(
            tars,
            self.columns,
            self.path,
            rows=self.rows,
            seed=seed,
            shuffle_rows=self.shuffle_rows,
        )
