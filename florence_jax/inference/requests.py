"""Requests, each one image and one prompt, and the responses to them."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from florence_jax.processing import task_of

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image and what to ask of it.

    Attributes:
        image: anything `load_image` reads, or what `pipe.encode` returned for it.
        prompt: a task such as "<OD>", a task with its text ("<OPEN_VOCABULARY_DETECTION>a cat"), or
            a free prompt of a fine-tune ("<DocVQA>What is the total?").
        text: the task's text; for open-vocabulary detection also a list of classes.
        region: (x0, y0, x1, y1) in pixels of the upright image, for the `<REGION_TO_...>` tasks.
        labels: for constrained answers, the labels that they may use: those of their shapes, or
            the one label that an answer in text is.
    """

    image: Any
    prompt: str
    text: str | Sequence[str] | None = None
    region: str | Sequence[float] | None = None
    labels: Sequence[str] | None = None

    @property
    def task(self) -> str:
        """The task that the prompt begins with."""
        return task_of(self.prompt)

    @property
    def image_key(self) -> Hashable:
        """Equal for what is certainly the same image: one path, or one object."""
        if isinstance(self.image, DecodedImage):
            return id(self.image.pixels)
        is_path = isinstance(self.image, str | os.PathLike)
        return os.fspath(self.image) if is_path else id(self.image)


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImage:
    """An image for a `Request` that was decoded and resized elsewhere.

    Attributes:
        size: (width, height) of the upright image, the frame of regions and answers.
        pixels: uint8[H, W, 3], resized to the pipeline's image size, not normalized. Images that
            share one array are one image.
    """

    size: tuple[int, int]
    pixels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Query:
    """A request without its image; the fields are those of `Request`."""

    prompt: str
    text: str | Sequence[str] | None = None
    region: str | Sequence[float] | None = None
    labels: Sequence[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None, as rows of results name them."""
        row: dict[str, Any] = {"prompt": self.prompt}
        if self.text is not None:
            row["text"] = self.text
        if self.region is not None:
            row["region"] = self.region if isinstance(self.region, str) else list(self.region)
        if self.labels is not None:
            row["labels"] = list(self.labels)
        return row


@dataclass(frozen=True, kw_only=True)
class Response:
    """The answer to one request.

    Attributes:
        result: `{task: answer}`, see `florence_jax.parse`.
        ids: generated token ids, from the decoder start token to `</s>`.
        token_scores: the log-probability of each; 0 for the start token, which was given.
    """

    result: Result
    ids: list[int]
    token_scores: list[float]


def broadcast_requests(
    images: Any, prompts: Any, text: Any, region: Any, labels: Any = None
) -> tuple[list[Request], bool]:
    """The requests of one call, and whether it asked for a list.

    Each of the five is one value for all requests, or a list with one for each of them.

    Raises:
        ValueError: lists of different lengths.
    """
    several = [isinstance(values, list | tuple) for values in (images, prompts)]
    images, prompts = _as_list(images), _as_list(prompts)
    if not images or not prompts:
        return [], True
    several += [_is_several_texts(text), not _is_one_region(region), _is_several_texts(labels)]
    regions = list(region) if several[3] else [region]
    lists = list(labels) if several[4] else [labels]
    counts = [len(images), len(prompts), len(text) if several[2] else 1, len(regions), len(lists)]
    count = max(counts)
    # A list of strings is the classes of one request, or the texts of as many requests.
    is_one_each = count > 1 or (any(several) and len(text or "") == 1)
    texts = list(text) if several[2] or (is_one_each and _is_list(text)) else [text]

    def repeat(name: str, values: list[Any]) -> list[Any]:
        if len(values) not in (1, count):
            raise ValueError(
                f"{len(values)} {name} were given for {count} requests: expected 1 or {count}"
            )
        return values * count if len(values) == 1 else values

    columns = zip(
        repeat("images", images),
        repeat("prompts", prompts),
        repeat("texts", texts),
        repeat("regions", regions),
        repeat("lists of labels", lists),
        strict=True,
    )
    requests = [
        Request(image=image, prompt=prompt, text=one_text, region=one_region, labels=own_labels)
        for image, prompt, one_text, one_region, own_labels in columns
    ]
    return requests, any(several)


def grouped_by_image(requests: Sequence[Request]) -> list[int]:
    """The requests' numbers in an order in which those about one image follow each other."""
    first: dict[Hashable, int] = {}
    for number, request in enumerate(requests):
        first.setdefault(request.image_key, number)
    return sorted(range(len(requests)), key=lambda number: first[requests[number].image_key])


def _as_list(value: Any) -> list[Any]:
    return list(value) if _is_list(value) else [value]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_several_texts(text: Any) -> bool:
    return _is_list(text) and any(entry is None or _is_list(entry) for entry in text)


def _is_one_region(region: Any) -> bool:
    if region is None or isinstance(region, str):
        return True
    if not hasattr(region, "__len__"):
        raise ValueError(f"region must be (x0, y0, x1, y1) in pixels, got {region!r:.200}")
    return len(region) == 4 and all(
        np.ndim(number) == 0 and not isinstance(number, str | None) for number in region
    )
