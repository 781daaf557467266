"""Settings of a program: frozen dataclasses, filled from a recipe file and `key=value` words.

A recipe is YAML (nested like the dataclasses) or Python (a module-level `config`). Words override
it: `optimizer.learning_rate=1e-4`, `data.image_size=[384,384]`; values are written as in YAML.
"""

import dataclasses
import inspect
import re
import runpy
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, TextFileError, read_text
from florence_jax.training.checked import Checked
from florence_jax.training.suggest import did_you_mean, nearest

Config = TypeVar("Config")

# yaml.safe_load raises others than its own error for numbers of thousands of digits, for days that
# no month has, for `!!float x`, `!!bool x` and `!!timestamp x`, and for lists nested too deeply.
_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)

# So many names are no burden to read.
_FEW = 30
_MAX_VALUES = 100_000


class SettingsError(ValueError):
    """Settings that do not fit; the message lists every problem with its field."""


def load_settings(kind: type[Config], recipe: str | Path | None, words: Sequence[str]) -> Config:
    """An instance of the dataclass `kind` from a recipe, with `words` on top.

    Raises:
        SettingsError: an unknown field, a wrong type or value, an unreadable recipe or word.
    """
    tree = _read_recipe(kind, Path(recipe)) if recipe is not None else {}
    problems, values = [], {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            problems.append(f"{word!r} is not key=value, for example optimizer.clip_norm=1")
            continue
        try:
            # Nothing behind the sign is an empty text; none at all is written null.
            values[name] = yaml.safe_load(text) if text else ""
        except _UNREADABLE as error:
            problems.append(f"{word!r}: the value cannot be read: {error}")
    # steps=9 on the command line stands in place of a recipe's epochs.
    for names in getattr(kind, "ALTERNATIVES", ()):
        for name in names if values.keys() & names else ():
            tree.pop(name, None)
    for name, value in values.items():
        try:
            _put(tree, name, value)
        except SettingsError as error:
            problems.append(str(error))
    try:
        config = from_tree(kind, tree)
    except SettingsError as error:
        raise SettingsError("\n".join([*problems, str(error)])) from None
    if problems:
        raise SettingsError("\n".join(problems))
    return config


def from_tree(kind: type[Config], tree: Mapping[str, Any]) -> Config:
    """The dataclass `kind` from nested mappings, every value checked against its annotation.

    Raises:
        SettingsError: with a line for each unknown field and each value that does not fit.
    """
    lines: list[str] = []
    tree = _with_kinds(kind, tree, lines)
    unknown = sorted(_unknown(kind, tree))
    lines += [*_unknown_lines(kind, unknown), *_booleans(kind, tree)]
    try:
        config = pydantic.TypeAdapter(kind).validate_python(_without(tree, unknown))
    except pydantic.ValidationError as error:
        meanings = {name: meaning for name, _, _, meaning in describe(kind)}
        problems = error.errors()
        lines += [_line(problem, meanings) for problem in problems]
        failed = [problem["loc"] for problem in problems if problem["type"] != "value_error"]
        failed += [
            (*problem["loc"], "") for problem in problems if problem["type"] == "value_error"
        ]
        lines += _not_reached(kind, tree, failed)
        raise SettingsError("\n".join(dict.fromkeys(lines))) from None
    if lines:
        raise SettingsError("\n".join(lines))
    return config


def to_tree(config: Any) -> dict[str, Any]:
    """Nested dicts, lists and plain values, as they go into YAML and JSON."""
    return pydantic.TypeAdapter(type(config)).dump_python(
        config, mode="json", serialize_as_any=True
    )


def _with_kinds(kind: type, tree: Any, lines: list[str], prefix: str = "") -> Any:
    """The tree with mappings that have a `kind` as instances of the class that it chooses.

    Args:
        lines: gets what is wrong with them; such a mapping becomes an instance of the base class.
    """
    if not isinstance(tree, Mapping):
        return tree
    hints = typing.get_type_hints(kind)
    made = dict(tree)
    for name in tree.keys() & hints.keys():
        inner, value, path = _dataclass_in(hints[name]), tree[name], f"{prefix}{name}"
        if inner is None:
            continue
        if not hasattr(inner, "of_kind"):
            made[name] = _with_kinds(inner, value, lines, f"{path}.")
        elif isinstance(value, list | tuple):
            made[name] = [
                _of_kind(inner, item, lines, f"{path}[{number}]")
                if isinstance(item, Mapping)
                else item
                for number, item in enumerate(value)
            ]
    return made


def _of_kind(base: Any, tree: Mapping[str, Any], lines: list[str], path: str) -> Any:
    fields = {name: value for name, value in tree.items() if name != "kind"}
    try:
        return from_tree(base.of_kind(tree.get("kind")), fields)
    except SettingsError as error:
        lines += [_at(path, line) for line in str(error).splitlines()]
    except ValueError as error:
        lines.append(f"{path}.kind {error}")
    return base()


def _at(path: str, line: str) -> str:
    """A line about a setting as one about a setting of the item at `path`."""
    unknown = "unknown settings: "
    if line.startswith(unknown):
        names, *rest = line.removeprefix(unknown).split("; ")
        named = ", ".join(f"{path}.{name}" for name in names.split(", "))
        return "; ".join([f"{unknown}{named}", *rest])
    return f"{path}.{line}" if re.match(r"[\w.]+(: | must )", line) else line


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each field in which two trees differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{name}.")
        elif _alike_lists(before, after):
            for number, pair in enumerate(zip(before, after, strict=True)):
                lines += differences(*pair, f"{name}[{number}].")
        elif before != after:
            lines.append(f"{name} was {before!r} and is {after!r}")
    return lines


def _alike_lists(before: Any, after: Any) -> bool:
    """Whether both are lists of mappings, such as data.train, with as many of them."""
    lists = isinstance(before, list) and isinstance(after, list) and len(before) == len(after)
    return lists and all(isinstance(item, Mapping) for item in (*before, *after))


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
    except _UNREADABLE as error:
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
    given = problem["input"]
    near = ""
    if problem["type"] == "literal_error" and isinstance(given, str):
        near = did_you_mean(given, re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return f"{name}: {problem['msg']}, got {given!r:.200}{near}" + (
        f"; {meaning}" if meaning else ""
    )


def _not_reached(kind: type, tree: Any, failed: Sequence[tuple]) -> Iterator[str]:
    """What is wrong beside `failed`: a class is not asked for its problems where a field failed.

    Args:
        failed: the paths of fields with a problem, from `kind` on.
    """
    if not isinstance(tree, Mapping):
        return
    hints = typing.get_type_hints(kind)
    bad = {path[0] for path in failed if path and path[0] in hints}
    if bad and issubclass(kind, Checked):
        known: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            default = _default(field)
            known[field.name] = None if default == "(required)" else default
            if field.name in tree and field.name not in bad:
                adapter = pydantic.TypeAdapter(hints[field.name])
                known[field.name] = adapter.validate_python(tree[field.name])
        for sentence in kind.problems(types.SimpleNamespace(**known)):
            if sentence.partition(" ")[0] not in bad:
                yield sentence
    for name in bad:
        inner = _dataclass_in(hints[name])
        if inner is not None:
            below = [path[1:] for path in failed if path and path[0] == name]
            yield from _not_reached(inner, tree.get(name), below)


def _unknown_lines(kind: type, unknown: Sequence[str]) -> list[str]:
    if not unknown:
        return []
    known = [name for name, *_ in describe(kind)]
    groups = {name.rpartition(".")[0] for name in known if "[" not in name} - {""}
    meant = {}
    for name in unknown:
        found = nearest(re.sub(r"\[\d+\]", "[]", name), [*known, *groups])
        if found:
            meant[name] = found
    line = f"unknown settings: {', '.join(unknown)}"
    # Of a hundred settings one wants to see all only where none is meant.
    if len(meant) < len(unknown) or len(known) < _FEW:
        line += f"; there are: {', '.join(known)}"
    if meant:
        line += f"; did you mean {', '.join(f'{one} for {name}' for name, one in meant.items())}?"
    return [line]


def _booleans(kind: type, tree: Any, prefix: str = "") -> Iterator[str]:
    """A sentence for each yes or true where a number belongs, which pydantic would read as 1."""
    hints = typing.get_type_hints(kind)
    for name, value in tree.items() if isinstance(tree, Mapping) else ():
        if name not in hints:
            continue
        inner = _dataclass_in(hints[name])
        items = value if isinstance(value, list | tuple) else [value]
        if inner is not None:
            for item in items:
                yield from _booleans(inner, item, f"{prefix}{name}.")
        elif bool not in _leaf_types(hints[name]) and (found := _first_boolean(items)) is not None:
            yield f"{prefix}{name} must be no truth value, got {found}: write a number or a text"


def _leaf_types(hint: Any) -> set[Any]:
    arguments = typing.get_args(hint)
    return {hint}.union(*map(_leaf_types, arguments))


def _first_boolean(items: Sequence[Any]) -> bool | None:
    for item in items:
        if isinstance(item, bool):
            return item
        found = _first_boolean(item) if isinstance(item, list | tuple) else None
        if found is not None:
            return found
    return None


def _without(tree: Any, names: Sequence[str]) -> Any:
    """Nested mappings and lists without the fields "a.b" and "a[0].b"."""
    if isinstance(tree, Mapping):
        kept = {key: value for key, value in tree.items() if str(key) not in names}
        return {key: _without(value, _below(names, f"{key}")) for key, value in kept.items()}
    if isinstance(tree, list | tuple):
        return [_without(item, _below(names, f"[{n}]")) for n, item in enumerate(tree)]
    return tree


def _below(names: Sequence[str], parent: str) -> list[str]:
    found = (name.removeprefix(parent) for name in names if name.startswith(parent))
    return [name.removeprefix(".") for name in found if name[:1] in (".", "[")]


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
