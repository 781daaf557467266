"""A training run of an image network, as the loop sees it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from florence_jax.backbone.backbone import Backbone
from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.model import flops
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.signals import Interruption
from florence_jax.sharding import (
    all_gather_to_hosts,
    load_rules,
    make_layout,
    padded_rows,
    row_places,
)
from florence_jax.training.config_loader import SettingsError
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.distributed import is_first
from florence_jax.training.images.config import ClassifyConfig, ImageRunConfig
from florence_jax.training.images.data import ImageData, open_images
from florence_jax.training.images.evaluation import (
    ClassEvaluation,
    ImageEvaluation,
    MaskEvaluation,
)
from florence_jax.training.images.mixing import reversed_rows
from florence_jax.training.images.network import (
    ImageNetwork,
    describe_network,
    first_parameters,
    handle_of,
    read_network,
    write_network,
)
from florence_jax.training.images.objectives import ClassifyObjective, SegmentObjective
from florence_jax.training.images.rows import ImageRows
from florence_jax.training.losses import IGNORE
from florence_jax.training.prepare import TrainSetup, assemble, run_mesh, with_steps
from florence_jax.training.run import Counts, Pins, Run
from florence_jax.training.run_config import RunConfig
from florence_jax.training.state import Batch, Flat, TrainState, eval_params

_LOCK = ".export.lock"


class ImageRun(Run):
    """Classification or segmentation on a DaViT."""

    def __init__(self, setup: TrainSetup, network: ImageNetwork, data: ImageData):
        self.setup, self.network, self.data = setup, network, data
        self.rows, self.notes = len(data.train), (*network.notes, *data.notes)

    def at(self, files: Path) -> ImageRun:
        del files
        return self

    def pin(self) -> Pins:
        return self.data.pin()

    def first_parameters(self) -> Flat:
        return first_parameters(self.setup.config, self.network, self.setup.placement.layout)

    def loader(self, state: TrainState) -> DataLoader:
        del state
        return self.batches()

    def batches(self) -> DataLoader:
        """The batches of this process."""
        config: ImageRunConfig = self.setup.config
        index, count = self.setup.placement.share
        height, width = self.network.image.size
        is_class = isinstance(config, ClassifyConfig)
        rows = ImageRows(
            image=self.network.image,
            num_classes=len(self.network.classes),
            augment=config.data.augment,
            labels=1 if is_class else height * width,
            reduce_zero_label=False if is_class else config.data.reduce_zero_label,
        )
        return DataLoader(
            sources=((self.data.train.name, self.data.train, 1.0),),
            preprocessor=rows,
            batch_size=config.batch_size,
            micro=config.accumulation,
            seed=config.seed,
            host=index,
            hosts=count,
        )

    def evaluator(
        self,
        interruption: Interruption,
        *,
        say: Callable[[str], None],
        drawing: Callable[[], AbstractContextManager],
    ) -> ImageEvaluation:
        is_class = isinstance(self.setup.config, ClassifyConfig)
        kind = ClassEvaluation if is_class else MaskEvaluation
        return kind(
            self.setup, self.network, self.data.valid, interruption, say=say, drawing=drawing
        )

    def count(self, batch: Batch) -> Counts:
        shares = self.setup.placement.share[1]
        images = batch.images.shape[0] * batch.images.shape[1] * shares
        vision = self.network.backbone.vision
        # As `update_flops`: a tower that trains costs three times its forward pass.
        training = any(
            group.trains and path.startswith("vision_tower/")
            for path, group in self.setup.param_groups.items()
        )
        forward = flops.tower(vision, *self.network.image.size).flops
        heads = head_flops(self.network)
        return Counts(
            labels=int((np.asarray(batch.labels) != IGNORE).sum()) * shares,
            images=images,
            flops=images * (forward * (3.0 if training else 1.0) + 3.0 * heads),
        )

    def export(self, state: TrainState, directory: Path | None = None) -> list[Path]:
        return export_network(self.setup, self.network, state, directory)


def prepare_images(config: RunConfig, files: Path, *, resumed: bool = False) -> ImageRun:
    """Open the data, read the network's sizes and build the step; nothing is computed.

    Args:
        config: a `ClassifyConfig` or `SegmentConfig`.
        files: a directory for the network's description.
        resumed: it is there already.

    Raises:
        DataError, CheckpointError, RuleError, ValueError, OSError: exactly one problem was found.
        SettingsError: several were found; the message has a line for each.
    """
    assert isinstance(config, ImageRunConfig)
    problems: list[Exception] = []
    network = read_network(files) if resumed else None
    data = setup = None
    with _noting(problems):
        data = open_images(config, network.classes if network is not None else None)
        config = with_steps(config, len(data.train))
        if network is None:
            network = describe_network(config, data.classes)
            write_network(network, files)
    if network is not None:
        with _noting(problems):
            setup = build_images(config, network)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SettingsError("\n".join(map(str, problems)))
    assert data is not None
    assert network is not None
    assert setup is not None
    return ImageRun(setup, network, data)


def build_images(config: ImageRunConfig, network: ImageNetwork) -> TrainSetup:
    """Everything that is a function of the settings and the network's sizes.

    Raises:
        RuleError, ValueError: rules, schedules or a mesh that do not fit.
    """
    mesh = run_mesh(config)
    shapes = network.shapes
    layout = make_layout(load_rules(config.rules).without_unused(shapes), shapes, mesh)
    handle = handle_of(config, network, layout if mesh.size > 1 else None)
    pixels, remat = network.image.pixels, config.model.remat
    if isinstance(handle, Backbone):
        assert isinstance(config, ClassifyConfig)
        objective = ClassifyObjective(
            model=handle,
            image=pixels,
            label_smoothing=config.label_smoothing,
            mix=config.mix,
            partners=_partners(mesh, config.batch_size // config.accumulation),
            remat=remat,
        )
    else:
        objective = SegmentObjective(model=handle, image=pixels, remat=remat)
    return assemble(config, objective, layout, network.backbone.vision)


def _partners(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """The rows that mixup mixes with each other where a micro-batch is filled up for the mesh."""
    total, places = padded_rows(mesh, rows), row_places(mesh, rows)
    return reversed_rows(places, total) if total > rows else ()


def export_network(
    setup: TrainSetup, network: ImageNetwork, state: TrainState, directory: Path | None = None
) -> list[Path]:
    """Write the trained network, or its moving average; an older export is replaced.

    Args:
        setup: the run's step and its parts.
        network: sizes and classes.
        state: in its true shapes, on any devices.
        directory: by default RUN/export.
    """
    config = setup.config
    directory = directory or Path(config.directory) / "export"
    params = eval_params(state)
    mesh = setup.placement.mesh
    if mesh.is_multi_process:
        params = all_gather_to_hosts(mesh, params)
        if not is_first():
            return []
    dtype = jax.numpy.dtype(config.export.dtype)
    arrays = {path: np.asarray(jax.device_get(leaf)).astype(dtype) for path, leaf in params.items()}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory_lock(directory.parent, _LOCK, wait=True):
        network.save(directory, unflatten(arrays))
    return [directory]


def restored_setup(config: RunConfig, files: Path) -> tuple[TrainSetup, ImageNetwork]:
    """The step and the network of a run that has begun, on this machine's devices."""
    assert isinstance(config, ImageRunConfig)
    network = read_network(files)
    return build_images(dataclasses.replace(config, mesh=""), network), network


def head_flops(network: ImageNetwork) -> float:
    """FLOPs of one image through the convolutions of UperNet's heads; 0 for a classifier."""
    grids = network.backbone.vision.grids(*network.image.size)
    total = 0.0
    for path, shape in network.shapes.items():
        found = re.fullmatch(r"(decode|auxiliary)_head/([a-z]+)(?:/(\d+))?/conv/kernel", path)
        if found is None or found[2] == "pools":
            continue
        if found[1] == "auxiliary":
            grid = grids[-2]
        elif found[2] == "bottleneck":
            grid = grids[-1]
        else:
            grid = grids[int(found[3] or 0)]
        total += 2 * math.prod(grid) * math.prod(shape)
    return total


@contextlib.contextmanager
def _noting(problems: list[Exception]) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        problems.append(error)
