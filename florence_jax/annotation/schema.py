"""The annotation of one image, and its row in JSON Lines (schema version 1).

    {"schema": 1, "id": "a/001.jpg", "image": "a/001.jpg", "width": 640, "height": 480,
     "texts": [{"level": "brief", "text": "A dog on grass.", "score": 0.81}],
     "regions": [{"box": [12.5, 40.0, 200.3, 390.1], "score": 0.66, "label": "dog",
                  "label_score": 0.93, "description": "a brown dog", "description_score": 0.7}],
     "ocr": [{"quad": [1.0, 2.0, 9.0, 2.0, 9.0, 5.0, 1.0, 5.0], "text": "STOP", "score": 0.9}],
     "phrases": [{"text": 0, "start": 0, "end": 5, "phrase": "A dog", "score": 0.7,
                  "box": [12.5, 40.0, 200.3, 390.1], "polygons": [[12.5, 41.0, 30.0, 55.1, ...]]}],
     "rejected": {"regions: score": 3}, "lost": {"regions": 1}}

Coordinates are pixels of the upright image (EXIF orientation applied), x and y alternating, to a
thousandth; scores are in 0..1. `image` is a path below the directory of the images. A phrase is
`texts[text].text[start:end]`, up to the case of letters; with its box (and polygons, where they
were asked for) it is one of the text-phrase-region triplets of Florence-2's data engine
(arXiv 2311.06242, section 4). `label`, `description`, their scores, `polygons` and
`lost` may be absent. A row with an `error` is of an image that could not be read, and has no
annotation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from florence_jax.runtime.jsonl import write_jsonl
from florence_jax.runtime.text_file import TextFileError, parse_json

SCHEMA = 1
Level = Literal["brief", "detailed", "more_detailed"]
LEVELS: tuple[Level, ...] = get_args(Level)

# Pixels from an image's corner; areas of larger boxes would overflow.
_FARTHEST = 1e7

# In a directory: the blocks of a run, or the one file that a merge wrote.
FILE = "annotations.jsonl"
_BLOCKS = "block-*.jsonl"

Coordinates = tuple[float, ...]
Part = TypeVar("Part", "Text", "Region", "OCRLine", "Phrase")
Kind = TypeVar("Kind")


class AnnotationError(ValueError):
    """Annotations that cannot be read; the message names the file and the row."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A caption.

    Attributes:
        level: how much it tells: brief, detailed or more_detailed.
        score: exp of the mean log-probability of its tokens.
    """

    level: Level
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Region:
    """A box with its label and description.

    Attributes:
        box: (x0, y0, x1, y1).
        score: of the box: exp of the mean log-probability of its location tokens.
        label, label_score: the category and the confidence of its tokens.
        description, description_score: a phrase about the region, likewise.
        polygons: its outline; empty where it was not asked for.
    """

    box: Coordinates
    score: float
    label: str | None = None
    label_score: float | None = None
    description: str | None = None
    description_score: float | None = None
    polygons: tuple[Coordinates, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OCRLine:
    """A line of written text: its four corners, what it says, and the corners' confidence."""

    quad: Coordinates
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A noun phrase of a text, with one of the regions that it speaks of.

    Attributes:
        text: number of the text in `Annotation.texts`.
        start, end: where the phrase stands in it.
        phrase: the words.
        box, score, polygons: as of a region.
    """

    text: int
    start: int
    end: int
    phrase: str
    box: Coordinates
    score: float
    polygons: tuple[Coordinates, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The annotation of one image.

    Attributes:
        id: name of the image among the others.
        image: its path below the directory of the images.
        width, height: of the upright image, in pixels.
        rejected: how many annotations the filters took out, by "kind: reason".
        lost: how many "regions" and "ocr" had certain boxes but were taken out for their words, and
            are covered by nothing that was kept: the annotation is then not complete.
    """

    id: str
    image: str
    width: int
    height: int
    texts: tuple[Text, ...] = ()
    regions: tuple[Region, ...] = ()
    ocr: tuple[OCRLine, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def to_row(annotation: Annotation) -> dict[str, Any]:
    """The annotation as a JSON row, coordinates and scores rounded."""
    return {
        "schema": SCHEMA,
        "id": annotation.id,
        "image": annotation.image,
        "width": annotation.width,
        "height": annotation.height,
        "texts": [_record(text) for text in annotation.texts],
        "regions": [_record(region) for region in annotation.regions],
        "ocr": [_record(line) for line in annotation.ocr],
        "phrases": [_record(phrase) for phrase in annotation.phrases],
        "rejected": dict(sorted(annotation.rejected.items())),
        **({"lost": dict(sorted(annotation.lost.items()))} if annotation.lost else {}),
    }


def from_row(row: Mapping[str, Any], where: str = "a row") -> Annotation:
    """The annotation that `to_row` wrote.

    Raises:
        AnnotationError: another schema, or a field that is missing or wrong; `where` names the row.
    """
    if "schema" not in row:
        raise AnnotationError(
            f"{where} is no row of florence-jax annotate: it has "
            f"{', '.join(list(row)[:8]) or 'nothing':.200} and no `schema`"
        )
    if row["schema"] != SCHEMA or isinstance(row["schema"], bool):
        raise AnnotationError(
            f"{where} has the schema {row['schema']!r:.80}, this release reads {SCHEMA}: "
            "annotate anew, or use the release that wrote it"
        )
    try:
        texts = tuple(_part(Text, text) for text in _listed(row, "texts"))
        name = _is(row.get("id"), str, "id")
        found = Annotation(
            id=name,
            image=_is(row.get("image", name), str, "image"),
            width=_side(row, "width"),
            height=_side(row, "height"),
            texts=texts,
            regions=tuple(_part(Region, one, box=4) for one in _listed(row, "regions")),
            ocr=tuple(_part(OCRLine, one, quad=8) for one in _listed(row, "ocr")),
            phrases=tuple(_part(Phrase, one, box=4) for one in _listed(row, "phrases")),
            rejected=_counts(row, "rejected"),
            lost=_counts(row, "lost"),
        )
    except ValueError as error:
        raise AnnotationError(f"{where} is not an annotation: {error}") from None
    for text in texts:
        if text.level not in LEVELS:
            raise AnnotationError(f"{where}: the level {text.level!r} is none of {LEVELS}")
    for phrase in found.phrases:
        if not 0 <= phrase.text < len(texts):
            raise AnnotationError(f"{where}: {phrase.phrase!r} belongs to no text ({phrase.text})")
    return found


def read_annotations(path: str | Path) -> Iterator[Annotation]:
    """The annotations of a file or of a directory that `annotate` wrote; rows of errors left out.

    Raises:
        AnnotationError: there is none, or a row is not one.
    """
    for file in annotation_files(path):
        with file.open("rb") as lines:
            for number, line in enumerate(lines):
                where = f"{file.name}:{number}"
                row = parse_line(line, where)
                if "error" not in row:
                    yield from_row(row, where)


def parse_line(line: bytes | str, where: str) -> dict[str, Any]:
    """A line as its JSON object.

    Raises:
        AnnotationError: it is not one.
    """
    try:
        row = parse_json(line, where)
    except TextFileError as error:
        raise AnnotationError(str(error)) from None
    if not isinstance(row, dict):
        raise AnnotationError(f"{where} is not a JSON object")
    return row


def annotation_files(path: str | Path) -> list[Path]:
    """The JSON-lines files of `path`, in order.

    Raises:
        AnnotationError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    files = [path / FILE] if (path / FILE).is_file() else sorted(path.glob(_BLOCKS))
    if not files:
        raise AnnotationError(
            f"{path} holds no annotations: expected a .jsonl file, or a directory with "
            f"{_BLOCKS} or {FILE} that florence-jax annotate wrote"
        )
    return files


def write_annotations(annotations: Iterable[Annotation], path: Path) -> int:
    """Write a JSON Lines file atomically; returns how many annotations."""
    return write_jsonl(path, map(to_row, annotations))


def _record(part: Text | Region | OCRLine | Phrase) -> dict[str, Any]:
    """The part's fields as JSON, without absent ones."""
    record: dict[str, Any] = {}
    for name, value in vars(part).items():
        if value is None or (name == "polygons" and not value):
            continue
        if name in ("box", "quad"):
            record[name] = [round(number, 3) for number in value]
        elif name == "polygons":
            record[name] = [[round(number, 3) for number in polygon] for polygon in value]
        else:
            record[name] = round(value, 4) if isinstance(value, float) else value
    return record


# Which fields hold text, and which of a phrase hold numbers of the text.
_TEXT_FIELDS = frozenset({"level", "text", "label", "description", "phrase"})
_NUMBERS_OF_TEXTS = frozenset({"text", "start", "end"})


def _part(kind: type[Part], record: Any, **shape: int) -> Part:
    """One part from its JSON object.

    Args:
        kind: what it is.
        record: its fields.
        shape: name of its coordinates, and how many they are.

    Raises:
        ValueError: a field is unknown, missing or of another type.
    """
    what = kind.__name__.lower()
    _is(record, dict, f"a {what}")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    unknown = [name for name in record if name not in fields]
    if unknown:
        raise ValueError(f"a {what} has the unknown field {unknown[0]!r:.80}")
    values: dict[str, Any] = {}
    for name, declared in fields.items():
        value = record.get(name)
        if value is None:
            if declared.default is MISSING:
                raise ValueError(f"a {what} lacks {name!r}: {record!r:.80}")
        elif name in shape:
            values[name] = _numbers(value, name, shape[name])
        elif name == "polygons":
            values[name] = tuple(_numbers(one, name) for one in _is(value, list, name))
        elif issubclass(kind, Phrase) and name in _NUMBERS_OF_TEXTS:
            values[name] = _is(value, int, name)
        elif name in _TEXT_FIELDS:
            values[name] = _is(value, str, name)
        else:
            (values[name],) = _numbers([value], name, 1)
    return kind(**values)


def _is(value: Any, kind: type[Kind], name: str) -> Kind:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.80}, expected {_JSON_NAMES[kind]}")
    return value


