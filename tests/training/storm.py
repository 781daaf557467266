"""The program as a process of its own, to be killed and to be looked at from outside."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from florence_jax.training.checkpointing.manager import damage
from florence_jax.training.config import LoggingConfig, TrainConfig
from florence_jax.training.config_loader import to_tree
from florence_jax.training.loop import Outcome
from florence_jax.training.settings import CheckpointConfig
from tests.training.runs import a_config, final_state, lines

# Whatever a step's line says, the clock's readings aside.
EXACT = ("loss", "nll", "accuracy", "tokens", "examples", "grad_norm", "learning_rate")
EVERY, EVALUATE = 3, 16


def storm_config(directory: Path, *, steps: int) -> TrainConfig:
    """A run that saves so often that a save is under way most of the time.

    The decoder alone learns: the fewer gradients there are, the sooner a restart is at its step.
    """
    config = a_config(directory, steps=steps)
    rules = ((r"(vision_tower|projector|encoder)/.*", 0.0), (".*", 1.0))
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, rules=rules),
        checkpoint=CheckpointConfig(every=EVERY, keep_last=2, keep_every=4 * EVERY),
        evaluation=dataclasses.replace(config.evaluation, every=EVALUATE, images=0),
        logging=LoggingConfig(every=1, tensorboard=False),
    )


class Program:
    """`python -m train.main` under way, forked from a process that has imported it.

    Importing takes seconds, and a storm starts hundreds.
    """

    def __init__(self, config: TrainConfig, cache: Path, *, largest_file: int = 0):
        """
        Args:
            cache: directory of compiled programs.
            largest_file: bytes, as by `ulimit -f`; 0 for no limit.
        """
        # Not beside the run, whose disk may be full.
        beside = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, beside)
        recipe, self._output = beside / "recipe.json", beside / "said"
        recipe.write_text(json.dumps(to_tree(config)))
        arguments = (str(recipe), str(cache), str(self._output), largest_file)
        self._process = _FORKSERVER.Process(target=_main, args=arguments)
        self._process.start()

    @property
    def said(self) -> str:
        """What it has written to the terminal so far."""
        return self._output.read_text() if self._output.exists() else ""

    @property
    def ended(self) -> bool:
        return self._process.exitcode is not None

    def send(self, number: int) -> None:
        """Send a signal, if it is still there."""
        if not self.ended:
            os.kill(self._process.pid, number)

    def status(self) -> int:
        """Wait for its exit status: negative for the signal that killed it."""
        self._process.join()
        return self._process.exitcode

    def reaches(self, phase: Callable[[], bool], patience: float = 600.0) -> bool:
        """Whether `phase()` came true before it ended by itself."""
        until = time.monotonic() + patience
        while not phase():
            if self.ended:
                return False
            assert time.monotonic() < until, f"the phase was not reached: {self.said}"
            time.sleep(0.01)
        return True


_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["train.main", "florence_jax.training.loop"])


def _main(recipe: str, cache: str, output: str, largest_file: int) -> None:
    """The child's part."""
    import jax

    from florence_jax.cli.train import main

    terminal = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(terminal, descriptor)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    status = main(["--config", recipe])
    sys.stderr.flush()
    os._exit(status)


def completed(config: TrainConfig, cache: Path) -> Path:
    """The directory of a run that is left alone until its end."""
    program = Program(config, cache)
    assert program.status() == Outcome.DONE, program.said
    return Path(config.directory)


def finished(directory: Path) -> list[int]:
    """Steps of the finished checkpoints, each of which must be whole."""
    found = sorted(path for path in (directory / "checkpoints").glob("step_????????"))
    problems = {path.name: damage(path) for path in found}
    assert not any(problems.values()), problems
    return [int(path.name.removeprefix("step_")) for path in found]


def state_digest(directory: Path) -> str:
    """sha256 over every leaf of the newest state."""
    digest = hashlib.sha256()
    for name, content in sorted(final_state(directory).items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()


class Log:
    """metrics.jsonl of an undisturbed run, to hold others against.

    Attributes:
        replayed: steps that other runs computed more than once.
        compared: lines that were held against this one's.
    """

    def __init__(self, directory: Path):
        self._train = {row["step"]: exact(row) for row in lines(directory, "train")}
        self._evaluations = {row["step"]: row for row in lines(directory, "evaluation")}
        self.replayed = self.compared = 0

    def compare(self, directory: Path) -> None:
        """Every line of another run's, steps done twice included, has the same bits."""
        rows = lines(directory, "train")
        for row in rows:
            assert exact(row) == self._train[row["step"]], row
        evaluations = lines(directory, "evaluation")
        for row in evaluations:
            assert row == self._evaluations[row["step"]]
        self.replayed += len(rows) - len({row["step"] for row in rows})
        self.compared += len(rows) + len(evaluations)


def exact(row) -> list[str]:
    # JSON's shortest decimal of a double is one to one, and float32 to double is exact.
    return [float(row[name]).hex() for name in EXACT]
