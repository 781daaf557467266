"""Resolve a run's settings against its model and data: the parts of the run, or every problem."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from florence_jax.checkpoint.param_tree import param_shapes
from florence_jax.config import DaViTConfig, Florence2Config
from florence_jax.model import Model
from florence_jax.runtime.error_text import error_text
from florence_jax.sharding import (
    MeshShape,
    ParamSharding,
    load_rules,
    make_layout,
    make_mesh,
    parse_mesh,
)
from florence_jax.training.config import ModelConfig, TrainConfig
from florence_jax.training.config_loader import SettingsError
from florence_jax.training.data.loader import DataLoader, make_loader
from florence_jax.training.data.preprocess import (
    Preprocessor,
    make_preprocessor,
    padded_to_longest,
)
from florence_jax.training.data.sources import OpenedData, open_data
from florence_jax.training.lora import init_factors, is_factor, with_factors
from florence_jax.training.optimizer import (
    ParamGroup,
    assign_param_groups,
    build_optimizer,
    learning_rate_schedule,
)
from florence_jax.training.pretrained import PretrainedFiles, prepare_pretrained, read_pretrained
from florence_jax.training.run_config import RunConfig
from florence_jax.training.state import (
    Flat,
    StateSharding,
    TrainState,
    new_state,
)
from florence_jax.training.step import LossFn, Objective, Step, build_step

Config = TypeVar("Config", bound=RunConfig)
Goal = TypeVar("Goal", bound=Objective)


@dataclass(frozen=True, kw_only=True)
class TrainSetup(Generic[Config, Goal]):
    """The step of a run and everything that it is made of.

    Attributes:
        config: the run's settings.
        objective: The loss function: parameters and a batch to summed losses.
        param_groups: for every parameter, adapters included, whether and how it trains.
        optimizer: the optimizer of the trainable parameters.
        step: the update of the trainable parameters.
        placement: the shardings of the state and of batches.
    """

    config: Config
    objective: Goal
    param_groups: Mapping[str, ParamGroup]
    optimizer: optax.GradientTransformation
    step: Step
    placement: StateSharding

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        assert self.config.steps is not None  # as `build_training` has checked
        return self.config.steps

    def first_state(self, params: Flat) -> TrainState:
        """The state before the first step, from the parameters of the base model."""
        lora, model = self.objective.lora, self.config.model
        leaves = dict(params)
        if lora.rank:
            key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
            leaves |= init_factors(lora, {path: leaf.shape for path, leaf in params.items()}, key)
        trainable = {path: leaf for path, leaf in leaves.items() if self.trains(path)}
        frozen = {
            path: jnp.asarray(leaf, model.frozen_dtype)
            for path, leaf in leaves.items()
            if not self.trains(path)
        }
        with_ema = self.config.optimizer.ema_decay > 0
        return new_state(trainable, frozen, self.optimizer, with_ema=with_ema)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state in a checkpoint; nothing is allocated."""
        params = {
            path: jax.ShapeDtypeStruct(shape, jnp.float32)
            for path, shape in self.placement.layout.shapes.items()
            if not is_factor(path)
        }
        return self.placement.true_shapes(jax.eval_shape(self.first_state, params))

    def padded_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state that `padded_step` takes and returns."""
        return self.placement.padded(self.abstract_state())

    @property
    def padded_step(self) -> Step:
        """`step` on a sharded, padded state and batch."""
        return self.placement.step(self.step)

    def trains(self, path: str) -> bool:
        return path in self.param_groups and self.param_groups[path].trains


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run whose settings, model and data fit together; nothing is written yet.

    Attributes:
        config: The settings, with the steps that the epochs come to.
        pretrained: The model that the run starts from, without weights.
        setup: The step and its parts.
        data: The opened data.
        preprocessor: Examples to arrays, as evaluations have them.
        loader: The batches of this process.
    """

    config: TrainConfig
    pretrained: PretrainedFiles
    setup: TrainSetup[TrainConfig, LossFn]
    data: OpenedData
    preprocessor: Preprocessor
    loader: DataLoader


def prepare(config: TrainConfig, files: Path, *, resumed: bool = False) -> Prepared:
    """Open the data, read the model's sizes and build the step; nothing is computed.

    Args:
        files: A directory for the tokenizer's and the processor's files.
        resumed: The files of a run that has begun are there already.

    Raises:
        DataError, CheckpointError, RuleError, ValueError, OSError: exactly one problem was found.
        SettingsError: several problems were found; the message has a line for each.
    """
    problems: list[Exception] = []
    data = pretrained = preprocessor = setup = None
    # Rules, adapters and the mesh are checked even where the data cannot be read.
    counted = config if config.steps else dataclasses.replace(config, steps=2**31 - 1, epochs=None)
    with _noting(problems):
        named = config.data
        data = open_data(named.train, named.valid, named.directory, config.seed, named.order)
        counted = with_steps(config, data.rows)
    with _noting(problems):
        pretrained = read_pretrained(files) if resumed else prepare_pretrained(config, files)
        preprocessor = make_preprocessor(config.data, pretrained)
    if pretrained is not None:
        with _noting(problems):
            setup = build_training(counted, pretrained)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SettingsError("\n".join(map(_sentence, problems)))
    assert data is not None
    assert pretrained is not None
    assert preprocessor is not None
    assert setup is not None
    loader = make_loader(counted, preprocessor, data.train, setup.placement.share)
    if counted.data.one_length and data.valid:
        longest = padded_to_longest(preprocessor, counted.data, list(data.valid.values()))
        preprocessor = dataclasses.replace(
            preprocessor,
            min_prompt_bucket=longest.min_prompt_bucket,
            min_labels_bucket=longest.min_labels_bucket,
        )
    return Prepared(
        config=counted,
        pretrained=pretrained,
        setup=setup,
        data=data,
        preprocessor=preprocessor,
        loader=loader,
    )


