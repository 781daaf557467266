"""`florence-jax completion`: a script that completes commands, options and choices in a shell."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from florence_jax.cli.options import say_on_stderr

_SHELLS = ("bash", "zsh", "fish")

_HELP = """\
Print a script that makes a shell complete the commands of florence-jax, their
options, choices and file names. The script does not run florence-jax while you
type; print it again after an upgrade.
"""
_EXAMPLES = """\
examples:
  bash   florence-jax completion bash > ~/.florence-jax-completion.bash
         echo 'source ~/.florence-jax-completion.bash' >> ~/.bashrc
  zsh    florence-jax completion zsh > ~/.zsh/_florence-jax
         with `fpath=(~/.zsh $fpath)` before `compinit` in ~/.zshrc
  fish   cd ~/.config/fish/completions
         florence-jax completion fish > florence-jax.fish
"""


def add_completion(commands: Any) -> None:
    """Add the command to the parser's."""
    completion = commands.add_parser("completion", description=_HELP, epilog=_EXAMPLES)
    completion.add_argument("shell", choices=_SHELLS)
    completion.set_defaults(run=_completion)


def train_flags(kind: Any, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """(flag, type of its value; bool for a switch) of every flag that tyro makes of a dataclass.

    The settings of a run are those of every kind of run, since a recipe decides which it is.
    """
    from florence_jax.training.config import TrainConfig
    from florence_jax.training.images.config import ClassifyConfig, SegmentConfig
    from florence_jax.training.run_config import RunConfig

    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, *notes = _unpacked(hints[field.name])
        name = field.name.replace("_", "-")
        if hint is RunConfig:
            for run in (TrainConfig, ClassifyConfig, SegmentConfig):
                yield from train_flags(run, prefix)
            continue
        if dataclasses.is_dataclass(hint):
            has_prefix = all(getattr(note, "name", None) != "" for note in notes)
            yield from train_flags(hint, f"{prefix}{name}." if has_prefix else prefix)
            continue
        yield f"{prefix}{name}", hint
        if hint is bool and not notes:
            yield f"{prefix}no-{name}", hint


def _completion(arguments: argparse.Namespace) -> int:
    import shtab  # pyright: ignore[reportMissingImports]

    from florence_jax.cli.main import command_parser

    parser = command_parser()
    (commands,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    commands.help = "command"  # what the help does not list, the script would not complete
    try:
        commands.choices["train"] = _train_parser()
    except ModuleNotFoundError as error:
        say_on_stderr(f"the script has no flags of train: {error}")
    for action in _actions(commands):
        if action.nargs != 0 and action.choices is None:
            action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(commands: argparse._SubParsersAction) -> Iterator[argparse.Action]:
    """The arguments of commands, and of the commands within them."""
    for command in commands.choices.values():
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from _actions(action)
            else:
                yield action


def _train_parser() -> argparse.ArgumentParser:
    """A parser with the trainer's flags, in the place of the one that leaves them to tyro."""
    from florence_jax.cli.train import TrainOptions

    train = argparse.ArgumentParser("florence-jax train")
    for flag, hint in dict(train_flags(TrainOptions)).items():
        if hint is bool:
            train.add_argument(flag, action="store_true")
        else:
            is_choice = typing.get_origin(hint) is Literal
            train.add_argument(flag, choices=typing.get_args(hint) if is_choice else None)
    return train


def _unpacked(hint: Any) -> tuple[Any, ...]:
    """The type of an `Annotated` and its notes, or the type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
