"""One pass over a list of image files: a result or an error for each, in order."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from florence_jax.generation import GenerationConfig
from florence_jax.inference.answering import Answering, Result
from florence_jax.inference.requests import Query, Request
from florence_jax.processing import ImageError, load_image


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one image answered to one query.

    Attributes:
        path: the image file.
        query: what was asked.
        image: the upright RGB picture that coordinates refer to; None where it cannot be read.
        result: `{task: answer}`; None where there is an error.
        error: why there is no result; None where there is one.
    """

    path: Path
    query: Query
    image: Image.Image | None = None
    result: Result | None = None
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """The JSON-lines row: image, prompt, what was asked with it, and result or error."""
        row: dict[str, Any] = {"image": str(self.path), **self.query.record()}
        if self.image is not None:
            row["width"], row["height"] = self.image.size
        return row | ({"error": self.error} if self.result is None else {"result": self.result})


def predict(
    pipeline: Answering,
    paths: Sequence[Path],
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
        for path in paths:
            try:
                image = load_image(path)
            except ImageError as error:
                waiting.extend(
                    Prediction(path=path, query=query, error=str(error)) for query in queries
                )
                continue
            for query in queries:
                waiting.append(Prediction(path=path, query=query, image=image))
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
        yield Prediction(path=asked.path, query=asked.query, image=asked.image, result=result)
    yield from unreadable()


class PictureNames:
    """File names for drawn results: `<image>.<task>.png`, numbered where two would be equal."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __call__(self, prediction: Prediction) -> str:
        task = re.sub(r"\W+", "_", prediction.query.prompt).strip("_").lower()[:60]
        stem = f"{prediction.path.stem}.{task or 'text'}"
        name, number = stem, 1
        while name in self._used:
            number += 1
            name = f"{stem}.{number}"
        self._used.add(name)
        return f"{name}.png"
