"""Settings of a program: frozen dataclasses, filled from a recipe file and `key=value` words.

A recipe is YAML (nested like the dataclasses) or Python (a module-level `config`). Words override
it: `optimizer.learning_rate=1e-4`, `data.image_size=[384,384]`; values are written as in YAML.
"""

import dataclasses
import inspect
import re
import runpy
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, TextFileError, read_text

Config = TypeVar("Config")

_MAX_VALUES = 100_000


class SettingsError(ValueError):
    """Settings that do not fit; the message lists every problem with its field."""


def load_settings(kind: type[Config], recipe: str | Path | None, words: Sequence[str]) -> Config:
    """An instance of the dataclass `kind` from a recipe, with `words` on top.

    Raises:
        SettingsError: an unknown field, a wrong type or value, an unreadable recipe or word.
    """
    tree = _read_recipe(kind, Path(recipe)) if recipe is not None else {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise SettingsError(f"{word!r} is not key=value, for example optimizer.clip_norm=1")
        try:
            # Nothing behind the sign is an empty text; none at all is written null.
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise SettingsError(f"{word!r}: the value cannot be read: {error}") from None
        _put(tree, name, value)
    return from_tree(kind, tree)


def from_tree(kind: type[Config], tree: Mapping[str, Any]) -> Config:
    """The dataclass `kind` from nested mappings, every value checked against its annotation."""
    unknown = sorted(_unknown(kind, tree))
    if unknown:
        known = ", ".join(name for name, *_ in describe(kind))
        raise SettingsError(f"unknown settings: {', '.join(unknown)}; there are: {known}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        meanings = {name: meaning for name, _, _, meaning in describe(kind)}
        lines = [_line(problem, meanings) for problem in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def to_tree(config: Any) -> dict[str, Any]:
    """Nested dicts, lists and plain values, as they go into YAML and JSON."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each field in which two trees differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{name}.")
        elif before != after:
            lines.append(f"{name} was {before!r} and is {after!r}")
    return lines


def describe(kind: type, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """(name, default, type, meaning) of every field, meanings from the classes' docstrings."""
    hints = typing.get_type_hints(kind)
    meanings = _meanings(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from describe(hints[field.name], f"{name}.")
            continue
        yield name, _default(field), _type_name(hints[field.name]), meanings.get(field.name, "")
        inner = _dataclass_in(hints[field.name])
        if inner is not None and typing.get_origin(hints[field.name]) is tuple:
            yield from describe(inner, f"{name}[].")


def _read_recipe(kind: type, path: Path) -> dict[str, Any]:
    if path.suffix == ".py":
        if not path.is_file():
            raise SettingsError(f"recipe {path}: there is no such file")
        try:
            config = runpy.run_path(str(path)).get("config")
        except Exception as error:
            # It is a program, and whatever is wrong with it is its author's to know.
            raise SettingsError(
                f"recipe {path}{_line_in(path, error)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(config, kind):
            raise SettingsError(f"recipe {path} must define `config`, a {kind.__name__}")
        return to_tree(config)
    if path.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"recipe {path}: expected a .yaml or .py file")
    try:
        tree = yaml.safe_load(read_text(path, max_bytes=MAX_SETTINGS_BYTES))
    except OSError as error:
        raise SettingsError(f"recipe {path}: {error.strerror}") from None
    except TextFileError as error:
        raise SettingsError(f"recipe {error}") from None
    except RecursionError:
        raise SettingsError(f"recipe {path} is nested too deeply to be read") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"recipe {path} is not YAML: {error}") from None
    _check_size(tree, path)
    if not isinstance(tree, dict):
        raise SettingsError(f"recipe {path} must be a mapping of settings, got {tree!r:.200}")
    return tree


def _check_size(tree: Any, path: Path) -> None:
    """Refuse a recipe whose anchors stand for more settings than anyone writes."""
    waiting, count = [tree], 0
    while waiting:
        count += 1
        if count > _MAX_VALUES:
            raise SettingsError(f"recipe {path} holds more than {_MAX_VALUES} values")
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _line_in(path: Path, error: Exception) -> str:
    """ ", line 7" where the error passed through the file."""
    if isinstance(error, SyntaxError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f", line {numbers[-1]}" if numbers else ""


def _line(problem: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    """One of pydantic's problems: the setting, what is wrong, what it means."""
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{name} must be set: {name}=..., or a recipe that sets it"
    if problem["type"] == "value_error":
        # One of our own, which says everything but where.
        message = problem["msg"].removeprefix("Value error, ")
        return message if not name or f"{name}." in message else f"{name}: {message}"
    meaning = meanings.get(re.sub(r"\.\d+", "[]", name), "")
    return f"{name}: {problem['msg']}, got {problem['input']!r}" + (
        f"; {meaning}" if meaning else ""
    )


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise SettingsError(f"{name}: {parent} is {child!r}, which has no fields")
        tree = child
    tree[last] = value


def _unknown(kind: type, tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    for key, value in tree.items():
        if key not in names:
            yield f"{prefix}{key}"
            continue
        inner = _dataclass_in(hints[key])
        if inner is None:
            continue
        if isinstance(value, Mapping):
            yield from _unknown(inner, value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from _unknown(inner, item, f"{prefix}{key}[{number}].")


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a hint is, or has among its arguments: of `tuple[Part, ...]`, Part."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    found = (_dataclass_in(argument) for argument in typing.get_args(hint))
    return next((one for one in found if one is not None), None)


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "(required)"


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _meanings(kind: type) -> dict[str, str]:
    """Field -> meaning, from the "Attributes:" section of a class's docstring."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        start = re.match(r"    (\w[\w, ]*): (.*)", line)
        if start:
            names = start[1].split(", ")
            meanings.update(dict.fromkeys(names, start[2]))
        elif line.startswith("        "):
            for name in names:
                meanings[name] += " " + line.strip()
        elif line.strip():
            break
    return meanings
