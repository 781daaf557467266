"""Load a run's settings: a recipe, command-line flags on top of it, and the config a run saved.

A recipe is a Python file that holds `config = TrainConfig(...)`, or the config.json of a run. Every
field is a flag, parsed by tyro: `--optimizer.learning-rate 1e-4 --data.image-size 384 384`. Fields
that hold dataclasses in a list or as one of several types take JSON:
`--data.train '[{"kind": "jsonl", "path": "rows.jsonl"}]'`.
"""

import argparse
import dataclasses
import json
import re
import runpy
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from florence_jax.runtime.help_text import help_columns, wrapped
from florence_jax.runtime.program import has_colours
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, parse_json, read_json
from florence_jax.training.checked import collecting_problems, did_you_mean
from florence_jax.training.config import TrainConfig
from florence_jax.training.run_config import RunConfig

Config = TypeVar("Config")

# Types of a program's options: the settings of the run without a prefix, and a switch without
# a --no- form.
RunSettings = Annotated[RunConfig, tyro.conf.arg(name="")]
Switch = tyro.conf.FlagCreatePairsOff[bool]

# A flag for one of them takes the place of a recipe's other.
_ALTERNATIVES = {"--steps": "--epochs", "--epochs": "--steps"}


class SettingsError(ValueError):
    """Settings that do not fit; the message has a line for each problem."""


def load_config(recipe: str | Path | None, flags: Sequence[str] = ()) -> TrainConfig:
    """The settings of a Florence-2's recipe with flags on top.

    Raises:
        SettingsError: the recipe cannot be read or trains another network, or values do not fit.
        SystemExit: tyro has printed what is wrong with a flag.
    """
    default = None if recipe is None else load_recipe(recipe)
    if not isinstance(default, TrainConfig | None):
        raise SettingsError(
            f"recipe {recipe} holds a {type(default).__name__}, expected a TrainConfig: what is "
            "asked for is of a Florence-2"
        )
    return parse_flags(TrainConfig, flags, default=default)


def load_recipe(path: str | Path) -> RunConfig:
    """The `config` of a Python file, or the config that a run saved as JSON.

    Raises:
        SettingsError: there is no such file, or it does not hold a config.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(
            f"recipe {path}: there is no such file; a checkout has recipes in train/recipes/"
        )
    if path.suffix == ".json":
        try:
            return read_run_config(read_json(path, max_bytes=MAX_SETTINGS_BYTES))
        except ValueError as error:
            raise SettingsError(f"recipe {path}: {error}") from None
    if path.suffix != ".py":
        raise SettingsError(f"recipe {path}: expected a .py file, or the config.json of a run")
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:
        # A recipe is a program, and may raise anything.
        raise SettingsError(
            f"recipe {path}{_line_in(path, error)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, RunConfig):
        raise SettingsError(
            f"recipe {path} must define `config`, a TrainConfig, ClassifyConfig or SegmentConfig"
        )
    return config


def read_run_config(tree: Any) -> RunConfig:
    """The settings of a run from the JSON that it saved, whose `kind` says what it trains.

    Raises:
        SettingsError: with a line for each unknown or missing field and each wrong value.
    """
    kind = tree.get("kind") if isinstance(tree, Mapping) else None
    if kind is None:
        return from_tree(TrainConfig, tree)
    # Here and not above: these settings read the image networks' own.
    from florence_jax.training.images import config as images

    kinds = {
        images.CLASSIFICATION: images.ClassifyConfig,
        images.SEGMENTATION: images.SegmentConfig,
    }
    if kind not in kinds:
        raise SettingsError(f"kind is {kind!r}, expected none, or one of {', '.join(kinds)}")
    return from_tree(kinds[kind], tree)


def parse_program_flags(
    kind: type[Config], flags: Sequence[str], *, prog: str, description: str
) -> Config:
    """The options of a program that trains, the recipe that its flag --config names beneath them.

    Args:
        kind: a dataclass with the fields `run: RunSettings` and `config`, the recipe's path. The
            flags are those of the recipe's settings; without a recipe, of a TrainConfig.
        prog, description: as for `parse_flags`.

    Raises:
        SettingsError, SystemExit: as `load_recipe` and `parse_flags`.
    """
    recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipe.add_argument("--config")
    path = recipe.parse_known_args(flags)[0].config
    found = None if path is None else load_recipe(path)
    settings = TrainConfig if found is None else type(found)
    # Tyro makes flags of a field's type, and not of its value.
    own = dataclasses.make_dataclass(
        kind.__name__,
        [("run", Annotated[settings, tyro.conf.arg(name="")])],
        bases=(kind,),
        frozen=True,
        kw_only=True,
    )
    own.__doc__ = kind.__doc__
    make = typing.cast(Callable[..., Config], own)
    default = None if found is None else make(run=found)
    options = parse_flags(own, flags, default=default, prog=prog, description=description)
    return typing.cast(Config, options)


def parse_flags(
    kind: type[Config],
    flags: Sequence[str],
    *,
    default: Config | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> Config:
    """The dataclass `kind` from command-line flags.

    Args:
        default: the values of fields without a flag, such as a recipe's.
        prog: the program's name, for its help.
        description: the beginning of its help; by default the class's docstring. tyro joins lines
            that begin with a letter: indent those that must stand alone.

    Raises:
        SettingsError: values that do not fit; the message has a line for each.
        SystemExit: tyro has printed its help, or what is wrong with a flag.
    """
    given = {flag.partition("=")[0] for flag in flags}
    cleared = [
        word
        for flag, other in _ALTERNATIVES.items()
        if flag in given and other not in given
        for word in (other, "None")
    ]
    # Left to itself, it asks standard output alone, and prints errors on the other.
    tyro._experimental_options["ansi_codes"] = has_colours()
    with collecting_problems() as problems:
        config = tyro.cli(
            kind,
            args=[*cleared, *flags],
            prog=prog,
            description=description and wrapped(description, help_columns()),
            default=tyro.MISSING_NONPROP if default is None else default,
            registry=_json_flags(),
        )
    if problems:
        raise SettingsError("\n".join(dict.fromkeys(problems)))
    return config


def from_tree(kind: type[Config], tree: Any, *, partial: bool = False) -> Config:
    """The dataclass `kind` from what `to_tree` made of it.

    Args:
        partial: fields that are left out have their defaults; otherwise every field must be there.

    Raises:
        SettingsError: with a line for each unknown or missing field and each wrong value.
    """
    with collecting_problems() as problems:
        value = _read(kind, tree, "", partial, problems)
    if problems:
        raise SettingsError("\n".join(dict.fromkeys(problems)))
    return value


def to_tree(config: Any) -> dict[str, Any]:
    """A dataclass as nested dicts, lists and plain values: the JSON that a run saves."""
    return json.loads(json.dumps(config, default=dataclasses.asdict))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each field in which two trees differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{name}.")
        elif isinstance(before, list) and isinstance(after, list) and _alike(before, after):
            for number, (one, other) in enumerate(zip(before, after, strict=True)):
                lines += differences(one, other, f"{name}[{number}].")
        elif before != after:
            lines.append(f"{name} was {before!r} and is {after!r}")
    return lines


def _alike(before: list, after: list) -> bool:
    """Whether both lists, such as data.train, hold the same number of mappings."""
    mappings = all(isinstance(item, Mapping) for item in (*before, *after))
    return mappings and len(before) == len(after)


def _line_in(path: Path, error: Exception) -> str:
    """ ", line 7" where the error passed through the file."""
    if isinstance(error, SyntaxError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f", line {numbers[-1]}" if numbers else ""


def _json_flags() -> tyro.constructors.ConstructorRegistry:
    """Flags of fields such as `tuple[SourceConfig, ...]`, which tyro would make subcommands of."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if dataclasses.is_dataclass(info.type) or not _holds_dataclass(info.type):
            return None

        def read(words: list[str]) -> Any:
            (text,) = words
            value: Any = None if text in ("None", "null") else text
            if text.startswith(("[", "{")):
                value = parse_json(text, "the value")
            problems: list[str] = []
            result = _read(info.type, value, "", True, problems)
            if problems:
                raise ValueError("; ".join(problems))
            return result

        def shown(value: Any) -> list[str]:
            plain = value is None or isinstance(value, str)
            return [str(value) if plain else json.dumps(value, default=dataclasses.asdict)]

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON",
            instance_from_str=read,
            is_instance=lambda value: True,
            str_from_instance=shown,
        )

    return registry