def with_steps(config: Config, rows: int) -> Config:
    """The settings with steps in place of epochs; the last step may begin another epoch.

    Args:
        rows: Rows of an epoch, which are those of all sources together.

    Raises:
        ValueError: they are too few for the warm-up, or more than can be counted.
    """
    if config.epochs is None:
        return config
    steps = math.ceil(config.epochs * rows / config.batch_size)
    return dataclasses.replace(config, steps=steps, epochs=None)


def _sentence(error: Exception) -> str:
    return error_text(error) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def _noting(problems: list[Exception]) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        problems.append(error)


def build_training(
    config: TrainConfig, pretrained: PretrainedFiles, mesh: Mesh | AbstractMesh | None = None
) -> TrainSetup[TrainConfig, LossFn]:
    """Build everything that is a function of the settings alone.

    Args:
        mesh: a mesh to use in place of the one that the settings name.

    Raises:
        RuleError, ValueError: rules, adapters, schedules or a mesh that do not fit; or settings
            that give epochs, whose steps only the data tell.
    """
    if config.steps is None:
        raise ValueError("steps must be known: `prepare` counts them from the epochs")
    mesh = mesh or run_mesh(config)
    layout = make_layout(load_rules(config.rules), param_shapes(pretrained.config), mesh)
    if config.lora.rank:
        layout = with_factors(layout, config.lora)
    model = Model(
        config=_with_dropout(pretrained.config, config.model),
        dtype=config.model.dtype,
        matmul_precision=config.model.matmul_precision,
        # Equal models are equal programs; with a layout, a model is equal to itself alone.
        layout=layout if mesh.size > 1 else None,
    )
    objective = LossFn(
        model=model,
        image=pretrained.image,
        loss=config.loss,
        lora=config.lora,
        remat=config.model.remat,
        # Nothing else depends on the tokenizer, and equal objectives are equal programs.
        locations=pretrained.tokenizer.location_ids if config.loss.sees_locations else range(0),
    )
    pad_id = pretrained.config.text.pad_token_id
    return assemble(config, objective, layout, pretrained.config, pad_id=pad_id)


def run_mesh(config: RunConfig) -> Mesh:
    """The mesh that the settings name; by default all devices divide the batch."""
    return make_mesh(parse_mesh(config.mesh) if config.mesh else MeshShape(data=-1))


def assemble(
    config: Config,
    objective: Goal,
    layout: ParamSharding,
    sizes: Florence2Config | DaViTConfig,
    *,
    pad_id: int = 0,
) -> TrainSetup[Config, Goal]:
    """The step of an objective, with its optimizer and parameter groups.

    Args:
        config: the settings; their steps are known.
        objective: what is minimised.
        layout: the sharding of every parameter, adapters included.
        sizes: of the network, for the layers that `optimizer.layer_decay` counts.
        pad_id: the token of prompts that are added to a batch.

    Raises:
        RuleError, ValueError: rules or schedules that do not fit.
    """
    assert config.steps is not None
    optimizer_config = config.optimizer
    param_groups = assign_param_groups(
        # With adapters the base is frozen whatever the rules say: they are about these then.
        [path for path in layout.shapes if is_factor(path) or not objective.lora.rank],
        optimizer_config.rules,
        sizes,
        layer_decay=optimizer_config.layer_decay,
        no_decay=optimizer_config.no_decay,
    )
    schedule = learning_rate_schedule(optimizer_config, config.steps)
    trainable = {path: group for path, group in param_groups.items() if group.trains}
    optimizer = build_optimizer(optimizer_config, schedule, trainable)
    step = build_step(
        objective,
        optimizer,
        schedule,
        seed=config.seed,
        ema_decay=optimizer_config.ema_decay,
        one_device=layout.mesh.size == 1,
    )
    return TrainSetup(
        config=config,
        objective=objective,
        param_groups=param_groups,
        optimizer=optimizer,
        step=step,
        placement=StateSharding(layout=layout, pad_id=pad_id),
    )


def _with_dropout(sizes: Florence2Config, model: ModelConfig) -> Florence2Config:
    """The model's sizes with the run's dropout rates."""
    named = ("dropout", "attention_dropout", "activation_dropout")
    rates = {name: getattr(model, name) for name in named if getattr(model, name) is not None}
    return dataclasses.replace(
        sizes,
        text=dataclasses.replace(sizes.text, **rates),
        vision=model.with_drop_path(sizes.vision),
    )