_JSON_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def _listed(row: Mapping[str, Any], name: str) -> list[Any]:
    return _is(row.get(name), list, name)


def _side(row: Mapping[str, Any], name: str) -> int:
    side = _is(row.get(name), int, name)
    if not 0 < side < 10**6:
        raise ValueError(f"{name} is {side!r:.80}, expected pixels")
    return side


def _counts(row: Mapping[str, Any], name: str) -> dict[str, int]:
    counts = _is(row.get(name, {}), dict, name)
    return {key: _is(count, int, f"{name} {key!r}") for key, count in counts.items()}


def _numbers(values: Any, name: str, count: int | None = None) -> Coordinates:
    """Finite numbers; of a polygon, x and y of at least one point."""
    numbers = _is(values, list, name)
    if count is None and (len(numbers) < 2 or len(numbers) % 2):
        raise ValueError(f"{name} has {len(numbers)} numbers, expected pairs")
    if count is not None and len(numbers) != count:
        raise ValueError(f"{name} has {len(numbers)} numbers, expected {count}")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name} holds {number!r:.80}, expected a number")
    try:
        found = tuple(float(number) for number in numbers)
    except OverflowError:
        raise ValueError(f"{name} holds a number beyond any float") from None
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name} {numbers!r:.80} are not finite numbers")
    if max(map(abs, found)) > _FARTHEST:
        raise ValueError(f"{name} {numbers!r:.80} lies beyond any image")
    return found
