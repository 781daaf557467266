"""Describe a checkpoint or adapter without loading it: `python -m convert.inspect SRC`."""

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florence_jax.adapters import Adapter, read_adapter
from florence_jax.checkpoint import CheckpointError, plan_checkpoint, read_config, resolve
from florence_jax.checkpoint.errors import sample
from florence_jax.checkpoint.hub import METADATA_FILES, has_weights
from florence_jax.checkpoint.repository import (
    ADAPTER_CONFIG,
    MANIFEST,
    WEIGHT_FILES,
    is_adapter,
    is_saved,
    read_json_object,
)
from florence_jax.config import PRESETS, Florence2Config
from florence_jax.generation import GenerationConfig
from florence_jax.processing.vocabulary import FLORENCE_TOKENS, SPECIAL_TOKENS
from florence_jax.runtime.program import run_program
from florence_jax.runtime.program_parser import ProgramParser

_HELP = """\
Only headers are read, and the token tables where they must be compared: a checkpoint of any size
takes about a second. A hub id is downloaded to Hugging Face's cache first.

examples:
  python -m convert.inspect microsoft/Florence-2-base-ft
  python -m convert.inspect ./my-fine-tune
  python -m convert.inspect ./my-lora  (a PEFT adapter)
  python -m convert.inspect ./my-fine-tune --json | jq .decoding.num_beams

exit status: 0, or 1 where it was described but cannot be loaded, or 2 where it is no Florence-2.
"""
# The sizes that tell the published models apart. Positions and vocabulary are shown beside.
_FREE = ("vocab_size", "max_position_embeddings")
_LONG_CONTEXT = 4096
# BART's own and the native placeholder, beside those that Florence-2 adds.
_KNOWN_TOKENS = frozenset((*SPECIAL_TOKENS, *FLORENCE_TOKENS, "<mask>", "<image>"))

