"""Check that a run's vision tower is frozen, and compile it to compute the cached features."""

import dataclasses
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from florence_jax.processing import load_image
from florence_jax.runtime.signals import Interruption
from florence_jax.sharding import all_gather_to_hosts, batch_sharding, pad_rows, use_mesh
from florence_jax.training.cached_features.store import (
    FeaturesError,
    FeatureStore,
    FeatureWriter,
    Origin,
    key_of,
)
from florence_jax.training.data.example import Source
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.preprocess import Preprocessor
from florence_jax.training.data.storage import readable_image
from florence_jax.training.lora import is_factor
from florence_jax.training.prepare import TrainSetup
from florence_jax.training.state import Flat

TOWER = "vision_tower/"


def check_constant(training: TrainSetup) -> None:
    """
    Raises:
        FeaturesError: the features of an image would change from step to step.
    """
    learning = [p for p, group in training.param_groups.items() if group.trains]
    learning = [path for path in learning if path.startswith(TOWER)]
    if learning:
        remedy = (
            "keep lora.targets out of it, for example with (?!projector/|vision_tower/) in front"
            if training.config.lora.rank
            else 'freeze all of it with ("vision_tower/.*", 0.0) as the first of optimizer.rules'
        )
        raise FeaturesError(
            f"data.cached_features needs a vision tower that stays as it is, and {len(learning)} "
            f"of its parameters train, the first {learning[0]}: {remedy}, or unset "
            "data.cached_features"
        )
    rate = training.objective.model.config.vision.drop_path_rate
    if rate:
        raise FeaturesError(
            "data.cached_features needs a vision tower without dice, and its drop-path rate is "
            f"{rate:g}: set model.drop_path=0, or unset data.cached_features"
        )


def origin_of(training: TrainSetup, tower: Mapping[str, Any]) -> Origin:
    """Everything that a run's features are a function of.

    Args:
        tower: the vision tower's parameters in their true shapes, as the run keeps them; others
            among them do not count.

    Raises:
        FeaturesError: see `check_constant`.
    """
    check_constant(training)
    mesh = training.placement.mesh
    hashed = hashlib.sha256()
    # Adapters of it, which are frozen then, add nothing: b is zero.
    for path in sorted(p for p in tower if p.startswith(TOWER) and not is_factor(p)):
        leaf = tower[path]
        if mesh.is_multi_process:
            leaf = all_gather_to_hosts(mesh, leaf)
        array = np.ascontiguousarray(jax.device_get(leaf))
        hashed.update(f"{path} {array.dtype} {list(array.shape)} ".encode())
        hashed.update(array.view(np.uint8).reshape(-1).data)
    model = training.objective.model
    return Origin(
        weights=hashed.hexdigest(),
        vision=model.config.vision,
        image=training.objective.image,
        dtype=training.config.model.dtype,
        matmul_precision=training.config.model.matmul_precision,
    )


def tower_program(training: TrainSetup, tower: Flat) -> Callable[[np.ndarray], jax.Array]:
    """uint8[B, H, W, 3] -> float[B, h, w, C], as the training step computes it.

    Args:
        tower: see `origin_of`.

    Returns:
        A function for batches that the mesh divides; it returns before the device is done.
    """
    objective, placement = training.objective, training.placement
    layout = placement.layout

    def encode(tower: Flat, images: jax.Array) -> jax.Array:
        # The model takes all of its parameters; what nothing depends on is not computed.
        rest = {
            path: jnp.zeros(layout.shape(path))
            for path in layout.shapes
            if path not in tower and not is_factor(path)
        }
        with objective.model.precision_scope():
            module = objective.bind({**rest, **tower})
            return module.vision_tower(objective.pixels(images).astype(module.dtype))

    sharding = batch_sharding(placement.mesh)
    jitted = jax.jit(encode, in_shardings=(None, sharding), out_shardings=sharding)
    padded = placement.to_padded({p: leaf for p, leaf in tower.items() if p.startswith(TOWER)})

    def call(images: np.ndarray) -> jax.Array:
        with use_mesh(placement.mesh):
            return jitted(padded, images)

    return call


def with_features(loader: DataLoader, training: TrainSetup, frozen: Flat) -> DataLoader:
    """The run's data with the cached features that its settings name, in place of pixels.

    Args:
        frozen: the run's frozen parameters in their padded shapes.

    Raises:
        FeaturesError: they are missing, or were made by another tower, from other pixels or in
            another dtype.
    """
    tower = {path: leaf for path, leaf in frozen.items() if path.startswith(TOWER)}
    origin = origin_of(training, training.placement.to_true_shape(tower))
    directory = training.config.data.cached_features
    assert directory is not None
    store = FeatureStore(directory, origin)
    preprocessor = loader.preprocessor
    assert isinstance(preprocessor, Preprocessor)
    return dataclasses.replace(
        loader, preprocessor=dataclasses.replace(preprocessor, features=store)
    )


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
