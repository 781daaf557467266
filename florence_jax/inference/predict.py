"""One pass over a list of image files: a result or an error for each, in order, as rows too."""

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
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.requests import Query, Request, Result
from florence_jax.processing import ImageError
from florence_jax.processing.image.load import count_pages, load_image_and_notes, page_id
from florence_jax.results.rows import Row, result_to_json
from florence_jax.runtime.atomic_file import file_name
from florence_jax.runtime.error_text import row_error_text


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The result of one query about one image, or why there is none.

    Attributes:
        path: the image file.
        query: the task with its inputs.
        image: the upright RGB image that coordinates refer to; None where it cannot be read.
        result: `{task: answer}`; None where there is an error.
        error: why there is no result; None where there is one.
        drawing_error: why the result is not drawn, though --save-images asked for it.
        page: of a file with several, counted from 1; None where it was not asked for.
        notes: the assumptions that the image was read on.
    """

    path: Path
    query: Query
    image: Image.Image | None = None
    result: Result | None = None
    error: str | None = None
    drawing_error: str | None = None
    page: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The path, with the page of a file whose pages are answered one by one."""
        return str(self.path) if self.page is None else page_id(str(self.path), self.page)


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


def predict(
    pipeline: BasePipeline,
    paths: Sequence[Path | Page],
    queries: Sequence[Query],
    *,
    generation: GenerationConfig | None = None,
    constrained: bool = False,
    batch_size: int = 8,
    seed: int | None = None,
    free_prompt: bool = False,
) -> Iterator[Prediction]:
    """Answer every query about every image, image by image.

    Whatever fails for one image (reading it, a region that lies outside of it) gives predictions
    with an error and stops nothing.

    Raises:
        ValueError: a query or setting that suits no image.
        RuntimeError: the device fails.
    """
    engine = pipeline.engine(
        generation,
        constrained=constrained,
        batch_size=batch_size,
        seed=seed,
        free_prompt=free_prompt,
    )
    for query in queries:
        engine.check(Request(image=None, **vars(query)), labels=True)
    # What has been read but not answered yet, in order; failures wait here for their turn.
    waiting: deque[Prediction] = deque()

    def requests() -> Iterator[Request]:
        for place in paths:
            path, page = place if isinstance(place, Page) else (place, None)
            try:
                image, notes = load_image_and_notes(path, page=page)
            except Exception as error:  # decoders raise almost anything
                text = row_error_text(error)
                waiting.extend(
                    Prediction(path=path, query=query, error=text, page=page) for query in queries
                )
                continue
            for query in queries:
                waiting.append(
                    Prediction(path=path, query=query, image=image, page=page, notes=notes)
                )
                yield Request(image=image, **vars(query))

    def failures() -> Iterator[Prediction]:
        while waiting and waiting[0].error is not None:
            yield waiting.popleft()

    for response in engine.run(requests()):
        yield from failures()
        asked = waiting.popleft()
        if isinstance(response, Exception):
            yield dataclasses.replace(asked, error=row_error_text(response))
        else:
            yield dataclasses.replace(asked, result=response.result)
    yield from failures()


def image_rows(predictions: Iterable[Prediction], queries: int) -> Iterator[Row]:
    """One row for each image, of predictions that come image by image, `queries` for each."""
    answers: list[Prediction] = []
    for prediction in predictions:
        answers.append(prediction)
        if len(answers) == queries:
            yield result_to_json(_row(answers))
            answers = []


def _row(predictions: list[Prediction]) -> Row:
    first = predictions[0]
    row: Row = {"id": first.id}
    if first.page is not None:
        row |= {"image": str(first.path), "page": first.page}
    if first.notes:
        row["image_note"] = "; ".join(first.notes)
    if first.image is None:
        return row | {"error": first.error}
    row["width"], row["height"] = first.image.size
    row["answers"] = list(map(_answer, predictions))
    if all(one.result is None for one in predictions):
        row["error"] = first.error
    return row


def _answer(prediction: Prediction) -> dict[str, Any]:
    answer = prediction.query.to_dict()
    if prediction.result is None:
        return answer | {"error": prediction.error}
    drawn = prediction.drawing_error
    return answer | {"result": prediction.result} | ({"drawing_error": drawn} if drawn else {})


class DrawingNames:
    """File names for drawn results: `<image>.<task>.png`, numbered where two would be equal."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __call__(self, prediction: Prediction) -> str:
        task = re.sub(r"\W+", "_", prediction.query.prompt).strip("_").lower()[:60]
        page = "" if prediction.page is None else f".page{prediction.page}"
        ending, number = f"{page}.{task or 'text'}", 1
        name = file_name(prediction.path.stem, f"{ending}.png")
        while name in self._used:
            number += 1
            name = file_name(prediction.path.stem, f"{ending}.{number}.png")
        self._used.add(name)
        return name
