"""Help and version of `florence-jax`, and a parser that suggests corrections of mistyped words."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

DESCRIPTION = "Florence-2 in JAX: captions, boxes, masks and text, on TPU, GPU and CPU."

EPILOG = """\
examples:
  florence-jax demo
  florence-jax predict photo.jpg --task "<OD>" --save-images drawn/
  florence-jax predict photos/ --task "<MORE_DETAILED_CAPTION>" --format txt

models (--model):
  microsoft/Florence-2-base-ft   and the other Florence-2 checkpoints, by hub id or directory
  shapes                         comes with the library: small and trained, but it knows nothing
                                 but drawn shapes and words; no download

`florence-jax COMMAND --help` says what a command takes; `florence-jax predict --help` lists the
tasks and formats."""

# Backends beside the CPU, by the distribution that brings them.
_BACKENDS = {
    "libtpu": "tpu",
    "jax-cuda13-plugin": "cuda (13)",
    "jax-cuda12-plugin": "cuda (12)",
    "jax-rocm7-plugin": "rocm (7)",
    "jax-rocm60-plugin": "rocm (6)",
}


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that asks "did you mean" about commands, options and choices."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: object = None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parse as argparse does, but suggest an option for one that is unknown."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._parser_of(sys.argv[1:] if args is None else args)
            known = parser._option_string_actions
            hints = [hint for word in unknown if (hint := did_you_mean(word, known))]
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints[:1])}")
        return options

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = list(map(str, action.choices))
        hint = did_you_mean(str(value), choices)
        what = "no command" if isinstance(action, argparse._SubParsersAction) else "no choice"
        if not hint and what == "no command":
            hint = self._meant_otherwise(str(value))
        raise argparse.ArgumentError(
            action, f"{value!r} is {what}{hint} (choose from {', '.join(choices)})"
        )

    def _meant_otherwise(self, word: str) -> str:
        if word in ("help", "version"):
            return f": did you mean `{self.prog} --{word}`?"
        exists = os.path.exists(word)
        return f": did you mean `{self.prog} predict {word} --task ...`?" if exists else ""

    def _parser_of(self, arguments: Iterable[str]) -> argparse.ArgumentParser:
        """The parser of the command among the arguments."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names = [word for word in arguments if word in action.choices]
                return action.choices[names[0]] if names else self
        return self


class VersionAction(argparse.Action):
    """`--version`: print the versions and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(version_text())
        parser.exit()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ": did you mean 'predict'?" for a near miss of a known word, or nothing."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.partition("=")[0].lower(), lower, 1, 0.6)
    return f": did you mean {lower[near[0]]!r}?" if near else ""


def version_text() -> str:
    """The versions of the library and of JAX, and the kinds of device that JAX is installed for.

    Nothing is imported or started: devices are looked for only when a model runs.
    """
    import florence_jax

    names = ("jax", "jaxlib", "flax", "numpy")
    versions = [f"{name} {_version(name) or 'is not installed'}" for name in names]
    installed = [kind for name, kind in _BACKENDS.items() if _version(name)]
    chosen = os.environ.get("JAX_PLATFORMS")
    backends = ", ".join([*installed, "cpu"]) + (f" (JAX_PLATFORMS={chosen})" if chosen else "")
    return "\n".join(
        [
            f"florence-jax {florence_jax.__version__}",
            ", ".join(versions),
            f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
            f"backends installed: {backends}",
        ]
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
