"""Sharding rules: an ordered table from regex to PartitionSpec, as a preset or from a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import PartitionSpec

from florence_jax.sharding.mesh import AXES


class RuleError(ValueError):
    """Rules that do not fit the parameters; the message lists every problem."""


def axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes of one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


@dataclass(frozen=True)
class Rule:
    """The sharding of parameters whose path matches a pattern.

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
    """A named table: the first rule that matches a path decides."""

    name: str
    table: tuple[Rule, ...]

    def without_unused(self, paths: Iterable[str]) -> Rules:
        """The rules that decide for one of `paths`, for a network that is a part of Florence-2."""
        chosen = {
            next((rule for rule in self.table if re.fullmatch(rule.pattern, path)), None)
            for path in paths
        }
        return Rules(self.name, tuple(rule for rule in self.table if rule in chosen))


# Channels of the residual stream over `fsdp`; heads, hidden channels and words over `tensor`, so
# that a pair of projections needs one sum over `tensor` behind its second. What is left whole is
# small: vectors.
_TABLE = (
    Rule("(shared|lm_head)/embedding", PartitionSpec("tensor", "fsdp"), pad=True),
    Rule(".*/(.*_)?positions", PartitionSpec(None, "fsdp")),
    Rule(".*/conv[12]?/kernel", PartitionSpec(None, None, None, "fsdp")),
    # `fc` is a backbone's classifier.
    Rule(".*/(q_proj|k_proj|v_proj|qkv|fc1?)/kernel", PartitionSpec("fsdp", "tensor")),
    Rule(".*/(q_proj|k_proj|v_proj|qkv|fc1?)/bias", PartitionSpec("tensor")),
    Rule(".*/(out_proj|proj|fc2)/kernel", PartitionSpec("tensor", "fsdp")),
    Rule(".*/(scale|bias|mean|var)|final_logits_bias", PartitionSpec()),
)


def _only(axis: str) -> tuple[Rule, ...]:
    def kept(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(entry if entry == axis else None for entry in spec))

    return tuple(Rule(rule.pattern, kept(rule.spec), rule.pad) for rule in _TABLE)


PRESETS: dict[str, Rules] = {
    "dp": Rules("dp", (Rule(".*", PartitionSpec()),)),
    "fsdp": Rules("fsdp", _only("fsdp")),
    "tp": Rules("tp", _only("tensor")),
    "fsdp_tp": Rules("fsdp_tp", _TABLE),
}


def assign(rules: Rules, paths: Iterable[str]) -> dict[str, Rule]:
    """Find the rule of every parameter.

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


def load_rules(source: str | Path) -> Rules:
    """Load a preset by its name, or the table of a TOML file:

        rules = [
          ["(shared|lm_head)/embedding", ["tensor", "fsdp"], "pad"],
          [".*/fc1/kernel", [["data", "fsdp"], ""]],
          [".*", []],
        ]

    each a regex of whole paths, an axis (several, or "" for none) for each dimension, and "pad"
    where the first dimension may be filled up. See `Rule`.

    Raises:
        RuleError: neither a preset nor a file that can be read as one.
    """
    if str(source) in PRESETS:
        return PRESETS[str(source)]
    path = Path(source)
    if path.suffix != ".toml":
        raise RuleError(
            f"rules {str(source)!r} are neither a preset ({', '.join(PRESETS)}) nor a .toml file"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RuleError(f"rules {path}: {error.strerror}") from None
    except ValueError as error:
        raise RuleError(f"rules {path} are not TOML: {error}") from None
    rows = content.get("rules")
    if not isinstance(rows, list) or not rows or content.keys() != {"rules"}:
        raise RuleError(f"rules {path}: expected one list `rules`, found {sorted(content)}")
    return Rules(str(path), tuple(_rule(path, row) for row in rows))


def _rule(path: Path, row: Any) -> Rule:
    match row:
        case [str(pattern), list(entries)]:
            pad = False
        case [str(pattern), list(entries), "pad"]:
            pad = True
        case _:
            raise RuleError(f'rules {path}: {row!r} is not [regex, [axis, ...]] or with "pad" last')
    return Rule(pattern, PartitionSpec(*(_entry(path, row, entry) for entry in entries)), pad)


def _entry(path: Path, row: Any, entry: Any) -> str | tuple[str, ...] | None:
    if entry in ("", []):
        return None
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list) and all(isinstance(axis, str) for axis in entry):
        return axes_of(tuple(entry))
    raise RuleError(f"rules {path}: {entry!r} in {row!r} is no axis and no list of axes")
