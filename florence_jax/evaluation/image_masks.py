"""Data sets of images with masks: ADE20K's layout and your own folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item, ListSource
from florence_jax.evaluation.datasets.dataset import LayoutError, find_folder
from florence_jax.processing.image.suffixes import (
    is_image_name,
    leftover,
    paths_without_suffix_twice,
)

OWN_MASKS = "mask-folders"


@dataclass(frozen=True, kw_only=True)
class MaskBenchmark:
    """A data set of images with masks.

    Attributes:
        title: display name.
        splits: the first is the default.
        folders: of the images and of the masks, with SPLIT for the split.
        files: content of the folder, for the help.
        num_classes: of the data set; None for as many as the network has.
        reduce_zero_label: as for `read_mask`.
    """

    title: str
    splits: tuple[str, ...]
    folders: tuple[str, str]
    files: str
    num_classes: int | None = None
    reduce_zero_label: bool = False


MASK_BENCHMARKS: Mapping[str, MaskBenchmark] = {
    "ade20k": MaskBenchmark(
        title="ADE20K",
        splits=("validation", "training"),
        folders=("images/SPLIT", "annotations/SPLIT"),
        files="images/validation/, annotations/validation/ (ADEChallengeData2016)",
        num_classes=150,
        reduce_zero_label=True,
    ),
    OWN_MASKS: MaskBenchmark(
        title="Images with masks",
        splits=("all",),
        folders=("images", "masks"),
        files="images/NAME.jpg with masks/NAME.png",
    ),
}
_WHERE = "An image NAME.jpg has its mask as NAME.png in the folder of masks"


@dataclass(frozen=True, kw_only=True)
class MaskPlan:
    """The images of a split with their masks.

    Attributes:
        benchmark, split: a name of `MASK_BENCHMARKS` and one of its splits.
        images, masks: the folders.
        names: of the images, relative to their folder.
        reduce_zero_label: as for `read_mask`.
        limit: number of images, from the first; None for all.
    """

    benchmark: str
    split: str
    images: Path
    masks: Path
    names: tuple[str, ...]
    reduce_zero_label: bool
    limit: int | None = None

    def source(self) -> ListSource:
        """The source for the batch runner, which refuses to go on with changed masks."""
        items, pins = [], []
        for name in self.names[: self.limit]:
            mask = Path(name).with_suffix(".png").as_posix()
            image = FileBelow(str(self.images), name, follow_links=True)
            items.append(Item(id=name, image=image, extra={"mask": mask}))
            found = (self.masks / mask).stat()
            pins.append([found.st_size, found.st_mtime_ns])
        asked = {"benchmark": self.benchmark, "split": self.split}
        zero = {"reduce_zero_label": self.reduce_zero_label}
        return ListSource(items, asked | zero | {"masks": pins})


def plan_masks(
    benchmark: str,
    data: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    reduce_zero_label: bool = False,
) -> MaskPlan:
    """Find the images of a split and their masks.

    Args:
        benchmark: a name of `MASK_BENCHMARKS`.
        data: the folder.
        split: by default the first.
        limit: number of images; None for all.
        reduce_zero_label: as for `read_mask`; always so for ADE20K.

    Raises:
        LayoutError: a folder or a mask is missing.
        ValueError: no such split.
    """
    known, root = MASK_BENCHMARKS[benchmark], Path(data).expanduser()
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit}: at least 1 example is needed")
    split = split or known.splits[0]
    if split not in known.splits:
        raise ValueError(f"{benchmark} has no split {split!r}, it has {', '.join(known.splits)}")
    images, masks = (
        find_folder(root, (folder.replace("SPLIT", split),), _WHERE) for folder in known.folders
    )
    found = (path.relative_to(images).as_posix() for path in images.rglob("*"))
    names = sorted(name for name in found if is_image_name(name) and not leftover(name))
    if not names:
        raise LayoutError(f"{images} has no images: expected {known.files}")
    twice = paths_without_suffix_twice(names)
    if twice is not None:
        raise LayoutError(f"{images} has {twice[0]} and {twice[1]}, which share a mask: rename one")
    missing = [name for name in names if not (masks / name).with_suffix(".png").is_file()]
    if missing:
        raise LayoutError(
            f"{len(missing)} of {len(names)} images in {images} have no mask in {masks}, such as "
            f"{missing[0]}: add it as a .png of the same name, or take the image out"
        )
    return MaskPlan(
        benchmark=benchmark,
        split=split,
        images=images,
        masks=masks,
        names=tuple(names),
        reduce_zero_label=reduce_zero_label or known.reduce_zero_label,
        limit=limit,
    )


def check_mask_classes(plan: MaskPlan, num_classes: int, model: str) -> None:
    """Refuse a network whose classes are not those of the data set.

    Raises:
        ValueError: their numbers differ.
    """
    expected = MASK_BENCHMARKS[plan.benchmark].num_classes
    if expected is not None and num_classes != expected:
        raise ValueError(
            f"{model} has {num_classes} classes and {plan.benchmark} has {expected}: their numbers "
            f"would mean different things. Name a model of these classes, or use {OWN_MASKS}"
        )
