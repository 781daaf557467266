"""Parameter groups: learning rate and weight decay by ordered rules over parameter paths.

Paths read like "encoder/layers/0/fc1/kernel". `florence-jax train --dry-run` lists them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from florence_jax.config import Florence2Config

Rules = Sequence[tuple[str, float]]

# The reference computes this table and registers it as a buffer: it never trains.
CONSTANTS = r"projector/temporal_positions"
# Norms, biases and positions are not decayed, as in the transformers trainer and most papers.
NO_DECAY = r".*/bias|.*norm[^/]*/scale|.*positions.*"


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
    config: Florence2Config,
    *,
    layer_decay: float = 1.0,
    no_decay: str = NO_DECAY,
) -> dict[str, ParamGroup]:
    """The group of each path, by the first rule whose pattern matches the whole path.

    Args:
        paths: every parameter's path.
        rules: (regex, multiple of the learning rate) in order; 0 freezes.
        config: says how many layers there are.
        layer_decay: a parameter's rate is multiplied by this to the power of its distance, in
            layers, from the decoder's top.
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
        rate *= layer_decay ** (_layers(config) - _layer_of(path, config))
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


def split(params: Mapping[str, Any], param_groups: Mapping[str, ParamGroup]) -> tuple[dict, dict]:
    """(trainable, frozen) of a flat dict of parameters."""
    trains = {path: leaf for path, leaf in params.items() if param_groups[path].trains}
    frozen = {path: leaf for path, leaf in params.items() if not param_groups[path].trains}
    return trains, frozen


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RuleError(f"{pattern!r} is not a regular expression: {error}") from None


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