Description = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe one source on standard output; see `--help` for the exit status."""
    return run_program("convert.inspect", functools.partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = ProgramParser(
        prog="python -m convert.inspect",
        description="Say what a Florence-2 checkpoint or LoRA adapter is, without loading it.",
        epilog=_HELP,
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="directory of a checkpoint or PEFT adapter, or hub id",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    found = inspect(options.source, options.revision)
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 1 if found["problems"] else 0


def inspect(source: str | Path, revision: str | None = None) -> Description:
    """Describe `source` as a JSON object.

    Args:
        source: directory of a checkpoint (PyTorch or ours) or of a PEFT adapter, or hub id.
        revision: branch, tag or commit of a hub id.

    Returns:
        The description. `kind` is "checkpoint" or "adapter"; `problems` lists what keeps it from
        being loaded or merged, and `quirks` what is odd but harmless. A value that a problem hides
        is None.

    Raises:
        CheckpointError: it is neither a Florence-2 checkpoint nor a LoRA adapter.
        ConfigError: its config.json is not that of a supported Florence-2.
    """
    directory = resolve(source, revision)
    is_lora = is_adapter(directory) and not has_weights(directory)
    return _describe_adapter(directory) if is_lora else _describe_checkpoint(directory)


def _describe_checkpoint(directory: Path) -> Description:
    repository = read_config(directory)
    config = Florence2Config.from_hf(repository.config)
    problems: list[str] = []
    quirks = [*repository.warnings, *_token_quirks(directory), *_file_quirks(directory)]
    report = None
    try:
        plan = plan_checkpoint(directory)
    except CheckpointError as error:
        problems.append(str(error))
    else:
        report, config = plan.report, plan.config
        quirks = [*report.warnings, *(quirk for quirk in quirks if quirk not in report.warnings)]
    try:
        decoding = _decoding(repository.config, repository.generation)
    except ValueError as error:
        problems.append(f"decoding settings: {error}")
        decoding = {}
    weights = {} if report is None else _sizes(directory, report.files)
    return {
        "kind": "checkpoint",
        "source": str(directory),
        "variant": _variant(config),
        "format": _format(directory),
        "naming": None if report is None else report.naming,
        "parameters": None if report is None else report.parameters,
        "bytes": None if report is None else sum(weights.values()),
        "dtypes": None if report is None else dict(report.stored_dtypes),
        "tied": None if report is None else config.tie_word_embeddings,
        "tied_names": None if report is None else list(report.tied),
        "untied": None if report is None else list(report.untied),
        "output_bias": None if report is None else config.final_logits_bias,
        "context_length": config.text.max_position_embeddings,
        "vocab_size": config.text.vocab_size,
        "decoding": decoding,
        "quirks": quirks,
        "ignored": {} if report is None else dict(report.ignored),
        "problems": problems,
        "files": {**weights, **_sizes(directory, (*METADATA_FILES, MANIFEST))},
    }


def _variant(config: Florence2Config) -> str:
    for name, make in PRESETS.items():
        if _shape(config) == _shape(make()):
            is_long = config.text.max_position_embeddings == _LONG_CONTEXT
            return f"{name.removesuffix('-4k')}-4k" if is_long else name.removesuffix("-4k")
    return "custom"


def _shape(config: Florence2Config) -> dict[str, Any]:
    """The sizes of layers, without rates, ids, vocabulary and context length."""
    sections = {"vision": vars(config.vision), "text": vars(config.text)}
    return {
        f"{section}.{name}": value
        for section, fields in sections.items()
        for name, value in fields.items()
        if name not in _FREE and not name.endswith(("_id", "_rate", "dropout"))
    }


def _format(directory: Path) -> str | None:
    if is_saved(directory):
        return "florence_jax"
    first = next((name for name in WEIGHT_FILES if (directory / name).exists()), None)
    return None if first is None else "safetensors" if "safetensors" in first else "bin"


def _sizes(directory: Path, names: Sequence[str]) -> dict[str, int]:
    paths = {name: directory / name for name in names}
    return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}


def _token_quirks(directory: Path) -> list[str]:
    """A sentence on the tokens that a fine-tune added to the published vocabulary, if any."""
    entries = (read_json_object(directory, "tokenizer.json") or {}).get("added_tokens")
    tokens = [entry.get("content") for entry in entries or [] if isinstance(entry, dict)]
    tokens += list(read_json_object(directory, "added_tokens.json") or {})
    extra = [t for t in dict.fromkeys(tokens) if isinstance(t, str) and t not in _KNOWN_TOKENS]
    if not extra:
        return []
    return [f"the tokenizer has {len(extra)} tokens of its own: {sample(extra)}"]


def _file_quirks(directory: Path) -> list[str]:
    code = sorted(path.name for path in directory.glob("*.py"))
    return [f"{sample(code)}: code of the repository, which is never run"] if code else []


def _decoding(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Decoding setting -> its value and the file that decided it."""
    settings = vars(GenerationConfig.from_hf(config, generation, strict=False))
    return {
        name: {"value": value, "source": _decided_by(name, value, config, generation or {})}
        for name, value in settings.items()
    }


