"""Directives that render the command line's parsers and the trainer's settings."""

import argparse
import dataclasses
import importlib
import inspect

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class Commands(SphinxDirective):
    """Each command of `florence-jax` with its help text, as the terminal shows it."""

    def run(self) -> list[nodes.Node]:
        from florence_jax.cli.main import _parser

        parser = _parser()
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
    """The fields of a dataclass and of those within it: name, default, and docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        lines = list(_described(getattr(importlib.import_module(module), name), set()))
        container = nodes.section()
        self.state.nested_parse(StringList(lines), self.content_offset, container, match_titles=1)
        return container.children


def _described(cls: type, seen: set[type]):
    if cls in seen:
        return
    seen.add(cls)
    yield from (f"## {cls.__name__}", "", f"```{{autoclass}} {cls.__module__}.{cls.__qualname__}")
    yield from (":no-members:", ":noindex:", "```", "")
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default):
            yield from _described(type(default), seen)


def setup(app) -> dict:
    """Register the directives with Sphinx."""
    app.add_directive("florence-commands", Commands)
    app.add_directive("florence-settings", Settings)
    return {"parallel_read_safe": True, "version": inspect.getdoc(app) and "1"}
