"""Build the parts of a run from its settings: loss, optimizer, step, data loader, first state."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from florence_jax.checkpoint.param_tree import param_shapes
from florence_jax.config import Florence2Config
from florence_jax.inference.declared_tasks import own_tasks
from florence_jax.model import Model
from florence_jax.sharding import MeshShape, load_rules, make_mesh, parse_mesh
from florence_jax.training.config import DataConfig, ModelConfig, TrainConfig
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.preprocess import Preprocessor, longest_texts_of, padded_length
from florence_jax.training.data.registry import Named
from florence_jax.training.distributed import longest_of_first
from florence_jax.training.lora import init_factors
from florence_jax.training.metrics.logger import say
from florence_jax.training.optimizer import build_optimizer, learning_rate_schedule
from florence_jax.training.param_groups import ParamGroup, assign_param_groups
from florence_jax.training.pretrained import PretrainedFiles
from florence_jax.training.sharding import StateSharding, make_state_sharding
from florence_jax.training.state import Flat, TrainState, new_state
from florence_jax.training.step import LossFn, Step, build_step


@dataclass(frozen=True, kw_only=True)
class TrainSetup:
    """The step of a run and everything that it is made of.

    Attributes:
        config: the run's settings.
        objective: the loss: from parameters and a batch to summed losses.
        param_groups: for every parameter, adapters included, whether and how it trains.
        optimizer: the optimizer of the trainable parameters.
        step: the update of the trainable parameters.
        placement: the shardings of the state and of batches.
    """

    config: TrainConfig
    objective: LossFn
    param_groups: Mapping[str, ParamGroup]
    optimizer: optax.GradientTransformation
    step: Step
    placement: StateSharding

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return known_steps(self.config)

    def first_state(self, params: Flat) -> TrainState:
        """The state before the first step, from the parameters of the base model."""
        lora, model = self.config.lora, self.config.model
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
        shapes = param_shapes(self.objective.model.config)
        params = {p: jax.ShapeDtypeStruct(shape, jnp.float32) for p, shape in shapes.items()}
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


def build_training(
    config: TrainConfig, pretrained: PretrainedFiles, mesh: Mesh | AbstractMesh | None = None
) -> TrainSetup:
    """Build everything that is a function of the settings alone.

    Args:
        mesh: a mesh to use in place of the one that the settings name.

    Raises:
        RuleError, ValueError: rules, adapters, schedules or a mesh that do not fit.
    """
    steps = known_steps(config)
    shapes = param_shapes(pretrained.config)
    factors = {}
    if config.lora.rank:
        key = jax.random.key(config.seed)
        factors = jax.eval_shape(lambda: init_factors(config.lora, shapes, key))
    if mesh is None:
        mesh = make_mesh(parse_mesh(config.mesh) if config.mesh else MeshShape(data=-1))
    placement = make_state_sharding(
        load_rules(config.rules),
        shapes,
        {path: factor.shape for path, factor in factors.items()},
        mesh,
        pretrained.config.text.pad_token_id,
    )
    model = Model(
        config=_with_dropout(pretrained.config, config.model),
        dtype=config.model.dtype,
        matmul_precision=config.model.matmul_precision,
        # Equal models are equal programs; with a layout, a model is equal to itself alone.
        layout=placement.layout if mesh.size > 1 else None,
    )
    objective = LossFn(
        model=model,
        image=pretrained.image,
        loss=config.loss,
        lora=config.lora,
        remat=config.model.remat,
    )
    optimizer_config = config.optimizer
    param_groups = assign_param_groups(
        # With adapters the base is frozen whatever the rules say: they are about these then.
        factors or shapes,
        optimizer_config.rules,
        pretrained.config,
        layer_decay=optimizer_config.layer_decay,
        no_decay=optimizer_config.no_decay,
    )
    schedule = learning_rate_schedule(optimizer_config, steps)
    trainable = {path: group for path, group in param_groups.items() if group.trains}
    optimizer = build_optimizer(optimizer_config, schedule, trainable)
    step = build_step(
        objective,
        optimizer,
        schedule,
        seed=config.seed,
        ema_decay=optimizer_config.ema_decay,
        one_device=mesh.size == 1,
    )
    return TrainSetup(
        config=config,
        objective=objective,
        param_groups=param_groups,
        optimizer=optimizer,
        step=step,
        placement=placement,
    )


def _with_dropout(sizes: Florence2Config, model: ModelConfig) -> Florence2Config:
    """The model's sizes with the run's dropout rates."""
    named = ("dropout", "attention_dropout", "activation_dropout")
    rates = {name: getattr(model, name) for name in named if getattr(model, name) is not None}
    vision = sizes.vision
    if model.drop_path is not None:
        vision = dataclasses.replace(vision, drop_path_rate=model.drop_path)
    return dataclasses.replace(sizes, text=dataclasses.replace(sizes.text, **rates), vision=vision)


def known_steps(config: TrainConfig) -> int:
    """The steps of a run.

    Raises:
        ValueError: the settings give epochs, whose steps only the data tell.
    """
    if config.steps is None:
        raise ValueError(
            "steps must be known: `florence_jax.training.preflight` counts them from the epochs"
        )
    return config.steps


def make_loader(
    config: TrainConfig,
    pretrained: PretrainedFiles,
    sources: Sequence[Named],
    share: tuple[int, int] = (0, 1),
) -> DataLoader:
    """The training data, or the share (index, count) that one process brings to each step.

    Several processes pad every batch to one length, which the first measures if it is not set.
    """
    index, count = share
    if count > 1:
        config = with_longest(config, pretrained, sources)
    return DataLoader(
        sources=sources,
        # A share's longest row says nothing of the others', and all must have one shape.
        preprocessor=make_preprocessor(config.data, pretrained, training=True, longest=count > 1),
        batch_size=config.batch_size,
        micro=config.accumulation,
        seed=config.seed,
        host=index,
        hosts=count,
        mix=config.data.mix,
    )


def make_preprocessor(
    config: DataConfig, pretrained: PretrainedFiles, *, training: bool, longest: bool = False
) -> Preprocessor:
    """Examples to arrays, augmented only for training.

    Args:
        longest: pad every batch to `max_prompt` and `max_labels`, and the questions of each
            picture to those of the source that asks most, instead of to the batch's own longest.
    """
    max_prompt, max_labels = longest_texts(config, pretrained)
    return Preprocessor(
        tokenizer=pretrained.tokenizer,
        image_size=pretrained.image.size,
        max_prompt=max_prompt,
        max_labels=max_labels,
        min_prompt_bucket=max_prompt if longest else config.min_prompt_bucket,
        min_labels_bucket=max_labels if longest else config.min_labels_bucket,
        min_questions=max(source.questions for source in config.train) if longest else 1,
        augmentation=config.augment if training else AugmentConfig(),
        resample=pretrained.image.resample,
        tasks=own_tasks(pretrained.files),
    )


def longest_texts(data: DataConfig, pretrained: PretrainedFiles) -> tuple[int, int]:
    """The lengths (prompt, labels) in tokens of the longest texts that a run accepts.

    What the settings leave out is the most that the model's position table has room for.
    """
    positions = pretrained.config.text.max_position_embeddings
    image_tokens = pretrained.config.num_image_tokens(*pretrained.image.size)
    return data.max_prompt or positions - image_tokens, data.max_labels or positions


def with_longest(
    config: TrainConfig, pretrained: PretrainedFiles, sources: Sequence[Named]
) -> TrainConfig:
    """The settings with the lengths of prompt and labels to which several processes pad all rows.

    The first process measures those that the settings leave out, and pads them as a batch would be.
    """
    data, most = config.data, longest_texts(config.data, pretrained)
    if None not in (data.max_prompt, data.max_labels):
        return config

    def measure() -> tuple[int, int]:
        rows = sum(len(source) for _, source, _ in sources)
        say(
            f"reading {rows:,} rows for the longest prompt and labels, to which several processes "
            "pad every batch: data.max_prompt and data.max_labels spare this"
        )
        return longest_texts_of([source for _, source, _ in sources], pretrained.tokenizer, most)

    prompt, labels = longest_of_first(measure)
    lengths = {
        "max_prompt": data.max_prompt or padded_length(prompt, data.min_prompt_bucket, most[0]),
        "max_labels": data.max_labels or padded_length(labels, data.min_labels_bucket, most[1]),
    }
    return dataclasses.replace(config, data=dataclasses.replace(data, **lengths))


def eval_params(state: TrainState) -> Flat:
    """The parameters to evaluate and export: the moving average where there is one."""
    return {**state.frozen, **(state.trainable if state.ema is None else state.ema)}


def drop_frozen(state: TrainState) -> TrainState:
    """The state without its frozen parameters, which a run directory holds only once."""
    return dataclasses.replace(state, frozen={})
