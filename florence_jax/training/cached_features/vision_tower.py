"""Check that a run's vision tower is frozen, and compile it to compute the cached features."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.sharding import all_gather_to_hosts, batch_sharding, use_mesh
from florence_jax.training.build import TrainSetup
from florence_jax.training.cached_features.fingerprint import FeaturesError, Origin
from florence_jax.training.cached_features.store import FeatureStore
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.lora import is_factor
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
    return dataclasses.replace(
        loader, preprocessor=dataclasses.replace(loader.preprocessor, features=store)
    )
