"""Figures and faults of one split of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from florence_jax.datasets.faults import Fault
from florence_jax.training.data.example import Source

# Faults that are mended or harmless: they do not make a data set wrong.
MENDED = frozenset({"cut", "same image", "unlisted class"})

# What a line of the report calls each kind of fault.
KINDS = {
    "refused": "data sets that the trainer refuses",
    "row": "rows that cannot be read",
    "image": "images that cannot be read",
    "text": "rows whose texts cannot be learnt",
    "too long": "rows longer than the model takes, which the trainer puts aside",
    "outside": "boxes outside of their images, left out",
    "empty": "boxes without area, left out",
    "shape": "shapes without a box, left out",
    "cut": "boxes that leave their images, cut at the edges",
    "repeated": "boxes that are there twice",
    "unread": "labels in which their task finds no place",
    "class": "classes that differ between the splits",
    "leak": "images that are in two splits",
    "same image": "images that are there twice",
    "unlisted class": "classes without an object",
}


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of texts in tokens, `<s>` and `</s>` included.

    Attributes:
        tokens: int[N], one for each row.
        limit: the most that the model takes.
    """

    tokens: np.ndarray
    limit: int

    @property
    def over(self) -> int:
        """Rows that are longer than `limit`."""
        return int((self.tokens > self.limit).sum())

    def as_json(self) -> dict[str, Any]:
        if not len(self.tokens):
            return {"rows": 0, "limit": self.limit, "over": 0}
        median, high = np.percentile(self.tokens, (50, 95), method="higher").tolist()
        return {
            "rows": len(self.tokens),
            "mean": round(float(self.tokens.mean()), 2),
            "median": median,
            "p95": high,
            "max": int(self.tokens.max()),
            "limit": self.limit,
            "over": self.over,
        }


@dataclass(kw_only=True)
class Split:
    """What one split would teach.

    Attributes:
        name: train, valid, test, or as the data set calls it.
        layout: of the files, as settings name it.
        path: of the file or folder.
        group: splits of one group are compared with each other.
        sources: its data sets, by task where the layout has several.
        rows: number of rows.
        tasks: rows by task; "" for prompts that begin with none.
        classes: objects by label, of tasks that name places.
        listed: names of classes that the data set lists.
        boxes: objects of a row, for each row of a task that names places.
        images: (width, height) of each image that can be read, by its key.
        digests: SHA-256 of each image's bytes, by its key.
        prompts, labels: lengths of the texts; None where no tokenizer was there.
        faults: what is wrong.
        notes: what was joined, cut or left out, and what is odd.
    """

    name: str
    layout: str
    path: str
    group: str
    sources: Sequence[Source]
    rows: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    listed: Sequence[str] = ()
    boxes: list[int] = field(default_factory=list)
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    prompts: Lengths | None = None
    labels: Lengths | None = None
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def objects(self) -> int:
        return self.classes.total()

    @property
    def wrong(self) -> list[Fault]:
        """The faults that are not mended."""
        return [fault for fault in self.faults if fault.kind not in MENDED]

    def fault(self, kind: str, where: str, text: str) -> None:
        self.faults.append(Fault(kind=kind, where=where, text=text))

    def as_json(self) -> dict[str, Any]:
        sizes = Counter(self.images.values())
        lengths = {"prompt_tokens": self.prompts, "label_tokens": self.labels}
        return {
            "split": self.name,
            "layout": self.layout,
            "path": self.path,
            "rows": self.rows,
            "tasks": dict(self.tasks),
            "images": len(self.images),
            "image_sizes": [
                {"width": width, "height": height, "images": count}
                for (width, height), count in sizes.most_common()
            ],
            "objects": self.objects,
            "objects_per_row": _spread(self.boxes),
            "classes": dict(self.classes.most_common()),
            "listed_classes": list(self.listed),
            **{name: one and one.as_json() for name, one in lengths.items()},
            "faults": [
                {"kind": one.kind, "where": one.where, "text": one.text} for one in self.faults
            ],
            "notes": self.notes,
        }


def _spread(counts: Sequence[int]) -> Mapping[str, float] | None:
    if not counts:
        return None
    return {
        "min": min(counts),
        "mean": round(float(np.mean(counts)), 2),
        "max": max(counts),
    }
