"""One pass over a list of image files: a result or an error for each, in order."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from florence_jax.generation import GenerationConfig
from florence_jax.inference.answering import Answering, Result
from florence_jax.inference.requests import Query, Request
from florence_jax.processing import ImageError
from florence_jax.processing.image import count_pages, load_image_and_notes, page_id

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# What only runs into a directory read.
_DATA_SUFFIXES = frozenset({".jsonl", ".parquet", ".tar"})


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one image answered to one query.

    Attributes:
        path: the image file.
        query: what was asked.
        image: the upright RGB picture that coordinates refer to; None where it cannot be read.
        result: `{task: answer}`; None where there is an error.
        error: why there is no result; None where there is one.
        page: of a file with several, counted from 1; None where it was not asked for.
        notes: the assumptions that the image was read on.
    """

    path: Path
    query: Query
    image: Image.Image | None = None
    result: Result | None = None
    error: str | None = None
    page: int | None = None
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The JSON-lines row: image, prompt, what was asked with it, and result or error."""
        row: dict[str, Any] = {"image": str(self.path)}
        if self.page is not None:
            row = {"id": page_id(str(self.path), self.page), **row, "page": self.page}
        row |= self.query.record()
        if self.image is not None:
            row["width"], row["height"] = self.image.size
        if self.notes:
            row["image_note"] = "; ".join(self.notes)
        return row | ({"error": self.error} if self.result is None else {"result": self.result})


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Image files named by `sources`, in order.

    A directory stands for the images in it and below it, sorted by name; a `.txt` file for the
    paths on its lines, relative to the working directory. Anything else is an image file.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a directory or list holds no image, or a source is no list of images, or a URL.
    """
    sources = list(sources)
    refuse_urls(sources)
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                kinds = ", ".join(sorted(IMAGE_SUFFIXES))
                raise ValueError(f"the directory {source} holds no image ({kinds})")
            found += inside
        elif not source.is_file():
            raise FileNotFoundError(
                f"{source} does not exist: expected an image, directory or list"
            )
        elif source.suffix.lower() == ".txt":
            lines = source.read_text(encoding="utf-8").splitlines()
            listed = [Path(line.strip()) for line in lines if line.strip()]
            if not listed:
                raise ValueError(f"the list {source} names no image: expected one path per line")
            found += listed
        elif source.suffix.lower() in _DATA_SUFFIXES:
            raise ValueError(f"{source} holds rows of data: answers to it go to --output-dir DIR")
        else:
            found.append(source)
    return found


class Page(NamedTuple):
    """One page, counted from 1, of a file with several."""

    path: Path
    number: int


def pages_of(paths: Iterable[Path]) -> list[Path | Page]:
    """The paths, those of files with several pages or frames once for each of these."""
    found: list[Path | Page] = []
    for path in paths:
        try:
            count = count_pages(path)
        except ImageError:
            found.append(Page(path, 1))  # reading it says what is wrong
            continue
        found += [Page(path, n) for n in range(1, count + 1)] if count > 1 else [path]
    return found


def refuse_urls(sources: Iterable[str | Path]) -> None:
    """Say what to do where a source is a URL.

    Raises:
        ValueError: one is.
    """
    for source in sources:
        if re.match(r"\w+://", str(source)):
            raise ValueError(
                f"{source} is a URL, and only files are read: mount the bucket (gcsfuse, s3fs) or "
                "copy what is needed, and name the directory"
            )


def predict(
    pipeline: Answering,
    paths: Sequence[Path | Page],
    queries: Sequence[Query],
    *,
    generation: GenerationConfig | None = None,
    constrained: bool = False,
    batch_size: int = 8,
) -> Iterator[Prediction]:
    """Answer every query about every image, image by image.

    An image that cannot be read gives predictions with an error and stops nothing.

    Raises:
        ValueError: a query or setting that suits no image.
    """
    # What has been read but not answered yet, in order; unreadable images wait here for their turn.
    waiting: deque[Prediction] = deque()

    def requests() -> Iterator[Request]:
        for place in paths:
            path, page = place if isinstance(place, Page) else (place, None)
            try:
                image, notes = load_image_and_notes(path, page=page)
            except ImageError as error:
                waiting.extend(
                    Prediction(path=path, query=query, error=str(error), page=page)
                    for query in queries
                )
                continue
            for query in queries:
                waiting.append(
                    Prediction(path=path, query=query, image=image, page=page, notes=notes)
                )
                yield Request(
                    image=image,
                    prompt=query.prompt,
                    text=query.text,
                    region=query.region,
                    labels=query.labels,
                )

    def unreadable() -> Iterator[Prediction]:
        while waiting and waiting[0].error is not None:
            yield waiting.popleft()

    results = pipeline.answer(
        requests(), generation, constrained=constrained, batch_size=batch_size
    )
    for result in results:
        yield from unreadable()
        asked = waiting.popleft()
        yield dataclasses.replace(asked, result=result)
    yield from unreadable()


class PictureNames:
    """File names for drawn results: `<image>.<task>.png`, numbered where two would be equal."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __call__(self, prediction: Prediction) -> str:
        task = re.sub(r"\W+", "_", prediction.query.prompt).strip("_").lower()[:60]
        page = "" if prediction.page is None else f".page{prediction.page}"
        stem = f"{prediction.path.stem}{page}.{task or 'text'}"
        name, number = stem, 1
        while name in self._used:
            number += 1
            name = f"{stem}.{number}"
        self._used.add(name)
        return f"{name}.png"
