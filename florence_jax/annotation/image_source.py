"""The images to annotate, named by their paths below one directory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import Item
from florence_jax.batch.sources.open import file_pin
from florence_jax.inference.image_files import Say, find_images


@dataclass(frozen=True)
class ImageFolder:
    """A `Source` of the files `names` below `root`.

    The directory is not part of the fingerprint: a run goes on after the images were moved.
    """

    root: Path
    names: Sequence[str]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "images"}

    def __len__(self) -> int:
        return len(self.names)

    def ids(self) -> Iterator[str]:
        return iter(self.names)

    def pins(self) -> Iterator[str]:
        """Size and modification time of each file."""
        return (file_pin(self.root / name) for name in self.names)

    def row_files(self) -> dict[str, Any]:
        """Empty: every input is an image."""
        return {}

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for name in self.names[start:stop]:
            yield Item(id=name, image=FileBelow(str(self.root), name, follow_links=True))


def find_image_folder(
    sources: Iterable[str | Path], root: Path | None = None, say: Say | None = None
) -> ImageFolder:
    """The images that `sources` name, as `florence-jax predict` reads them.

    Args:
        root: names are paths below it; by default the deepest directory that holds all images.
        say: told how many files of a directory are skipped, by kind.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source holds no image, or an image lies outside of `root`.
    """
    # The folder's own path, links kept: names stay those that a person sees.
    found = [Path(os.path.abspath(path)) for path in find_images(sources, say)]
    if root is None:
        root = Path(os.path.commonpath([path.parent for path in found]))
    root = Path(os.path.abspath(root))
    outside = [path for path in found if not path.is_relative_to(root)]
    if outside:
        raise ValueError(
            f"{outside[0]} lies outside of {root}: name a directory above all images "
            "(--image-root), or leave it out"
        )
    return ImageFolder(root, [path.relative_to(root).as_posix() for path in found])
