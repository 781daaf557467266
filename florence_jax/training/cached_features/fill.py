"""Fill a directory of cached features with those of every image that it lacks."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from florence_jax.processing import load_image
from florence_jax.runtime.signals import Interruption
from florence_jax.sharding import pad_rows
from florence_jax.training.cached_features.store import key_of
from florence_jax.training.cached_features.writer import FeatureWriter
from florence_jax.training.data.example import Source
from florence_jax.training.data.preprocess import Preprocessor
from florence_jax.training.data.storage import readable_image


@dataclass(frozen=True, kw_only=True)
class RowImage:
    """One row's image, ready for the tower.

    Attributes:
        row: the example's id.
        key: the hash of the image's content.
        size: (width, height) as shown.
        pixels: uint8[H, W, 3]; None where its features are there already, or with a problem.
        problem: why it cannot be used, or None.
    """

    row: str
    key: bytes = b""
    size: tuple[int, int] = (0, 0)
    pixels: np.ndarray | None = None
    problem: str | None = None


def fill(
    writer: FeatureWriter,
    sources: Sequence[tuple[str, Source]],
    preprocessor: Preprocessor,
    tower: Callable[[np.ndarray], jax.Array],
    interruption: Interruption,
    *,
    batch_size: int,
    threads: int,
) -> list[tuple[str, str]]:
    """Add the features of all images to the writer.

    Args:
        sources: with their names.
        preprocessor: resizes images as the run does.
        tower: see `tower_program`; every batch that it gets has `batch_size` rows.
        threads: number of threads that read, decode and resize.

    Returns:
        (id, reason) of the rows whose image cannot be used.

    Raises:
        Interrupted: a signal asked for it; what was computed until then is in the writer.
        OSError: the features cannot be written.
    """
    problems: list[tuple[str, str]] = []
    seen: set[bytes] = set()

    def new_images(bar: Any) -> Iterator[tuple[RowImage, np.ndarray]]:
        for image in _prepared(sources, preprocessor, writer, threads):
            interruption.check()
            bar.update()
            if image.problem is not None:
                problems.append((image.row, image.problem))
            elif image.pixels is not None and image.key not in seen:
                seen.add(image.key)
                yield image, image.pixels

    def collect(images: Sequence[RowImage], maps: jax.Array | None) -> None:
        if maps is not None:
            # Rows after the images are padding of the batch.
            for image, features in zip(images, np.asarray(maps), strict=False):
                writer.add(image.key, image.size, features)

    with tqdm(total=sum(len(source) for _, source in sources), unit="row") as bar:
        images = new_images(bar)
        before: tuple[Sequence[RowImage], jax.Array | None] = ((), None)
        try:
            while batch := list(itertools.islice(images, batch_size)):
                maps = tower(pad_rows(np.stack([pixels for _, pixels in batch]), batch_size))
                # While the device computes these, those before them are hashed and written.
                done, before = before, ([image for image, _ in batch], maps)
                collect(*done)
        finally:
            collect(*before)
    return problems


def _prepared(
    sources: Sequence[tuple[str, Source]],
    preprocessor: Preprocessor,
    writer: FeatureWriter,
    threads: int,
) -> Iterator[RowImage]:
    """Every row's image, in order."""

    def prepare(name: str, source: Source, index: int) -> RowImage:
        row = f"{name}:{index}"
        try:
            example = source[index]
            row = example.id
            file = readable_image(example.image)
            key = key_of(file)
            if key in writer:
                return RowImage(row=row, key=key)
            image = load_image(file)
            return RowImage(row=row, key=key, size=image.size, pixels=preprocessor.pixels(image))
        # As in `Preprocessor`: one bad row must not end the work on all others.
        except Exception as error:
            return RowImage(row=row, problem=f"{type(error).__name__}: {error}")

    waiting: deque[Future[RowImage]] = deque()
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for name, source in sources:
            for index in range(len(source)):
                waiting.append(pool.submit(prepare, name, source, index))
                if len(waiting) > 4 * max(threads, 1):
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
