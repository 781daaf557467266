"""One training step: a pure function of the state, a batch and nothing else.

Shapes: A accumulated micro-batches, B examples of one, H W pixels, P prompt tokens, L label tokens.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.model import Florence2, Model
from florence_jax.model.davit import DaViT
from florence_jax.model.handle import Handle
from florence_jax.model.layers import Sequential, fold_in
from florence_jax.processing.image.pixels import ImageConfig
from florence_jax.training.lora import adapt, is_factor
from florence_jax.training.losses import OutputLayer, TokenSums, shift_right, summed_loss
from florence_jax.training.optimizer import update_ema
from florence_jax.training.settings import LoraConfig, LossConfig, Remat
from florence_jax.training.state import Batch, Flat, TrainState

_POLICIES = {
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Metrics(NamedTuple):
    """Metrics of one step, or of several in a row: float32[] each, on the device until fetched.

    Attributes:
        loss: the minimised loss, mean over the label tokens of the global batch.
        nll: the plain negative log-likelihood, mean over the same tokens, in nats.
        accuracy: share of label tokens that were the most likely one, under teacher forcing.
        tokens: label tokens.
        examples: rows with at least one label token.
        grad_norm: global norm of the gradient before clipping; of several steps the largest.
        learning_rate: The learning rate of the last update.
    """

    loss: jax.Array
    nll: jax.Array
    accuracy: jax.Array
    tokens: jax.Array
    examples: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array


def merge_metrics(before: Metrics, step: Metrics) -> Metrics:
    """The metrics of several steps and one more.

    Means over all steps between two log lines are logged, because the batches of a mixture differ
    so much that every tenth one's loss, say, may be that of a single source.
    """
    tokens = before.tokens + step.tokens
    share = step.tokens / jnp.maximum(tokens, 1.0)

    def mean(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + (new - old) * share

    return Metrics(
        loss=mean(before.loss, step.loss),
        nll=mean(before.nll, step.nll),
        accuracy=mean(before.accuracy, step.accuracy),
        tokens=tokens,
        examples=before.examples + step.examples,
        grad_norm=jnp.maximum(before.grad_norm, step.grad_norm),
        learning_rate=step.learning_rate,
    )


class Objective(Protocol):
    """What a run minimises: the only thing that a step knows of its task."""

    @property
    def model(self) -> Handle:
        """The network, with its compute dtype."""
        ...

    @property
    def lora(self) -> LoraConfig:
        """Adapters beside the network's parameters; rank 0 for none."""
        ...

    def __call__(self, params: Flat, batch: Batch, key: jax.Array | None) -> TokenSums:
        """Summed losses of a batch without its leading axis; a `key` says that it is trained on."""
        ...

    def and_statistics(self, params: Flat, batch: Batch, key: jax.Array) -> tuple[TokenSums, Flat]:
        """The same in training, and new values of leaves that no gradient moves.

        These are the running statistics of batch norms. Those of several micro-batches are
        averaged.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LossFn:
    """Florence-2's loss function: parameters and a micro-batch to summed losses.

    Attributes:
        model: The model, with its sizes and its compute dtype.
        image: how uint8 pixels are normalised.
        loss, lora: their configs.
        remat: Activations that the backward pass recomputes.
        locations: ids of the location tokens, where the loss treats them unlike words.
    """

    model: Model
    image: ImageConfig = field(default_factory=ImageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    remat: Remat = "none"
    locations: range = range(0)

    def __call__(self, params: Flat, batch: Batch, key: jax.Array | None) -> TokenSums:
        """Summed losses of a batch without its leading axis; a `key` turns on dropout."""
        module = self.bind(params, key)
        text = self.model.config.text
        features = self.image_features(module, batch.images, fold_in(key, 0))
        prompts_per_image = batch.input_ids.shape[0] // features.shape[0]
        if prompts_per_image > 1:
            features = jnp.repeat(features, prompts_per_image, axis=0)
        inputs = shift_right(
            batch.labels, start_id=text.decoder_start_token_id, pad_id=text.pad_token_id
        )
        # One look-up has one gradient of the table, to be summed over devices once.
        prompt_length = batch.input_ids.shape[1]
        embeds = module.embed(jnp.concatenate([batch.input_ids, inputs], axis=1))
        encoder_hidden_states, mask = module.encode_embeddings(
            features,
            embeds[:, :prompt_length],
            batch.input_ids != text.pad_token_id,
            key=fold_in(key, 1),
        )
        hidden = module.decoder(
            embeds[:, prompt_length:], encoder_hidden_states, mask, key=fold_in(key, 2)
        )
        layer = OutputLayer(*module.unembedding_weights(hidden.dtype))
        return summed_loss(hidden, batch.labels, layer, self.loss, self.locations)

    def and_statistics(self, params: Flat, batch: Batch, key: jax.Array) -> tuple[TokenSums, Flat]:
        """Summed losses in training; the network has no statistics."""
        return self(params, batch, key), {}

    def bind(self, params: Flat, key: jax.Array | None = None) -> Florence2:
        """The modules with these flat parameters and adapters."""
        base = {path: leaf for path, leaf in params.items() if not is_factor(path)}
        module = self.model.bind(unflatten(base))
        rematerialise(module, self.remat)
        factors = {path: leaf for path, leaf in params.items() if is_factor(path)}
        if factors:
            adapt(module, factors, self.lora, fold_in(key, 3))
        return module

    def image_features(
        self, module: Florence2, images: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """uint8[B, H, W, 3] pixels, or the tower's float[B, h, w, C] -> float[B, M, D]."""
        if images.dtype != jnp.uint8:
            return module.projector(images[:, None])
        return module.encode_image(self.pixels(images), key=key)

    def pixels(self, images: jax.Array) -> jax.Array:
        """Normalised float32 pixels; bytes cross to the device, a quarter of the floats."""
        mean = jnp.asarray(self.image.mean, jnp.float32)
        std = jnp.asarray(self.image.std, jnp.float32)
        return (images.astype(jnp.float32) * self.image.rescale - mean) / std


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def build_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    ema_decay: float = 0.0,
    one_device: bool = True,
) -> Step:
    """The update as a pure function; jit it with its state donated.

    Args:
        one_device: nothing is divided over devices, so no branch holds a collective.

    The gradient is that of the mean over the tokens of all micro-batches and all devices: sums are
    accumulated, and divided once.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Around the gradient too: attention and depthwise convolutions compute theirs themselves.
        with objective.model.precision_scope():
            return update(state, batch)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss(
            trainable: Flat, micro: Batch, number: jax.Array
        ) -> tuple[jax.Array, tuple[TokenSums, Flat]]:
            micro_key = jax.random.fold_in(key, number)
            params = {**state.frozen, **trainable}
            sums, statistics = objective.and_statistics(params, micro, micro_key)
            kept = {path: leaf for path, leaf in statistics.items() if path in trainable}
            return sums.loss, (sums, kept)

        summed_gradient = jax.grad(loss, has_aux=True)
        gradients, (sums, statistics) = _accumulate(summed_gradient, state.trainable, batch)
        return moved_by(state, batch, gradients, sums, statistics)

    @jax.named_scope("optimizer")
    def moved_by(
        state: TrainState, batch: Batch, gradients: Flat, sums: TokenSums, statistics: Flat
    ) -> tuple[TrainState, Metrics]:
        count = jnp.maximum(sums.tokens, 1.0)
        gradients = jax.tree.map(lambda gradient: gradient / count, gradients)

        grad_norm = optax.tree.norm(gradients)
        metrics = Metrics(
            loss=sums.loss / count,
            nll=sums.nll / count,
            accuracy=sums.correct / count,
            tokens=sums.tokens,
            examples=(batch.labels != -100).any(-1).sum().astype(jnp.float32),
            grad_norm=grad_norm,
            learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
        )
        updates, _ = optimizer.update(gradients, state.opt_state, state.trainable)
        # Finite norms of the gradient and of the update keep a finite state finite: moments are
        # weighted means of gradients and of their squares, which the gradient's norm has summed,
        # and a number below the norm's limit of 2**64 takes no float32 past its largest value.
        finite = (
            jnp.isfinite(metrics.loss)
            & jnp.isfinite(grad_norm)
            & jnp.isfinite(optax.tree.norm(updates))
        )
        failed_at = jnp.where((state.failed_at < 0) & ~finite, state.step, state.failed_at)

        def moved(state: TrainState, gradients: Flat, updates: Flat) -> TrainState:
            _, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
            # Their gradients are zeros, and what an optimizer makes of these does not count.
            stepped: Any = optax.apply_updates(state.trainable, updates)
            trainable = {**stepped, **statistics}
            ema = state.ema
            if ema is not None:
                ema = update_ema(ema, trainable, ema_decay, state.step)
            return dataclasses.replace(
                state, step=state.step + 1, trainable=trainable, opt_state=opt_state, ema=ema
            )

        changing = dataclasses.replace(state, frozen={})
        keep = _branched_or_selected if one_device else _selected
        kept = keep(failed_at < 0, moved, changing, gradients, updates)
        return dataclasses.replace(kept, frozen=state.frozen, failed_at=failed_at), metrics

    return step


def _branched_or_selected(good: jax.Array, move: Callable[..., Any], state: Any, *more: Any) -> Any:
    """`move(state, *more)` where `good`, else `state`."""

    def branched(state: Any, *more: Any) -> Any:
        return jax.lax.cond(good, move, lambda state, *_: state, state, *more)

    # XLA:CPU has no fusions of several outputs: selecting reads and writes the state once more
    # than a branch does. On a GPU a branch would make the host wait for the gradient.
    selected = functools.partial(_selected, good, move)
    return jax.lax.platform_dependent(state, *more, cpu=branched, default=selected)


def _selected(good: jax.Array, move: Callable[..., Any], state: Any, *more: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), move(state, *more), state)


def build_evaluation(objective: Objective) -> Callable[[Flat, Batch], TokenSums]:
    """Summed losses of a batch [A, B, ...] without dropout."""

    def evaluate(params: Flat, batch: Batch) -> TokenSums:
        def one(micro: Batch) -> TokenSums:
            return objective(params, micro, None)

        with objective.model.precision_scope():
            return jax.tree.map(lambda sums: sums.sum(0), jax.lax.map(one, batch))

    return evaluate


def _accumulate(
    gradient: Callable[[Flat, Batch, jax.Array], tuple[Flat, tuple[TokenSums, Flat]]],
    params: Flat,
    batch: Batch,
) -> tuple[Flat, tuple[TokenSums, Flat]]:
    """Summed gradients and sums over the micro-batches, and means of their statistics."""
    count = batch.labels.shape[0]
    if count == 1:
        only = jax.tree.map(lambda leaf: leaf[0], batch)
        return gradient(params, only, jnp.zeros((), jnp.int32))

    def add(total: tuple, numbered: tuple) -> tuple[tuple, None]:
        micro, number = numbered
        return jax.tree.map(jnp.add, total, gradient(params, micro, number)), None

    first = jax.tree.map(lambda leaf: leaf[0], batch)
    shapes = jax.eval_shape(gradient, params, first, jnp.zeros((), jnp.int32))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    gradients, (sums, statistics) = jax.lax.scan(add, zero, (batch, jnp.arange(count)))[0]
    return gradients, (sums, jax.tree.map(lambda leaf: leaf / count, statistics))


def rematerialise(module: Florence2, remat: Remat) -> None:
    """Set the checkpoint policy of the blocks of a freshly bound module that is being traced."""
    _wrap_calls([module.encoder.layers, module.decoder.layers], remat)
    rematerialise_tower(module.vision_tower, remat)


def rematerialise_tower(tower: DaViT, remat: Remat) -> None:
    """The same for an image tower alone."""
    _wrap_calls([stage.blocks for stage in tower.stages], remat)


def _wrap_calls(stacks: list[Sequential], remat: Remat) -> None:
    for stack in stacks:
        stack.call_wrapper = (
            _as_it_is
            if remat == "none"
            else functools.partial(jax.checkpoint, policy=_POLICIES[remat])
        )


def _as_it_is(call: Callable[..., Any]) -> Callable[..., Any]:
    return call
