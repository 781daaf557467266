"""The loop of the data engine: annotate and filter, fine-tune on the result, annotate again.

    OUT/refine.json            the loop's settings, what is done, and the figures of each round
    OUT/round-0/annotations    by the model that was given
    OUT/round-0/training       a fine-tune of that model on them; its export is the next model
    OUT/round-1/annotations    ...

Each phase is a process of its own, so that the two never share a device, and each of them goes on
where it was stopped. Nothing of an earlier round is ever changed.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florence_jax.annotation.outputs import STATISTICS
from florence_jax.runtime.atomic_file import atomic_write
from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.signals import Interruption
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json

STATE, _LOCK = "refine.json", "refine.lock"
_VERSION = 1
_POLL_SECONDS = 0.2

# The command line that annotates with a model into a directory, without the program's name.
AnnotateArguments = Callable[[str, Path], Sequence[str]]


class RefineError(ValueError):
    """A loop cannot begin or go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Refine:
    """A loop of annotations and fine-tunes.

    Attributes:
        directory: OUT.
        model: the model of the first round.
        rounds: fine-tunes; there is one more annotation than that.
        recipe: of `florence-jax train`; the round's annotations replace its `data.train` and
            `data.directory`.
        checkout: the directory that the phases run in, whose modules a recipe may import.
        image_root: the directory that image names start from.
        also: further sources of `data.train`, as JSON, such as labels made by hand.
        questions: number of one image's examples that a fine-tune learns together, at most.
        words: further settings of the fine-tune, as name=value.
        annotate: the command line of an annotation.
    """

    directory: Path
    model: str
    rounds: int
    recipe: Path
    checkout: Path
    image_root: Path
    annotate: AnnotateArguments
    also: Sequence[str] = ()
    questions: int = 1
    words: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise RefineError(f"{self.rounds} rounds: expected at least 1")
        if self.questions < 1:
            raise RefineError(f"{self.questions} questions of an image: expected at least 1")
        if not self.recipe.is_file():
            raise RefineError(f"there is no recipe {self.recipe}: see train/recipes of a checkout")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a loop must share with the one that began in its directory."""
        arguments = self.annotate("MODEL", Path("DIRECTORY"))
        return {
            "model": self.model,
            "recipe": self.recipe.read_text(encoding="utf-8"),
            "annotate": list(arguments),
            "also": list(self.also),
            "questions": self.questions,
            "words": list(self.words),
        }

    def phases(self) -> Iterator[Phase]:
        """Every phase, in order."""
        model = self.model
        for number in range(self.rounds + 1):
            place = self.directory / f"round-{number}"
            annotations = place / "annotations"
            yield Phase(
                name=f"round-{number}/annotations",
                command=[sys.executable, "-m", "florence_jax", *self.annotate(model, annotations)],
                result=annotations / STATISTICS,
                # 1: some images could not be read, and have a row that says so.
                success=(0, 1),
            )
            if number < self.rounds:
                training = place / "training"
                yield Phase(
                    name=f"round-{number}/training",
                    command=self._fine_tune(model, annotations, training),
                    result=training / "export",
                )
                model = str(training / "export")

    def _fine_tune(self, model: str, annotations: Path, training: Path) -> list[str]:
        first = {
            "kind": "annotations",
            "path": str(annotations),
            "image_root": str(self.image_root),
            "questions": self.questions,
        }
        return [
            *(sys.executable, "-m", "florence_jax", "train", "--config", str(self.recipe)),
            # A recipe from scratch has sizes; a model to start from has its own.
            *("--model.start", model, "--model.architecture", "None"),
            *("--directory", str(training)),
            *("--data.train", f"[{', '.join([json.dumps(first), *self.also])}]"),
            # A recipe's own folder would be learnt beside the annotations, or be missing.
            "--data.directory=",
            *(flag for word in self.words for flag in setting_flags(word)),
        ]


def setting_flags(word: str) -> list[str]:
    """`name=value` as flags of the trainer; a value may be several words, as in a shell."""
    name, equals, value = word.partition("=")
    return [f"--{name}", *(shlex.split(value) if equals else [])]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One process of a loop.

    Attributes:
        name: round-0/annotations and so on.
        command: what runs.
        result: a file or directory that exists once the phase has succeeded.
        success: its exit statuses of success.
    """

    name: str
    command: Sequence[str]
    result: Path
    success: tuple[int, ...] = field(default=(0,))


