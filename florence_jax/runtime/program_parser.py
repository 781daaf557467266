"""The argparse parser of every program: wrong arguments end in one sentence with a remedy."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from florence_jax.runtime.help_text import help_columns, wrapped
from florence_jax.runtime.program import print_error

WRONG_CALL = 2


class ProgramHelp(argparse.RawDescriptionHelpFormatter):
    """Help whose texts keep their form, see `wrapped`, in at most 80 columns."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{"width": help_columns(), **settings})

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent(wrapped(text, width - len(indent)), indent)


class ProgramParser(argparse.ArgumentParser):
    """An argparse parser that suggests corrections, and prints an error without the usage."""

    def __init__(self, *, formatter_class: Any = ProgramHelp, **settings: Any) -> None:
        super().__init__(formatter_class=formatter_class, **settings)

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit with status 2."""
        remedy = "" if "did you mean" in message else f": see `{self.prog} --help`"
        print_error(self.prog, f"{message}{remedy}")
        sys.exit(WRONG_CALL)

    def parse_args(self, args: Sequence[str] | None = None, namespace: object = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
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


def positive(text: str) -> int:
    """The `type` of options that count something: refused here, before a model is loaded."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ ": did you mean 'predict'?" for a near miss of a known word, or nothing."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.partition("=")[0].lower(), lower, 1, 0.6)
    return f": did you mean {lower[near[0]]!r}?" if near else ""
