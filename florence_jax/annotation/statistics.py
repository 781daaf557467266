"""Statistics of a set of annotations, as in FLD-5B's tables, and the throughput of making it.

The tables are 2 and 3 of arXiv 2311.06242.

Averages are over images that have annotations of the kind, or over its regions. Three things are
not counted as there. A token is a word, a number or a punctuation mark, so that the figures of
different models compare. Objects are different phrases, and proper nouns have no column. The
complexity of a text is the largest degree of its nouns and verbs, where table 3 has the average of
objects and that of actions.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.annotation.boxes import bounds
from florence_jax.annotation.noun_phrases import Analysis, NounPhraseExtractor
from florence_jax.annotation.schema import LEVELS, Annotation, Phrase, Region, Text
from florence_jax.runtime.atomic_file import write_once

_TOKEN = re.compile(r"\w+|[^\w\s]")
_DESCRIBED = ("objects", "attributes", "actions", "complexity")
# The directory, in that of the annotations, with one file for each call of a run.
THROUGHPUT = "throughput"
_KINDS = ("texts", "regions", "ocr", "phrases")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table; None where a column does not apply to the kind.

    Attributes:
        kind: text, region-text, ocr or text-phrase-region, with the level where there are three.
        images: images that have such an annotation.
        annotations: texts, regions, lines, or pairs of a phrase and a region.
        tokens: of a text, on average.
        regions: number of regions, and `regions_per_image` on average.
        regional_tokens: of a region's label and description, a line, or a phrase, on average.
        objects, attributes, actions, complexity: of a text, on average.
    """

    kind: str
    images: int
    annotations: int
    tokens: float | None = None
    regions: int | None = None
    regions_per_image: float | None = None
    regional_tokens: float | None = None
    objects: float | None = None
    attributes: float | None = None
    actions: float | None = None
    complexity: float | None = None


