"""Training data of image networks: folders of classes, and images with masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from florence_jax.classification.image_folders import read_folders
from florence_jax.processing import ImageError
from florence_jax.processing.image.suffixes import (
    is_image_name,
    leftover,
    paths_without_suffix_twice,
)
from florence_jax.segmentation.masks import IGNORED, read_indices
from florence_jax.training.data.example import DataError, Example, Source
from florence_jax.training.images.config import ClassifyConfig, ImageRunConfig
from florence_jax.training.run import Pins

# Keys of what an example has to learn.
CLASS, MASK = "class", "mask"
# Masks that are read before a run for what they hold.
_LOOKED_AT = 16


@dataclass(frozen=True, kw_only=True)
class LabelledFiles(Source):
    """Image files, each with a class or a file of classes.

    Attributes:
        name: of the data set.
        root: the directory that the names start from.
        files: images, relative to it.
        labels: {"class": number} or {"mask": path} of each.
    """

    name: str
    root: Path
    files: tuple[str, ...]
    labels: tuple[Mapping[str, int | Path], ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        file = self.files[index]
        return Example(
            id=f"{self.name}/{file}",
            image=self.root / file,
            task="",
            prompt="",
            labels=self.labels[index],
        )


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """The opened data of a run.

    Attributes:
        train: the training images.
        valid: the validation images; None where there are none.
        classes: names of the classes.
        notes: sentences on the data for the user.
    """

    train: LabelledFiles
    valid: LabelledFiles | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def pin(self) -> Pins:
        """The rows, and a digest of the names of the training images: a name holds its class."""
        names = "\n".join(self.train.files).encode()
        digest = hashlib.sha256(names).hexdigest()
        return {
            "rows": {self.train.name: len(self.train)},
            "files": {f"the list of files in {self.train.root}": digest},
        }


def open_images(config: ImageRunConfig, classes: Sequence[str] | None = None) -> ImageData:
    """Open the data that a run names.

    Args:
        config: the run's settings.
        classes: the classes of a run that has begun.

    Raises:
        DataError: folders, images or masks are missing; names what, and the remedy.
    """
    root = Path(config.data.directory).expanduser()
    if not (root / "train").is_dir():
        raise DataError(
            f"data.directory={config.data.directory}: there is no folder {root / 'train'}; "
            "expected the folders train and valid"
        )
    has_valid = (root / "valid").is_dir()
    if isinstance(config, ClassifyConfig):
        train, names = _folders(root, "train", classes)
        return ImageData(
            train=train,
            valid=_folders(root, "valid", names)[0] if has_valid else None,
            classes=names,
        )
    train = _masks(root, "train")
    return ImageData(
        train=train,
        valid=_masks(root, "valid") if has_valid else None,
        classes=config.data.names,
        notes=_black_and_white(train),
    )


def _black_and_white(train: LabelledFiles) -> tuple[str, ...]:
    """A sentence where the first masks seem to mark a shape by 255, which does not count."""
    values: set[int] = set()
    for labels in train.labels[:_LOOKED_AT]:
        try:
            values |= set(np.unique(read_indices(str(labels[MASK]))).tolist())
        except ImageError:
            return ()  # the run says so of each such row
    if values != {0, IGNORED}:
        return ()
    return (
        f"the first masks of {train.root.parent / 'masks'} have no values but 0 and {IGNORED}, and "
        f"pixels of {IGNORED} do not count: for two classes, write 0 and 1",
    )


def _folders(
    root: Path, split: str, classes: Sequence[str] | None
) -> tuple[LabelledFiles, tuple[str, ...]]:
    try:
        found = read_folders(root / split, classes)
    except ImageError as error:
        raise DataError(str(error)) from error
    if len(found.names) < 2:
        names = ", ".join(found.names)
        raise DataError(f"{root / split} has one class, {names}: expected two or more")
    filled = {right[0] for right in found.labels}
    # A run's classes are known where it goes on, and for the validation images.
    missing = range(len(found.names)) if classes is None else ()
    empty = [found.names[number] for number in missing if number not in filled]
    if empty:
        raise DataError(
            f"{root / split} has classes without an image: {', '.join(empty[:5])}"
            f"{' ...' if len(empty) > 5 else ''}; add images or take the folder out (folders that "
            "are called 0, 1, 2 and so on are numbered by their names)"
        )
    base = root / split
    files = tuple(path.relative_to(base).as_posix() for path in found.paths)
    labels = tuple({CLASS: right[0]} for right in found.labels)
    return LabelledFiles(name=split, root=base, files=files, labels=labels), found.names


def _masks(root: Path, split: str) -> LabelledFiles:
    """Images in SPLIT/images, each with the mask of its name in SPLIT/masks."""
    images, masks = root / split / "images", root / split / "masks"
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(
                f"there is no folder {folder}: expected images in {split}/images, and the mask of "
                "images/NAME.jpg as masks/NAME.png"
            )
    files = sorted(
        name
        for path in images.rglob("*")
        if is_image_name(path.name) and not leftover(name := path.relative_to(images).as_posix())
    )
    if not files:
        raise DataError(f"{images} has no images")
    twice = paths_without_suffix_twice(files)
    if twice is not None:
        raise DataError(f"{images} has {twice[0]} and {twice[1]}, which share a mask: rename one")
    paths = [(masks / name).with_suffix(".png") for name in files]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} images in {images} have no mask, the first "
            f"{missing[0]}: add it, or take the image out"
        )
    labels = tuple({MASK: path} for path in paths)
    return LabelledFiles(name=split, root=images, files=tuple(files), labels=labels)
