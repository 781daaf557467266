"""`RowsAnswerer`: answer batches of rows within Ray Data or Apache Beam.

These engines bring scheduling, retries and storage of their own, for data that outgrow a directory.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from florence_jax.batch.job import Item, Row, block_rows
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.batch.sources.rows import RowReader
from florence_jax.inference.requests import Query

# Keywords beside the decoding settings.
_OWN = ("model", "tasks", "dtype", "batch_size", "constrained", "image_root", "free_prompt")
# Batches come from other processes' memory; nothing else is read ahead here.
_IN_THIS_PROCESS = 0


class RowsAnswerer:
    """Answers rows; the answers depend on its arguments and the rows alone.

    A row has `image` (encoded bytes, or the name of a file below `image_root`) and may have a task
    of its own, as the rows of `florence-jax predict --output-dir` do. The model is loaded in the
    process of the first batch, when it comes: an instance is a few bytes to send.
    """

    def __init__(
        self,
        model: str = "microsoft/Florence-2-base-ft",
        tasks: str | Sequence[str | Query] = (),
        *,
        dtype: str = "float32",
        batch_size: int = 8,
        constrained: bool = False,
        image_root: str = ".",
        free_prompt: bool = False,
        **decoding: Any,
    ) -> None:
        """
        Args:
            model: as for `Florence2Pipeline.from_pretrained`.
            tasks: the tasks of rows that have none of their own.
            dtype: of weights and activations.
            batch_size: rows in one compiled call, on each device of the process.
            constrained: allow only answers that can be read whole.
            image_root: the directory below which rows name images.
            free_prompt: allow prompts that look like a task and are none.
            decoding: fields of `GenerationConfig`, such as `max_new_tokens=64`.
        """
        several = [tasks] if isinstance(tasks, str) else tasks
        self._queries = tuple(Query(prompt=one) if isinstance(one, str) else one for one in several)
        self._reader = RowReader(queries=self._queries, root=image_root)
        self._model, self._dtype, self._decoding = model, dtype, decoding
        self._batch_size, self._constrained = batch_size, constrained
        self._free_prompt = free_prompt

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Columns in, columns out, as Ray Data's `map_batches` calls it with numpy batches.

        Returns:
            The batch's columns without the images, and `answers` (JSON text), `width`, `height`
            and `error` (text). Where the image or the row cannot be read, answers are "[]" and
            the sizes 0; where no question could be asked, each answer has an error too.
        """
        names = list(batch)
        rows = self.rows(
            {name: _plain(value) for name, value in zip(names, values, strict=True)}
            for values in zip(*batch.values(), strict=True)
        )
        kept = [name for name in names if name not in ("image", "image_base64")]
        columns = {name: np.asarray(batch[name]) for name in kept}
        answers = [json.dumps(row.get("answers", []), ensure_ascii=False) for row in rows]
        return columns | {
            "answers": np.array(answers, object),
            "width": np.array([row.get("width", 0) for row in rows], np.int32),
            "height": np.array([row.get("height", 0) for row in rows], np.int32),
            "error": np.array([row.get("error", "") for row in rows], object),
        }

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        """Rows in, one row each out, in order: for Beam, `BatchElements() | FlatMap(self.rows)`."""
        items = [self._item(number, row) for number, row in enumerate(rows)]
        return block_rows(items, self._job, self._pool)

    def _item(self, number: int, row: Mapping[str, Any]) -> Item:
        given = {name: value for name, value in row.items() if value is not None}
        image = given.get("image")
        return self._reader.item(image if isinstance(image, str) else f"row {number}", given)

    @functools.cached_property
    def _job(self) -> Any:
        from florence_jax.batch.predict_job import PredictJob
        from florence_jax.inference.overrides import with_overrides
        from florence_jax.inference.pipeline import Florence2Pipeline, replicate_over_local_devices

        pipeline = Florence2Pipeline.from_pretrained(self._model, dtype=self._dtype)
        job = PredictJob(
            replicate_over_local_devices(pipeline),
            with_overrides(pipeline.generation, self._decoding, _OWN),
            constrained=self._constrained,
            batch_size=self._batch_size,
            free_prompt=self._free_prompt,
        )
        job.check(self._queries)
        return job

    @functools.cached_property
    def _pool(self) -> WorkerPool:
        return WorkerPool(_IN_THIS_PROCESS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_job", "_pool")}


def _plain(value: Any) -> Any:
    """A cell of a column as a row has it: no numpy types."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
