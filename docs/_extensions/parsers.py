"""Directives that render the command line's parsers and the trainer's settings."""

import argparse
import dataclasses
import importlib
import inspect

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Commands(SphinxDirective):
    """Each command of `florence-jax` with its help text, as the terminal shows it."""

    def run(self) -> list[nodes.Node]:
        from florence_jax.cli.main import command_parser

        parser = command_parser()
        (commands,) = (
            action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        )
        found = []
        for name, command in commands.choices.items():
            section = nodes.section(ids=[f"florence-jax-{name}"])
            section += nodes.title(text=f"florence-jax {name}")
            section += nodes.literal_block(text=command.format_help(), language="text")
            found.append(section)
        return found


class Settings(SphinxDirective):
    """The docstring and the defaults of a dataclass, and of those within it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        found = []
        for cls in _with_nested(getattr(importlib.import_module(module), name)):
            section = nodes.section(ids=[cls.__name__.lower()])
            section += nodes.title(text=cls.__name__)
            # As they stand: regular expressions among the values are no markup.
            text = f"{inspect.getdoc(cls)}\n\nDefaults:\n" + "\n".join(_defaults(cls))
            section += nodes.literal_block(text=text, language="text")
            found.append(section)
        return found


def _with_nested(cls: type) -> list[type]:
    nested = [type(value) for value in _values(cls).values() if dataclasses.is_dataclass(value)]
    return [cls, *(one for inner in dict.fromkeys(nested) for one in _with_nested(inner))]


def _defaults(cls: type):
    for name, value in _values(cls).items():
        required = value is dataclasses.MISSING
        shown = type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
        yield f"    {name}: {'required' if required else shown}"


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
