"""Read PEFT's adapter_config.json: refuse all but plain LoRA, give each module's rank and alpha."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, clip

_MERGE_IN_PEFT = "merge it in PyTorch with PEFT's merge_and_unload() and convert the merged model"

# Settings that make an adapter more than `W + scale * B @ A`, and how. Any value but an empty one
# is refused.
_BEYOND_LORA = {
    "use_dora": "DoRA also rescales every column of the weight by a learned magnitude",
    "use_qalora": "QALoRA pools the input before the update",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA changes the base weight",
    "monteclora_config": "MonteCLoRA samples its factors",
    "arrow_config": "Arrow routes each token to another adapter",
    "alora_invocation_tokens": "aLoRA acts only after certain tokens: no merged weight does that",
    "layer_replication": "it repeats layers, which gives another model",
    "target_parameters": "it adapts bare parameters, not linear layers",
    "trainable_token_indices": "it retrains rows of one token table, which separates the tables",
    "loftq_config": "LoftQ replaced the base weights by quantised ones",
}
# Initialisations that leave the base weights as they are. The others (pissa, olora, corda, ...)
# subtract the initial update from them, so the published base is not the adapter's.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# Read here, or without influence on the trained weights.
# fmt: off
_KNOWN = frozenset(
    (
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
        "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
        "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
        "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config",
        "megatron_core", "modules_to_save", "peft_type", "peft_version",
        "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
        "target_modules", "task_type", "use_rslora", "velora_config",
    )
)
# fmt: on

_MAX_PATTERN = 200
# A repeated group, or many choices, can keep a regular expression busy for ever: the patterns
# come from a file that may be anyone's.
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_MAX_CHOICES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The part of adapter_config.json that says what the tensors mean.

    Attributes:
        rank, alpha: those of modules that no pattern names.
        rank_pattern, alpha_pattern: (pattern, value) in the file's order.
        use_rslora: the scale is alpha / sqrt(r) instead of alpha / r.
        notes: settings that were not read, one sentence each.
    """

    rank: int
    alpha: float
    rank_pattern: tuple[tuple[str, int], ...]
    alpha_pattern: tuple[tuple[str, float], ...]
    use_rslora: bool
    notes: tuple[str, ...]

    def ranks_of(self, module: str) -> list[int]:
        """The ranks that `module` may have, a torch module name without PEFT's prefix.

        More than one where several patterns match it: PEFT sorts them when it saves, and which of
        them came first in training is lost. The tensors tell.
        """
        return _matching(self.rank_pattern, module) or [self.rank]

    def alphas_of(self, module: str) -> list[float]:
        """The alphas that `module` may have; the first is what PEFT takes when it loads."""
        return _matching(self.alpha_pattern, module) or [self.alpha]


def read_settings(config: Mapping[str, Any], label: str, problems: ErrorCollector) -> LoraSettings:
    """Check adapter_config.json; everything that keeps it from being merged goes into `problems`.

    Args:
        config: the file's content.
        label: its name for messages.
        problems: collects settings that are not plain LoRA or make no sense.

    Raises:
        CheckpointError: it is not a LoRA adapter at all.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{label}: peft_type is {clip(repr(kind))}, and only 'LORA' is read: {_MERGE_IN_PEFT}"
        )
    for name, reason in _BEYOND_LORA.items():
        if config.get(name):
            value = clip(repr(config[name]))
            problems.add("settings that are not plain LoRA", name, f"{value}: {reason}")
            problems.hint(_MERGE_IN_PEFT)
    init = config.get("init_lora_weights")
    if not any(init is plain or init == plain for plain in _PLAIN_INITS):
        problems.add(
            "settings that are not plain LoRA",
            "init_lora_weights",
            f"{clip(repr(init))}: it changed the base weights before training",
        )
        problems.hint(
            "let PEFT convert it to plain LoRA: save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)"
        )
    unknown = [name for name in config if name not in _KNOWN | _BEYOND_LORA.keys() and config[name]]
    notes = [f"adapter_config.json: {clip(name)} is unknown and was not read" for name in unknown]
    if config.get("fan_in_fan_out"):
        notes.append("adapter_config.json: fan_in_fan_out means nothing for linear layers")
    return LoraSettings(
        rank=_number(config, "r", 8, int, problems),
        alpha=_number(config, "lora_alpha", 8, float, problems),
        rank_pattern=_pattern(config, "rank_pattern", int, problems),
        alpha_pattern=_pattern(config, "alpha_pattern", float, problems),
        use_rslora=bool(config.get("use_rslora")),
        notes=tuple(notes),
    )


def _matching(pattern: tuple[tuple[str, Any], ...], module: str) -> list[Any]:
    # PEFT's rule: a pattern matches whole name segments from the end.
    return [value for key, value in pattern if re.match(rf"(.*\.)?({key})$", module)]


def _number(
    config: Mapping[str, Any], name: str, default: int, kind: type, problems: ErrorCollector
) -> Any:
    value = config.get(name, default)
    if _is_number(value, kind):
        return value
    problems.add("settings that make no sense", name, _expected(value, kind))
    return default


def _pattern(
    config: Mapping[str, Any], name: str, kind: type, problems: ErrorCollector
) -> tuple[tuple[str, Any], ...]:
    heading = "settings that make no sense"
    entries = config.get(name) or {}
    if not isinstance(entries, Mapping):
        problems.add(heading, name, f"is {clip(repr(entries))}, expected an object")
        return ()
    kept = []
    for key, value in entries.items():
        fault = _pattern_fault(key)
        if fault:
            problems.add(heading, f"{name}[{clip(key)!r}]", fault)
        elif not _is_number(value, kind):
            problems.add(heading, f"{name}[{clip(key)!r}]", _expected(value, kind))
        else:
            kept.append((key, value))
    return tuple(kept)


def _pattern_fault(key: str) -> str | None:
    if len(key) > _MAX_PATTERN or _REPEATED_GROUP.search(key):
        return "is too complex a pattern: name the modules one by one"
    if sum(key.count(sign) for sign in "*+?{|") > _MAX_CHOICES:
        return f"has more than {_MAX_CHOICES} of * + ? {{ |: name the modules one by one"
    try:
        re.compile(key)
    except re.error as error:
        return f"is not a regular expression: {error}"
    return None


def _is_number(value: Any, kind: type) -> bool:
    is_int = type(value) is int
    if kind is int:
        return is_int and 0 < value <= 1 << 16
    return (is_int or isinstance(value, float)) and abs(value) < 1e9


def _expected(value: Any, kind: type) -> str:
    return f"is {clip(repr(value))}, expected {'a positive integer' if kind is int else 'a number'}"
