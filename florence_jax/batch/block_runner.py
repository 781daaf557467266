"""Run a job over one block: read its items, load their images, put the rows together."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from florence_jax.batch.image_reader import image_name, resized_pixels
from florence_jax.batch.job import DecodedItem, Item, Job, Row, Source
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.runtime.error_text import is_of_one_input, row_error_text

# Images that are read ahead of the job, for each block in hand.
LOOKAHEAD = 64


class JobError(RuntimeError):
    """A job broke its contract."""


def block_rows(items: Iterable[Item], job: Job, pool: WorkerPool) -> list[Row]:
    """One row for each item, in order: the job's, or the error of an item that has none.

    Raises:
        JobError: the job returned fewer or more rows than it was given items.
    """
    rows: list[Row] = []
    waiting: list[int] = []  # the rows that the job completes

    def loaded() -> Iterator[DecodedItem]:
        for item, future in _read_ahead(items, job, pool):
            rows.append(_frame(item))
            if future is None:
                rows[-1]["error"] = item.error
                continue
            try:
                size, pixels, notes = future.result()
            except Exception as error:
                # No worker starts, or the pool is closed: no image is to blame.
                if not is_of_one_input(error) or isinstance(error, EOFError):
                    raise
                rows[-1]["error"] = row_error_text(error)
                continue
            if notes:
                rows[-1]["image_note"] = "; ".join(notes)
            waiting.append(len(rows) - 1)
            yield DecodedItem(item=item, size=size, pixels=pixels)

    stream = loaded()
    answers = job(stream)
    for _ in stream:
        raise JobError("the job did not take all of the block's items")
    if len(answers) != len(waiting):
        raise JobError(f"the job made {len(answers)} rows of {len(waiting)} items")
    for number, answer in zip(waiting, answers, strict=True):
        rows[number].update(answer)
    return rows


def read_items(source: Source, span: range) -> Iterator[Item]:
    """The items of a source in `span`; an item that cannot be read has an error."""
    done = span.start
    while done < span.stop:
        try:
            for item in source.read(done, span.stop):
                done += 1
                yield item
            return
        except Exception as error:
            if not is_of_one_input(error):
                raise
            name = next(itertools.islice(source.ids(), done, done + 1))
            yield Item(id=name, error=f"{name} cannot be read: {row_error_text(error)}")
            done += 1


def _read_ahead(
    items: Iterable[Item], job: Job, pool: WorkerPool
) -> Iterator[tuple[Item, Future[Any] | None]]:
    """Each item with the future of its image; None for an item with an error."""
    ahead: deque[tuple[Item, Future[Any] | None]] = deque()
    config = job.image_config
    before: Item | None = None
    future: Future[Any] | None = None
    for item in items:
        if item.error is not None:
            ahead.append((item, None))
        else:
            # Neighbours with one image share it.
            if future is None or before is None or before.image != item.image:
                future = pool.submit(resized_pixels, item.image, config.size, config.resample)
            before = item
            ahead.append((item, future))
        if len(ahead) > LOOKAHEAD:
            yield ahead.popleft()
    yield from ahead


def _frame(item: Item) -> Row:
    """The columns that a row has whatever the job answers."""
    row: Row = {"id": item.id}
    name = image_name(item.image)
    if name is not None and name != item.id:
        row["image"] = name
    return row | dict(item.extra)