@dataclass(kw_only=True)
class Distributions:
    """The values behind the plots: one for each region, phrase and line, or for each image."""

    boxes_per_image: list[int] = field(default_factory=list)
    area: list[float] = field(default_factory=list)  # of the image, 0..1
    aspect: list[float] = field(default_factory=list)  # log2 of width / height
    centre_x: list[float] = field(default_factory=list)
    centre_y: list[float] = field(default_factory=list)
    box_score: list[float] = field(default_factory=list)
    text_score: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of a set of annotations.

    Attributes:
        images: number of images.
        annotations: number of annotations of all kinds.
        rejected: how many annotations the filters took out, by "kind: reason".
        labels: how often each label of a region occurs, the most frequent first.
    """

    images: int
    annotations: int
    rows: tuple[Row, ...]
    rejected: dict[str, int]
    labels: dict[str, int]
    distributions: Distributions

    def record(self) -> dict[str, Any]:
        """The statistics as JSON, without the values behind the plots."""
        rows = [
            {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
            for row in self.rows
        ]
        return {
            "images": self.images,
            "annotations": self.annotations,
            "kinds": rows,
            "rejected": self.rejected,
            "labels": self.labels,
        }

    def table(self) -> str:
        """The statistics as text, columns aligned."""
        heads = ("kind", "images", "annotations", "tokens", "regions", "per image",
                 "regional tokens", "objects", "attributes", "actions", "complexity")  # fmt: skip
        names = [one.name for one in dataclasses.fields(Row)]
        cells = [list(heads)]
        cells += [[_cell(getattr(row, name)) for name in names] for row in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
        lines = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        lines.append(f"{self.annotations} annotations of {self.images} images")
        taken = sum(self.rejected.values())
        lines.append(f"{taken} rejected" + (":" if taken else ""))
        lines += [
            f"  {count:>8}  {reason}"
            for reason, count in sorted(self.rejected.items(), key=lambda item: -item[1])
        ]
        return "\n".join(lines)


def statistics(annotations: Iterable[Annotation], extractor: NounPhraseExtractor) -> Statistics:
    """Statistics of `annotations`, read once; `extractor` finds the objects of texts."""
    counts = {kind: _Count() for kind in _kinds()}
    rejected: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    shown = Distributions()
    images = 0
    for annotation in annotations:
        images += 1
        rejected.update(annotation.rejected)
        labels.update(region.label for region in annotation.regions if region.label)
        for level in LEVELS:
            texts = [text for text in annotation.texts if text.level == level]
            counts[f"text, {level}"].add_texts(texts, extractor)
            grounded = [
                one for one in annotation.phrases if annotation.texts[one.text].level == level
            ]
            counts[f"text-phrase-region, {level}"].add_phrases(annotation, grounded)
        counts["region-text"].add_regions([_words(region) for region in annotation.regions])
        counts["ocr"].add_regions([line.text for line in annotation.ocr])
        _show(annotation, shown)
    rows = tuple(count.row(kind) for kind, count in counts.items())
    return Statistics(
        images=images,
        annotations=sum(row.annotations for row in rows),
        rows=rows,
        rejected=dict(sorted(rejected.items())),
        labels=dict(sorted(labels.items(), key=lambda item: (-item[1], item[0]))),
        distributions=shown,
    )


def count_tokens(text: str) -> int:
    """Number of words, numbers and punctuation marks."""
    return len(_TOKEN.findall(text))


@dataclass
class _Count:
    images: int = 0
    texts: int = 0
    tokens: int = 0
    parts: int = 0
    regions: int = 0
    regional_tokens: int = 0
    analyses: list[Analysis] = field(default_factory=list)

    def add_texts(self, texts: Sequence[Text], extractor: NounPhraseExtractor) -> None:
        self.images += bool(texts)
        self.texts += len(texts)
        self.tokens += sum(count_tokens(text.text) for text in texts)
        self.analyses += [extractor(text.text) for text in texts]

    def add_phrases(self, annotation: Annotation, phrases: Sequence[Phrase]) -> None:
        numbers = {phrase.text for phrase in phrases}
        self.texts += len(numbers)
        self.tokens += sum(count_tokens(annotation.texts[number].text) for number in numbers)
        self.add_regions([phrase.phrase for phrase in phrases])

    def add_regions(self, words: Sequence[str]) -> None:
        self.images += bool(words)
        self.parts += len(words)
        self.regions += len(words)
        self.regional_tokens += sum(map(count_tokens, words))

    def row(self, kind: str) -> Row:
        columns: dict[str, Any] = {"annotations": self.parts}
        if kind.startswith("text, "):
            described = zip(
                _DESCRIBED,
                np.mean([[getattr(one, n) for n in _DESCRIBED] for one in self.analyses], axis=0)
                if self.analyses
                else [None] * len(_DESCRIBED),
                strict=True,
            )
            columns = {"annotations": self.texts} | {
                name: None if value is None else round(float(value), 2) for name, value in described
            }
        else:
            columns |= {
                "regions": self.regions,
                "regions_per_image": _mean(self.regions, self.images),
                "regional_tokens": _mean(self.regional_tokens, self.regions),
            }
        if kind.startswith("text"):
            columns["tokens"] = _mean(self.tokens, self.texts)
        return Row(kind=kind, images=self.images, **columns)


def _kinds() -> list[str]:
    texts = [f"text, {level}" for level in LEVELS]
    return [*texts, "region-text", "ocr", *(f"text-phrase-region, {level}" for level in LEVELS)]


def _show(annotation: Annotation, shown: Distributions) -> None:
    parts = [(region.box, region.score) for region in annotation.regions]
    parts += [(phrase.box, phrase.score) for phrase in annotation.phrases]
    parts += [(bounds(line.quad), line.score) for line in annotation.ocr]
    shown.boxes_per_image.append(len(parts))
    shown.text_score += [text.score for text in annotation.texts]
    width, height = annotation.size
    for (x0, y0, x1, y1), score in parts:
        shown.box_score.append(score)
        if x1 > x0 and y1 > y0:
            shown.area.append((x1 - x0) * (y1 - y0) / (width * height))
            shown.aspect.append(float(np.log2((x1 - x0) / (y1 - y0))))
            shown.centre_x.append((x0 + x1) / 2 / width)
            shown.centre_y.append((y0 + y1) / 2 / height)


def _words(region: Region) -> str:
    return " ".join(part for part in (region.label, region.description) if part)


def _mean(total: int, count: int) -> float | None:
    return round(total / count, 2) if count else None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The speed of one call of `florence-jax annotate`.

    Attributes:
        images: rows written, those with errors included.
        annotations: annotations of all kinds in them.
        tokens: generated tokens, without padding.
        seconds: from the first block to the last, compilation included.
        device_busy: share of the time, 0..1, in which the device had work, counted from the first
            answer on; None for a single batch (`florence_jax.inference.device_stats`).
        device: kind of device.
        devices: number of devices.
        ended: time of the end, UTC.
    """

    images: int
    annotations: int
    tokens: int
    seconds: float
    device_busy: float | None
    device: str
    devices: int
    ended: str = dataclasses.field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )

    def record(self) -> dict[str, Any]:
        """The throughput as JSON."""
        rates = {
            f"{name}_per_second": round(getattr(self, name) / self.seconds, 3)
            for name in ("images", "annotations", "tokens")
        }
        seconds = round(self.seconds, 3)
        busy = None if self.device_busy is None else round(self.device_busy, 4)
        return dataclasses.asdict(self) | {"seconds": seconds, "device_busy": busy} | rates

    def describe(self) -> str:
        """The throughput as one line."""
        share = self.device_busy
        busy = "" if share is None else f" had work for {share:.1%} of the time"
        return (
            f"{self.images} images in {self.seconds:.1f} s: {self.annotations} annotations "
            f"({self.annotations / self.seconds:.2f} annotations/s, "
            f"{self.images / self.seconds:.2f} images/s, {self.tokens / self.seconds:.0f} "
            f"tokens/s, compilation included); {self.devices} x {self.device}{busy}"
        )


class AnnotationCount:
    """Counts the annotations in rows; the `after_block` of a run."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def __call__(self, items: object, rows: Sequence[Mapping[str, Any]], pool: object) -> None:
        del items, pool
        count = sum(len(row.get(kind, ())) for row in rows for kind in _KINDS)
        with self._lock:
            self.total += count


def save_throughput(measured: Throughput, directory: Path) -> None:
    """Add a call's throughput to an output directory."""
    folder = directory / THROUGHPUT
    folder.mkdir(exist_ok=True)
    name = f"{measured.ended.replace(':', '')}-{secrets.token_hex(4)}.json"
    write_once(folder / name, json.dumps(measured.record(), indent=1).encode() + b"\n")


def saved_throughput(directory: Path) -> Iterator[dict[str, Any]]:
    """Every call's record, the earliest first; none if nothing was annotated."""
    for path in sorted((directory / THROUGHPUT).glob("*.json")):
        yield json.loads(path.read_bytes())