def refine(loop: Refine, say: Callable[[str], None]) -> bool:
    """Run the phases that are not done yet.

    Args:
        loop: the loop.
        say: called with a line about each phase.

    Returns:
        Whether the loop is complete; False if it was interrupted.

    Raises:
        DirectoryInUseError: another process works on the directory.
        RefineError: the directory is of another loop, or a phase failed.
    """
    loop.directory.mkdir(parents=True, exist_ok=True)
    # A phase keeps the lock where the loop itself is killed.
    with directory_lock(loop.directory, _LOCK) as lock:
        state = _adopted(loop)
        for phase in loop.phases():
            if phase.name in state["done"]:
                say(f"{phase.name} is done")
                continue
            say(f"{phase.name} begins")
            status = _run(phase.command, loop.checkout, lock)
            if status is None:
                return False
            if status not in phase.success or not phase.result.exists():
                missing = "" if phase.result.exists() else f", and there is no {phase.result}"
                raise RefineError(
                    f"{phase.name} failed with status {status}{missing}; mend what it says above, "
                    "and the same command goes on from there"
                )
            state["done"].append(phase.name)
            if phase.result.name == STATISTICS:
                state["rounds"].append(_figures(phase))
                say(describe(state["rounds"][-1]))
            _save(loop.directory, state)
    return True


def describe(figures: Mapping[str, Any]) -> str:
    """The figures of a round as one line."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in figures["annotations"].items() if count)
    return (
        f"{figures['round']}: {figures['images']} images; {kinds}; {figures['rejected']} rejected"
    )


def _figures(phase: Phase) -> dict[str, Any]:
    counted = json.loads(phase.result.read_text(encoding="utf-8"))
    return {
        "round": phase.name.partition("/")[0],
        "images": counted["images"],
        "annotations": {row["kind"]: row["annotations"] for row in counted["kinds"]},
        "rejected": sum(counted["rejected"].values()),
    }


def _adopted(loop: Refine) -> dict[str, Any]:
    """The state of the directory, or a new state."""
    path = loop.directory / STATE
    if not path.exists():
        state = {"version": _VERSION, "settings": loop.settings, "done": [], "rounds": []}
        _save(loop.directory, state)
        return state
    state = read_json(path, max_bytes=MAX_SETTINGS_BYTES)
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise RefineError(f"{path} is not the state of a loop: put back what it was")
    if state.get("version") != _VERSION:
        raise RefineError(f"{path} is of version {state.get('version')}, expected {_VERSION}")
    settings = loop.settings
    differing = [name for name in settings if settings[name] != state["settings"].get(name)]
    if differing:
        raise RefineError(
            f"{loop.directory} is of another loop; different are: {', '.join(differing)}. Give "
            "what it was begun with (rounds may grow), or name another directory"
        )
    return state


def _save(directory: Path, state: Mapping[str, Any]) -> None:
    atomic_write(directory / STATE, json.dumps(state, indent=1) + "\n")


def _run(command: Sequence[str], checkout: Path, lock: int) -> int | None:
    """The exit status of the command; None if it was interrupted, which it was told."""
    notice = "asking the phase at work to save and end; the same command goes on from there"
    # In a session of its own: signals come from here, once. It keeps the lock while it lives, also
    # where this process is killed.
    process = subprocess.Popen(command, cwd=checkout, start_new_session=True, pass_fds=(lock,))
    asked, told = threading.Event(), False
    try:
        with Interruption(asked, notice):
            while process.poll() is None:
                if asked.is_set() and not told:
                    process.send_signal(signal.SIGTERM)
                    told = True
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        raise
    return None if told else process.returncode