def _decided_by(
    name: str, value: Any, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> str:
    # Asked of GenerationConfig.from_hf itself, whose rules are not repeated here: a source decided
    # if the outcome changes, or would come from elsewhere, without it.
    keys = {name, name.replace("_new_tokens", "_length")}
    text = config.get("text_config", config)
    without_text = {key: item for key, item in text.items() if key not in keys}
    without_generation = {key: item for key, item in generation.items() if key not in keys}
    stated = {
        "generation_config.json": any(generation.get(key) is not None for key in keys),
        "text_config": text.get(name) is not None,
    }
    outcomes = {
        "generation_config.json": (config, without_generation),
        "text_config": ({**config, "text_config": without_text}, generation),
    }
    for source, arguments in outcomes.items():
        if stated[source] and _setting(name, *arguments) != value:
            return source
    agreeing = {
        "text_config": text.get(name) == value,
        "generation_config.json": generation.get(name) == value,
    }
    sources = [source for source, agrees in agreeing.items() if agrees and stated[source]]
    return " and ".join(sources) or "published default"


def _setting(name: str, config: Mapping[str, Any], generation: Mapping[str, Any]) -> Any:
    try:
        return getattr(GenerationConfig.from_hf(config, generation, strict=False), name)
    except ValueError as error:  # a combination without meaning is another outcome
        return error


def _describe_adapter(path: Path) -> Description:
    problems: list[str] = []
    adapter = None
    try:
        adapter = read_adapter(path)
    except CheckpointError as error:
        problems.append(str(error))
    config = read_json_object(path, ADAPTER_CONFIG) or {}
    files = [file for file in path.glob("adapter_*") if file.is_file()]
    return {
        "kind": "adapter",
        "source": str(path),
        "format": "peft",
        "type": config.get("peft_type", "LORA"),
        "base_model": config.get("base_model_name_or_path"),
        "naming": None if adapter is None else adapter.naming,
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "use_rslora": bool(config.get("use_rslora")),
        "target_modules": config.get("target_modules"),
        "modules_to_save": config.get("modules_to_save"),
        **_adapter_tensors(adapter),
        "quirks": [] if adapter is None else list(adapter.notes),
        "problems": problems,
        "files": {file.name: file.stat().st_size for file in sorted(files)},
    }


def _adapter_tensors(adapter: Adapter | None) -> Description:
    """The part of the description that the tensors give."""
    if adapter is None:
        return dict.fromkeys(("weights", "ranks", "scales", "replaced", "parameters", "dtypes"))
    factors = [array for m in adapter.modules.values() for array in (m.a, m.b)]
    arrays = [*factors, *adapter.replaced.values()]
    return {
        "weights": len(adapter.modules),
        "ranks": sorted({module.rank for module in adapter.modules.values()}),
        "scales": sorted({adapter.scale(name) for name in adapter.modules}),
        "replaced": sorted(adapter.replaced),
        "parameters": sum(array.size for array in arrays),
        "dtypes": {
            name: sum(array.dtype.name == name for array in arrays)
            for name in sorted({array.dtype.name for array in arrays})
        },
    }


def _lines(found: Description) -> list[str]:
    """Format a description as lines for people."""
    is_adapter_ = found["kind"] == "adapter"
    title = "LoRA adapter for Florence-2" if is_adapter_ else f"Florence-2 {found['variant']}"
    lines = [f"{found['source']}: {title}"]
    nested = ("decoding", "quirks", "problems", "files", "ignored")
    skipped = ("kind", "source", "variant", *nested)
    rows = {key.replace("_", " "): _text(key, v) for key, v in found.items() if key not in skipped}
    lines += [f"  {key:<18}{text}" for key, text in rows.items() if text]
    if found.get("decoding"):
        lines.append("decoding settings, and what decided them")
        for name, setting in found["decoding"].items():
            lines.append(f"  {name:<24}{setting['value']!s:<8}{setting['source']}")
    lists = {
        "not read": [f"{name}: {why}" for name, why in found.get("ignored", {}).items()],
        "odd but harmless": found["quirks"],
        "problems": [line for problem in found["problems"] for line in problem.splitlines()],
        "files": [f"{name} ({_text('bytes', size)})" for name, size in found["files"].items()],
    }
    for heading, entries in lists.items():
        if entries:
            lines += [heading, *(f"  {entry}" for entry in entries)]
    return lines


def _text(key: str, value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        if key == "bytes":
            return f"{value:,} bytes" if value < 1 << 20 else f"{value / 1e6:,.1f} MB"
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} ({count} tensors)" for name, count in value.items())
    if isinstance(value, list):
        return sample(map(str, value), 12)
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
