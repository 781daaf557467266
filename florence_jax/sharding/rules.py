"""An ordered table from regex to PartitionSpec, and what it says of every parameter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from jax.sharding import PartitionSpec

from florence_jax.sharding.mesh import AXES


class RuleError(ValueError):
    """A table that does not fit the parameters; the message lists every problem."""


@dataclass(frozen=True)
class Rule:
    """How the parameters that a pattern matches are divided.

    Attributes:
        pattern: regex, matched against whole paths ("encoder/layers/0/fc1/kernel").
        spec: for each dimension the mesh axis, or axes, that divide it; dimensions not named, and
            axes that the mesh does not have, divide nothing.
        pad: where the axes do not divide the first dimension, fill it up with zeros that no program
            sees, instead of keeping it whole: for vocabularies, which are odd.
    """

    pattern: str
    spec: PartitionSpec
    pad: bool = False

    def __post_init__(self) -> None:
        names = [axis for entry in self.spec for axis in axes_of(entry)]
        wrong = sorted(set(names) - set(AXES))
        if wrong:
            raise RuleError(
                f"rule {self.pattern!r} names {', '.join(wrong)}: axes are {', '.join(AXES)}"
            )
        if len(set(names)) < len(names):
            raise RuleError(f"rule {self.pattern!r} names an axis twice: {self.spec}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise RuleError(f"{self.pattern!r} is not a regular expression: {error}") from None


@dataclass(frozen=True)
class Rules:
    """A table under a name: the first rule that matches a path decides."""

    name: str
    table: tuple[Rule, ...]


def assign(rules: Rules, paths: Iterable[str]) -> dict[str, Rule]:
    """The rule of every parameter.

    Raises:
        RuleError: a path that no rule matches, or a rule that decides for no path.
    """
    found: dict[str, Rule] = {}
    unmatched: list[str] = []
    for path in paths:
        rule = next((rule for rule in rules.table if re.fullmatch(rule.pattern, path)), None)
        if rule is None:
            unmatched.append(path)
        else:
            found[path] = rule
    problems = []
    if unmatched:
        shown = ", ".join(unmatched[:5]) + (" ..." if len(unmatched) > 5 else "")
        problems.append(
            f"{len(unmatched)} parameters match no rule: {shown}; a last rule for '.*' with no "
            "axes would keep them whole on every device"
        )
    used = {id(rule) for rule in found.values()}
    problems += [
        f"rule {rule.pattern!r} decides for no parameter: mend its pattern, move it up, or take "
        "it out"
        for rule in rules.table
        if id(rule) not in used
    ]
    if problems:
        raise RuleError(f"rules {rules.name}: " + "; ".join(problems))
    return found


def axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes of one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
