"""The optimizer as an optax transformation: parameter groups, learning rates, moving average."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from florence_jax.config import DaViTConfig, Florence2Config
from florence_jax.training.settings import NO_DECAY, OptimizerConfig, warmup_problem

Rules = Sequence[tuple[str, float]]

# The reference computes this table and registers it as a buffer: it never trains.
CONSTANTS = r"projector/temporal_positions"


class RuleError(ValueError):
    """Rules that do not say exactly one thing of every parameter."""


@dataclass(frozen=True)
class ParamGroup:
    """How one parameter trains.

    Attributes:
        rate: its learning rate as a multiple of the schedule's; 0 freezes it.
        decayed: whether weight decay applies.
    """

    rate: float
    decayed: bool

    @property
    def trains(self) -> bool:
        return self.rate != 0.0


def assign_param_groups(
    paths: Iterable[str],
    rules: Rules,
    config: Florence2Config | DaViTConfig,
    *,
    layer_decay: float = 1.0,
    no_decay: str = NO_DECAY,
) -> dict[str, ParamGroup]:
    """The group of each path, by the first rule whose pattern matches the whole path.

    Args:
        paths: every parameter's path.
        rules: (regex, multiple of the learning rate) in order; 0 freezes.
        config: says how many layers there are: of a Florence-2, or of an image tower with heads.
        layer_decay: a parameter's rate is multiplied by this to the power of its distance, in
            layers, from the decoder's top, or from an image tower's heads.
        no_decay: regex of paths without weight decay.

    Raises:
        RuleError: a path that no rule matches, or a rule that decides for no path.
    """
    patterns = [_compiled(pattern) for pattern, _ in rules]
    used, unmatched, found = set(), [], {}
    undecayed = _compiled(no_decay)
    for path in paths:
        number = next((n for n, p in enumerate(patterns) if p.fullmatch(path)), None)
        if number is None:
            unmatched.append(path)
            continue
        used.add(number)
        rate = 0.0 if re.fullmatch(CONSTANTS, path) else float(rules[number][1])
        rate *= layer_decay ** _layers_above(path, config)
        found[path] = ParamGroup(rate=rate, decayed=not undecayed.fullmatch(path))
    problems = []
    if unmatched:
        problems.append(
            f"{len(unmatched)} parameters match no rule, the first {unmatched[0]!r}: add a last "
            'rule (".*", 1.0) to train, or (".*", 0.0) to freeze, all that is left'
        )
    problems += [
        f"rule {pattern!r} decides for no parameter: mend its pattern, move it before the rules "
        "that match the same paths, or take it out"
        for number, (pattern, _) in enumerate(rules)
        if number not in used
    ]
    if problems:
        raise RuleError("; ".join(problems))
    if not any(group.trains for group in found.values()):
        raise RuleError("the rules freeze every parameter: nothing is left to train")
    return found


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RuleError(f"{pattern!r} is not a regular expression: {error}") from None


def _layers_above(path: str, config: Florence2Config | DaViTConfig) -> int:
    if isinstance(config, Florence2Config):
        return _layers(config) - _layer_of(path, config)
    tower = re.fullmatch(r"vision_tower/stages/(\d+)/(?:blocks/(\d+)|embed)/.+", path)
    if tower is None:
        return 0
    # As timm counts: the stem is a layer, and each block, the first with its stage's convolution.
    stage, block = int(tower[1]), int(tower[2] or 0)
    is_stem = stage == 0 and tower[2] is None
    below = 0 if is_stem else sum(config.depths[:stage]) + block + 1
    return sum(config.depths) + 1 - below


def _layers(config: Florence2Config) -> int:
    """Layers from the pixels to the logits, all parts in one row."""
    text = config.text
    return sum(config.vision.depths) + 1 + text.encoder_layers + text.decoder_layers


def _layer_of(path: str, config: Florence2Config) -> int:
    """How many layers lie below a parameter, from 0 at the pixels."""
    part, *rest = path.split("/")
    depths, text = config.vision.depths, config.text
    vision = sum(depths)
    if part == "vision_tower":
        stage = int(rest[1])
        below = sum(depths[:stage])
        return below + (int(rest[3]) + 1 if rest[2] == "blocks" else 0)
    if part in ("projector", "shared"):
        return vision + 1
    if part == "encoder":
        return vision + 1 + (int(rest[1]) + 1 if rest[0] == "layers" else 0)
    if part == "decoder":
        below = vision + 1 + text.encoder_layers
        return below + (int(rest[1]) + 1 if rest[0] == "layers" else 0)
    return _layers(config)


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of update 0 to `steps` - 1.

    Raises:
        ValueError: the warm-up is longer than the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    problem = warmup_problem(config, steps)
    if problem is not None:
        raise ValueError(problem)
    rest = max(steps - warmup, 1)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final_fraction, rest)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    # The first update already moves: step 0 has one warm-up step's worth, not zero.
    rising = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rising, after], [warmup])


def build_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, param_groups: Mapping[str, ParamGroup]
) -> optax.GradientTransformation:
    """The transformation of a flat dict of gradients; it has state only for parameters that train.

    Args:
        param_groups: the group of each trainable parameter, by the gradients' keys.
    """
    decayed = {path: group.decayed for path, group in param_groups.items()}
    rates = {path: group.rate for path, group in param_groups.items()}
    # By default optax gives the moment the parameters' dtype, which is float32.
    dtype = None if config.moment_dtype == "float32" else config.moment_dtype
    decay: dict[str, Any] = {"b1": config.b1, "b2": config.b2, "mu_dtype": dtype}
    moments = {
        "adamw": lambda: optax.scale_by_adam(eps=config.eps, **decay),
        "lion": lambda: optax.scale_by_lion(**decay),
        "adafactor": _adafactor,
    }[config.name]()
    return optax.chain(
        _clip(config.clip_norm) if config.clip_norm else optax.identity(),
        moments,
        optax.add_decayed_weights(config.weight_decay, mask=decayed)
        if config.weight_decay
        else optax.identity(),
        _scale_each(rates),
        optax.scale_by_learning_rate(schedule),
    )


def _clip(limit: float) -> optax.GradientTransformation:
    # As optax.clip_by_global_norm, whose selection between the gradient and its quotient XLA
    # computes for each parameter by itself; this factor becomes part of the moments' update.
    def update(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        scale = jnp.minimum(1.0, limit / optax.tree.norm(updates))
        return jax.tree.map(lambda gradient: gradient * scale, updates)

    return optax.stateless(update)


def _adafactor() -> optax.GradientTransformation:
    # https://arxiv.org/abs/1804.04235, section 9, with the learning rate relative to the weights.
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )


def _scale_each(rates: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates: Any, params: optax.Params | None = None) -> optax.Updates:
        del params
        return {
            path: update if rates[path] == 1.0 else update * rates[path]
            for path, update in updates.items()
        }

    return optax.stateless(update)


def update_ema(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """The moving average after one more step, warmed up so that early steps are not forgotten last.

    The decay grows as (1 + step) / (10 + step) until it reaches `decay`, as in TensorFlow's
    `ExponentialMovingAverage(num_updates)`.
    """
    now = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + now) / (10.0 + now))
    return jax.tree.map(lambda old, new: old + (1.0 - decay_now) * (new - old), average, params)
