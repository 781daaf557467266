"""Open every image of a split once: can it be read, how large is it, is it there twice."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.processing.image.load import load_image_and_notes
from florence_jax.runtime.error_text import row_error_text
from florence_jax.training.data.augment import in_frame_of
from florence_jax.training.data.example import Example
from florence_jax.training.data.storage import readable_image
from florence_jax.training.data_check.rows import examples_of
from florence_jax.training.data_check.split import Split

_THREADS = 4
# Opened images that wait for their turn.
_AHEAD = 4 * _THREADS


@dataclass(frozen=True)
class _Opened:
    size: tuple[int, int] | None
    digest: str
    problem: str


def read_images(split: Split, advance: Callable[[int], object]) -> None:
    """Open each image of the split, several at a time, and fill in what they tell.

    Rows whose coordinates are of an image of another shape are faults, too.

    Args:
        advance: called with the number of rows whose image was opened.
    """
    opened: dict[str, _Opened] = {}
    users: dict[str, list[str]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for example, key, image in _in_order(split, pool, opened):
            if key not in opened:
                opened[key] = image.result()
                _note(split, example, key, opened[key])
            users.setdefault(key, []).append(example.id)
            size = opened[key].size
            if size is not None:
                try:
                    in_frame_of(size, example)
                except Exception as error:
                    split.fault("image", example.id, row_error_text(error))
            advance(1)
    seen: dict[str, str] = {}
    for key, digest in split.digests.items():
        if digest in seen:
            text = f"{key} and {seen[digest]} are one image"
            split.fault("same image", users[key][0], text)
        seen.setdefault(digest, key)


def _note(split: Split, example: Example, key: str, found: _Opened) -> None:
    if found.size is None:
        split.fault("image", example.id, found.problem)
        return
    split.images[key] = found.size
    split.digests[key] = found.digest


def _in_order(
    split: Split, pool: ThreadPoolExecutor, opened: dict[str, _Opened]
) -> Iterator[tuple[Example, str, Future[_Opened]]]:
    """(example, key of its image, the image), with some opened ahead; each image once."""
    futures: dict[str, Future[_Opened]] = {}
    waiting: collections.deque[tuple[Example, str]] = collections.deque()
    for example in _examples(split):
        key = key_of(example)
        if key not in opened and key not in futures:
            futures[key] = pool.submit(_open, example.image)
        waiting.append((example, key))
        if len(waiting) > _AHEAD:
            yield from _next(waiting, futures, opened)
    while waiting:
        yield from _next(waiting, futures, opened)


def _next(
    waiting: collections.deque[tuple[Example, str]],
    futures: dict[str, Future[_Opened]],
    opened: dict[str, _Opened],
) -> Iterator[tuple[Example, str, Future[_Opened]]]:
    example, key = waiting.popleft()
    yield example, key, futures[key] if key in futures else _done(opened[key])
    futures.pop(key, None)


def _done(found: _Opened) -> Future[_Opened]:
    future: Future[_Opened] = Future()
    future.set_result(found)
    return future


def _examples(split: Split) -> Iterator[Example]:
    """The examples of the rows that can be read; the others are faults already."""
    for source in split.sources:
        for index in range(len(source)):
            try:
                example, *_ = examples_of(source, index)
            except Exception:
                continue
            yield example


def key_of(example: Example) -> str:
    """The name of an example's image: its file, or the row whose bytes it is."""
    image = example.image
    return str(image) if isinstance(image, Path) or hasattr(image, "as_uri") else example.id


def _open(source: Any) -> _Opened:
    try:
        content = readable_image(source)
        data = content.read_bytes() if isinstance(content, Path) else content
        image, _ = load_image_and_notes(content)
    # Whatever a file holds, the others are opened.
    except Exception as error:
        return _Opened(None, "", row_error_text(error))
    digest = hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()
    return _Opened(image.size, digest, "")
