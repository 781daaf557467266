"""Images changed together with their coordinates: flip, scale-jitter crop, colour."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from florence_jax.processing import TASKS, box_to_text, parse, text_to_box
from florence_jax.processing.locations import signed_area
from florence_jax.processing.targets import target_text
from florence_jax.training.checked import Checked, not_finite, within
from florence_jax.training.data.example import Example

# A mirrored image's text reads backwards, and words for its sides become wrong.
_READS = {"<OCR>", "<OCR_WITH_REGION>", "<REGION_TO_OCR>"}
_SIDES = re.compile(r"\b(left|right|clockwise|counterclockwise|west|east)\b", re.IGNORECASE)
_LOCATIONS = re.compile(r"(?:<loc_\d+>)+")

Points = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """How strongly images are changed; all off by default.

    Attributes:
        flip: probability of mirroring left and right. Never where text would be mirrored (OCR
            tasks, documents' questions) or the words name a side.
        scale_jitter: images are cropped to a window of a random share of each side, between
            1 - scale_jitter and 1. Only for labels whose coordinates are known, and only windows
            that keep every box, quad and polygon whole.
        colour: brightness, contrast and saturation change by up to this share.
    """

    flip: float = 0.0
    scale_jitter: float = 0.0
    colour: float = 0.0

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "augment.")
        for name in ("flip", "scale_jitter", "colour"):
            if name != "flip" or self.flip != 1.0:
                yield from within(f"augment.{name}", getattr(self, name), 0, 1)


def augment(
    image: Image.Image, example: Example, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Image.Image, Example]:
    """A changed image and the example whose coordinates moved with it.

    Coordinates in texts ("<loc_N>") move too. What cannot be moved exactly, because the labels are
    not in a task's grammar, keeps its geometry; colour may change all the same.
    """
    # Drawn whether used or not, so that one setting does not change another's random numbers.
    flips, dice = rng.random() < config.flip, rng.random(4)
    shades = 1.0 + config.colour * (2.0 * rng.random(3) - 1.0)
    if config.colour:
        image = _shaded(image, shades)
    if not (flips or config.scale_jitter):
        return image, example
    located = _located(example, image.size)
    if located is None:
        return image, example
    # A window might cut off what a description without coordinates speaks of.
    if config.scale_jitter and len(located.points()):
        window = _window(located, image.size, config.scale_jitter, dice)
        image, located = _crop(image, located, window)
    if flips and _may_flip(located):
        image, located = _flip(image, located)
    return image, _written(located, image.size)


def in_frame_of(size: tuple[int, int], example: Example) -> Example:
    """The example with its coordinates in the pixels of its image as opened.

    Args:
        size: (width, height) of that.

    Raises:
        ValueError: the annotation speaks of an image of another shape, such as one whose EXIF
            orientation was not applied.
    """
    if example.size is None or example.size == size:
        return example
    (width, height), (declared_width, declared_height) = size, example.size
    if abs(width * declared_height / (height * declared_width) - 1.0) > 0.02:
        raise ValueError(
            f"the annotation is of an image of {declared_width} x {declared_height} pixels, but "
            f"as shown (EXIF orientation applied) it has {width} x {height}: turn the image or "
            "mend the annotation"
        )
    scale = np.array([width / declared_width, height / declared_height])
    located = _Located(example, example.labels, None, False)
    return replace(example, labels=located.moved(lambda points: points * scale).labels, size=None)


@dataclass(frozen=True)
class _Located:
    """An example whose coordinates are float pixels: the labels', and those of its prompt."""

    example: Example
    labels: str | Mapping[str, Any]
    region: np.ndarray | None
    text_region: bool

    def moved(self, move: Points) -> "_Located":
        labels = self.labels
        if isinstance(labels, Mapping):
            labels = {
                name: _moved(value, move) if name in ("bboxes", "quad_boxes", "polygons") else value
                for name, value in labels.items()
            }
        region = self.region if self.region is None else _box(move(self.region.reshape(2, 2)))
        return replace(self, labels=labels, region=region)

    def points(self) -> np.ndarray:
        """Every coordinate, float[N, 2]."""
        found: list[np.ndarray] = []
        self.moved(lambda points: found.append(points) or points)
        return np.concatenate(found) if found else np.zeros((0, 2))


def _located(example: Example, size: tuple[int, int]) -> _Located | None:
    """The example's coordinates in pixels; None where they are not known exactly."""
    labels, region, text_region = example.labels, None, False
    task = TASKS.get(example.task)
    if _LOCATIONS.search(example.prompt):
        if task is None or task.takes != "region" or not _LOCATIONS.fullmatch(example.prompt):
            return None
        region = np.asarray(text_to_box(example.prompt, size))
    if isinstance(labels, str) and _LOCATIONS.search(labels):
        if task is None:
            return None
        if task.answer == "pure_text":
            # "car<loc_1><loc_2><loc_3><loc_4>": the region asked about, repeated.
            if region is None or not labels.endswith(example.prompt):
                return None
            labels, text_region = labels.removesuffix(example.prompt), True
            if _LOCATIONS.search(labels):
                return None
        else:
            text = labels
            labels = parse(text, example.task, size)[example.task]
            # Only labels that are their own parse can be moved and written again.
            if target_text(example.task, labels, size) != text:
                return None
    return _Located(example, labels, region, text_region)


def _written(located: _Located, size: tuple[int, int]) -> Example:
    prompt, labels = located.example.prompt, located.labels
    if located.region is not None:
        prompt = box_to_text(located.region, size)
        if located.text_region:
            labels = f"{labels}{prompt}"
    return replace(located.example, prompt=prompt, labels=labels)


def _may_flip(located: _Located) -> bool:
    example, labels = located.example, located.labels
    if example.task in _READS or example.task not in TASKS:
        return False
    words = [example.prompt]
    if isinstance(labels, str):
        words.append(labels)
    else:
        words += [label for name in labels if "labels" in name for label in labels[name]]
    return not any(_SIDES.search(text) for text in words)


def _flip(image: Image.Image, located: _Located) -> tuple[Image.Image, _Located]:
    width = image.width
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return mirrored, located.moved(lambda points: np.array([width, 0]) + points * [-1, 1])


def _window(
    located: _Located, size: tuple[int, int], jitter: float, dice: np.ndarray
) -> tuple[int, int, int, int]:
    """left, upper, right, lower of a random window that holds all coordinates."""
    points = located.points()
    edges = []
    for axis, length in enumerate(size):
        share = 1.0 - jitter * dice[axis]
        side = max(round(share * length), 1)
        low, high = points[:, axis].min(), points[:, axis].max()
        start = round(dice[2 + axis] * (length - side))
        first, last = min(start, int(np.floor(low))), max(start + side, int(np.ceil(high)))
        edges.append((max(first, 0), min(last, length)))
    (left, right), (upper, lower) = edges
    return left, upper, right, lower


def _crop(
    image: Image.Image, located: _Located, window: tuple[int, int, int, int]
) -> tuple[Image.Image, _Located]:
    corner = np.array(window[:2])
    return image.crop(window), located.moved(lambda points: points - corner)


def _moved(shapes: Any, move: Points) -> list[Any]:
    """Boxes [x0, y0, x1, y1], quads and polygons (lists of rings) with their points moved."""
    moved = []
    for shape in shapes:
        if isinstance(shape[0], list | tuple | np.ndarray):
            moved.append([move(np.reshape(ring, (-1, 2))).ravel().tolist() for ring in shape])
        else:
            points = move(np.reshape(shape, (-1, 2)))
            moved.append((_box(points) if len(points) == 2 else _clockwise(points)).tolist())
    return moved


def _box(corners: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1 in order again after a mirror."""
    return np.concatenate([corners.min(0), corners.max(0)])


def _clockwise(quad: np.ndarray) -> np.ndarray:
    """A mirrored quad read from its upper left corner again, as the words in it are."""
    if signed_area(quad) < 0:
        quad = quad[[1, 0, 3, 2]]
    return quad.ravel()


def _shaded(image: Image.Image, shades: np.ndarray) -> Image.Image:
    for enhancer, shade in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), shades, strict=True
    ):
        image = enhancer(image).enhance(float(shade))
    return image
