"""Evaluation of classifiers: images in folders of classes, ImageNet's and your own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item, ListSource, Row
from florence_jax.classification.image_folders import (
    LabelledImages,
    read_folders,
    with_real_labels,
)
from florence_jax.evaluation.datasets.dataset import LayoutError, find_file, find_folder
from florence_jax.evaluation.paper_results import published_score
from florence_jax.evaluation.report import Part, Report
from florence_jax.evaluation.scoring import Outcome
from florence_jax.processing import ImageError

OWN_FOLDERS = "image-folders"
# Classes that a row keeps; the largest k of the scores.
TOP = 5

_VALIDATION = ("val", "validation", "ILSVRC2012_img_val")
_V2 = tuple(
    f"imagenetv2-{kind}-format-val" for kind in ("matched-frequency", "top-images", "threshold0.7")
)
_WHERE = "The layout is that of timm and torchvision: val/n01440764/ILSVRC2012_val_00000293.JPEG"
_WHERE_V2 = "Unpack an archive of https://github.com/modestyachts/ImageNetV2 there"
_WHERE_REAL = "It is real.json of https://github.com/google-research/reassessed-imagenet"


@dataclass(frozen=True, kw_only=True)
class ClassBenchmark:
    """A data set of images with classes.

    Attributes:
        title: display name.
        splits: the first is the default.
        files: content of the folder.
        columns: split -> column of `paper_results.TABLES`.
    """

    title: str
    splits: tuple[str, ...]
    files: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


CLASS_BENCHMARKS: Mapping[str, ClassBenchmark] = {
    "imagenet": ClassBenchmark(
        title="ImageNet-1K",
        splits=("val", "real", "v2"),
        files="val/, real.json, imagenetv2-matched-frequency-format-val/",
        columns={"val": "ImageNet val top-1"},
    ),
    OWN_FOLDERS: ClassBenchmark(
        title="Folders of classes", splits=("all",), files="a folder of images for each class"
    ),
}


@dataclass(frozen=True, kw_only=True)
class ClassPlan:
    """The images of a split with their classes.

    Attributes:
        benchmark, split: a name of `CLASS_BENCHMARKS` and one of its splits.
        root: the folder; ids of rows are paths below it.
        images: those that have a label, and the names of all classes.
        notes: sentences for the user about what is left out.
        limit: number of images that are classified, from the first; None for all.
    """

    benchmark: str
    split: str
    root: Path
    images: LabelledImages
    notes: tuple[str, ...] = ()
    limit: int | None = None

    def source(self) -> ListSource:
        """The source for the batch runner."""
        names = (path.relative_to(self.root).as_posix() for path in self.images.paths)
        items = [
            Item(
                id=name,
                image=FileBelow(str(self.root), name, follow_links=True),
                extra={"truth": list(labels)},
            )
            for name, labels in zip(names, self.images.labels, strict=True)
        ][: self.limit]
        asked = {"benchmark": self.benchmark, "split": self.split}
        return ListSource(items, asked | {"classes": list(self.images.names)})


def plan_classes(
    benchmark: str,
    data: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    names: Sequence[str] = (),
) -> ClassPlan:
    """Find the images of a split and their classes.

    Args:
        benchmark: a name of `CLASS_BENCHMARKS`.
        data: the folder.
        split: by default the first.
        limit: number of images; None for all.
        names: of the classes that the model knows, for own folders; empty if it has none.

    Raises:
        LayoutError: a file or folder is missing, or not as expected.
        ValueError: no such split.
    """
    known, root = CLASS_BENCHMARKS[benchmark], Path(data).expanduser()
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit}: at least 1 example is needed")
    split = split or known.splits[0]
    if split not in known.splits:
        raise ValueError(f"{benchmark} has no split {split!r}, it has {', '.join(known.splits)}")
    try:
        if benchmark == OWN_FOLDERS:
            images = read_folders(root, names or None)
        elif split == "v2":
            images = read_folders(find_folder(root, _V2, _WHERE_V2))
        else:
            images = read_folders(find_folder(root, _VALIDATION, _WHERE))
        if split == "real":
            images = with_real_labels(images, find_file(root, ("real.json",), _WHERE_REAL))
    except ImageError as error:
        raise LayoutError(str(error)) from error
    kept, without = _labelled(images)
    notes = (f"{without} images have no label and are not scored",) if without else ()
    return ClassPlan(
        benchmark=benchmark, split=split, root=root, images=kept, notes=notes, limit=limit
    )


def check_classes(plan: ClassPlan, num_classes: int, model: str) -> None:
    """Refuse a classifier whose classes are not those of the folders.

    Raises:
        ValueError: their numbers differ.
    """
    folders = len(plan.images.names)
    if folders != num_classes:
        raise ValueError(
            f"{model} has {num_classes} classes and the data has {folders}: their numbers would "
            "mean different things. Name a model of these classes, or give its names in the order "
            "of training (--names), of which folders may lack some"
        )


def score_classes(plan: ClassPlan, rows: Sequence[Row], names: Sequence[str]) -> Outcome:
    """Top-1 and top-5 accuracy in percent; an image that could not be read counts as wrong.

    Args:
        plan: of which the rows are.
        rows: of `ClassifyJob` with at least `TOP` classes, or all.
        names: of all classes; with fewer than five there is no top-5.
    """
    hits = [[one["class"] in row["truth"] for one in row.get("classes", ())] for row in rows]
    first = [float(any(one[:1])) for one in hits]
    others = {}
    if len(names) >= TOP:
        others[f"top-{TOP}"] = 100 * sum(any(one[:TOP]) for one in hits) / len(hits)
    return Outcome(metric="top-1", value=100 * sum(first) / len(first), each=first, others=others)


def report_classes(
    plan: ClassPlan, rows: Sequence[Row], *, model: str, settings: Mapping[str, Any]
) -> Report:
    """The report of a finished run.

    Args:
        plan: the images.
        rows: all rows, in order.
        model: hub id, name or path; its last part finds the published score.
        settings: of the run, for the report.
    """
    names = plan.images.names
    known = CLASS_BENCHMARKS[plan.benchmark]
    column = known.columns.get(plan.split)
    readable = [_readable(row, names) for row in rows]
    part = Part(name=known.title, rows=readable, outcome=score_classes(plan, rows, names))
    return Report(
        benchmark=plan.benchmark,
        split=plan.split,
        model=model,
        settings=settings,
        parts=[part],
        examples=len(rows),
        total=len(plan.images.paths),
        failed=sum("classes" not in row for row in rows),
        figure=published_score(model, column) if column else None,
    )


def _labelled(images: LabelledImages) -> tuple[LabelledImages, int]:
    """The images that have a label, and the number of the others."""
    pairs = zip(images.paths, images.labels, strict=True)
    kept = [(path, labels) for path, labels in pairs if labels]
    if not kept:
        raise LayoutError("no image has a label: these labels are of other images")
    paths, labels = zip(*kept, strict=True)
    return LabelledImages(paths, labels, images.names), len(images.paths) - len(kept)


def _readable(row: Row, names: Sequence[str]) -> Row:
    """The row with names for its truth and, as its answer, the classes that were found."""
    truth = [names[number] for number in row["truth"]]
    found = row.get("classes")
    if found is None:
        return {**row, "truth": truth}
    lines = [f"{names[one['class']]} {one['probability']:.3f}" for one in found]
    answer = {"prompt": "classify", "result": {"classes": "\n".join(lines)}}
    return {**row, "truth": truth, "answers": [answer]}
