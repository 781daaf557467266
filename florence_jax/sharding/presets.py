"""The tables that come with the library, and tables from a file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from jax.sharding import PartitionSpec

from florence_jax.sharding.rules import Rule, RuleError, Rules, axes_of

# Channels of the residual stream over `fsdp`; heads, hidden channels and words over `tensor`, so
# that a pair of projections needs one sum over `tensor` behind its second. What is left whole is
# small: vectors.
_TABLE = (
    Rule("(shared|lm_head)/embedding", PartitionSpec("tensor", "fsdp"), pad=True),
    Rule(".*/(.*_)?positions", PartitionSpec(None, "fsdp")),
    Rule(".*/conv[12]?/kernel", PartitionSpec(None, None, None, "fsdp")),
    Rule(".*/(q_proj|k_proj|v_proj|qkv|fc1)/kernel", PartitionSpec("fsdp", "tensor")),
    Rule(".*/(q_proj|k_proj|v_proj|qkv|fc1)/bias", PartitionSpec("tensor")),
    Rule(".*/(out_proj|proj|fc2)/kernel", PartitionSpec("tensor", "fsdp")),
    Rule(".*/(scale|bias)|final_logits_bias", PartitionSpec()),
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


def load_rules(source: str | Path) -> Rules:
    """A preset by its name, or the table of a TOML file:

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