def _holds_dataclass(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(map(_holds_dataclass, typing.get_args(hint)))


def _read(hint: Any, value: Any, name: str, partial: bool, problems: list[str]) -> Any:
    """The value of a field from JSON; None, and one more problem, where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _read_fields(hint, value, f"{name}." if name else "", partial, problems)
    if origin in (types.UnionType, typing.Union):
        for one in arguments:
            found: list[str] = []
            result = _read(one, value, name, partial, found)
            if not found or (dataclasses.is_dataclass(one) and isinstance(value, Mapping)):
                problems += found
                return result
    elif origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(value):
            return tuple(
                _read(kind, item, f"{name}[{number}]", partial, problems)
                for number, (kind, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif origin is typing.Literal and value in arguments:
        return value
    elif hint is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    elif hint in (int, str, bool, float, types.NoneType) and type(value) is hint:
        return value
    near = did_you_mean(str(value), map(str, arguments)) if origin is typing.Literal else ""
    problems.append(f"{name or 'the value'}: expected {_shown(hint)}, got {value!r:.200}{near}")
    return None


def _read_fields(
    kind: Any, tree: Mapping[str, Any], prefix: str, partial: bool, problems: list[str]
) -> Any:
    if hasattr(kind, "of_kind"):  # a source of data, whose layout chooses its class
        try:
            kind = kind.of_kind(tree.get("kind"))
        except ValueError as error:
            problems.append(f"{prefix}kind {error}")
            return None
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    found = [
        f"unknown setting {prefix}{key}{did_you_mean(str(key), known)}"
        for key in tree
        if key not in known
    ]
    for name, field in known.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in tree and (required or not partial):
            found.append(f"{prefix}{name} is missing")
    values = {
        name: _read(hints[name], tree[name], f"{prefix}{name}", partial, found)
        for name, field in known.items()
        if name in tree and field.init
    }
    problems += found
    if found:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        problems.append(f"{prefix.removesuffix('.')}: {error}" if prefix else str(error))
        return None


def _shown(hint: Any) -> str:
    return re.sub(r"(\w+\.)+", "", hint.__name__ if isinstance(hint, type) else str(hint))
