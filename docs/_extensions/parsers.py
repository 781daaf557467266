"""Directives that render the command line's parsers and the trainer's settings."""

import argparse
import dataclasses
import importlib
import inspect
import re
import typing

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Commands(SphinxDirective):
    """Each command of `florence-jax` with its help text, as the terminal shows it."""

    def run(self) -> list[nodes.Node]:
        from florence_jax.cli.main import command_parser

        parser = command_parser()
        found = []
        for name, command in _commands(parser, "florence-jax"):
            section = nodes.section(ids=[nodes.make_id(name)])
            section += nodes.title(text=name)
            section += nodes.literal_block(text=command.format_help(), language="text")
            found.append(section)
        return found


def _commands(parser: argparse.ArgumentParser, name: str):
    """(name, parser) of each command, and of the commands within it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield f"{name} {word}", command
                yield from _commands(command, f"{name} {word}")


class Settings(SphinxDirective):
    """Each field of a dataclass, and of those within it, with its default and its meaning.

    A class that an earlier directive of the page showed in the same place is left out.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        shown = self.env.temp_data.setdefault("florence-settings", set())
        new = [one for one in _with_nested(cls, "") if one not in shown]
        shown.update(new)
        return [_section(cls, prefix) for prefix, cls in new]


def _section(cls: type, prefix: str) -> nodes.section:
    """The fields of one class; those that are classes themselves have sections of their own."""
    text, meanings = _docstring(cls)
    title = f"{prefix.removesuffix('.')}: {cls.__name__}" if prefix else cls.__name__
    section = nodes.section(ids=[nodes.make_id(title)])
    section += [nodes.title(text=title), nodes.paragraph("", "", *_inline(text))]
    fields = nodes.definition_list()
    for name, value in _values(cls).items():
        shown = "required" if value is dataclasses.MISSING else repr(value)
        if dataclasses.is_dataclass(value):
            shown = type(value).__name__
        term = nodes.term("", "", nodes.literal(text=f"{prefix}{name}"))
        term += [nodes.Text(" = "), nodes.literal(text=shown)]
        meaning = nodes.paragraph("", "", *_inline(meanings.get(name, "")))
        fields += nodes.definition_list_item("", term, nodes.definition("", meaning))
    section += fields
    return section


def _with_nested(cls: type, prefix: str):
    yield prefix, cls
    for name, value in _values(cls).items():
        if dataclasses.is_dataclass(value):
            yield from _with_nested(type(value), f"{prefix}{name}.")
    for name, kind in _required(cls):
        yield from _with_nested(kind, f"{prefix}{name}.")


def _required(cls: type):
    """Fields without a default that hold a dataclass."""
    kinds = typing.get_type_hints(cls)
    for name, value in _values(cls).items():
        if value is dataclasses.MISSING and dataclasses.is_dataclass(kinds[name]):
            yield name, kinds[name]


def _docstring(cls: type) -> tuple[str, dict[str, str]]:
    """The text of a Google-style docstring, and the meaning of each attribute."""
    meanings: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        _, _, attributes = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        for names, meaning in re.findall(
            r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE
        ):
            meanings |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[0].strip(), meanings


def _inline(text: str) -> list[nodes.Node]:
    """Text as nodes: what stands in backticks is code."""
    parts = enumerate(text.split("`"))
    return [nodes.literal(text=part) if odd % 2 else nodes.Text(part) for odd, part in parts]


def _values(cls: type) -> dict:
    """The default of each field; `dataclasses.MISSING` where there is none."""
    return {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(cls)
    }


def setup(app) -> dict:
    """Register the directives with Sphinx."""
    app.add_directive("florence-commands", Commands)
    app.add_directive("florence-settings", Settings)
    return {"parallel_read_safe": True, "version": "1"}
