"""A run's checkpoints: saved while training goes on, named only when whole, verified when read.

    RUN/checkpoints/step_00000100/
        state/          Orbax arrays: every leaf of the state under its name
        meta.json       whatever the run wants to find again (data position, config, metrics)
        manifest.json   sha256 of every file, shape and dtype of every array

`florence_jax.training.checkpointing.manager` says why Orbax alone does not do.
"""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from florence_jax.runtime.atomic_dir import make_durable, sync
from florence_jax.runtime.jsonl import sealed_json
from florence_jax.runtime.orbax_failures import quiet_failures
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, parse_json, read_bytes, read_json
from florence_jax.training.distributed import broadcast_bool, is_first, wait_for_all
from florence_jax.training.settings import CheckpointConfig

_META = "meta.json"
_STATE = "state"
_NAME = re.compile(r"step_(\d{8})")


MANIFEST = "manifest.json"
_FORMAT = "florence-jax-run-1"


class RestoreError(ValueError):
    """A checkpoint that cannot be what is asked for; the message names the difference."""


class Checkpoints:
    """The checkpoints of one run directory. One writer at a time; use it as a context manager.

    Attributes:
        best: the step of the finished checkpoint that is the best so far by the run's metric, or
            None. A run that goes on says so again, for it is not known from the files.
    """

    def __init__(
        self,
        directory: str | Path,
        config: CheckpointConfig,
        *,
        report: Callable[[str], None] = print,
        writes: bool = True,
    ):
        """
        Args:
            report: Called with a line on damage and on each save that failed.
            writes: False only reads, and leaves alone what a writer may be saving right now.
        """
        self.directory = Path(directory).absolute()
        self.config = config
        self._report = report
        quiet_failures()
        self._saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._finishing: threading.Thread | None = None
        self._failure: Exception | None = None
        # Found so by `restore`: they make room for the next good one.
        self._damaged: set[int] = set()
        self.best: int | None = None
        if not writes:
            return
        if is_first():
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob("*.saving*"):
                shutil.rmtree(leftover)
        wait_for_all("the directory of checkpoints")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        try:
            self._saver.close()
        except Exception as error:
            # Orbax raises here once more what a save failed of, which has been reported, in place
            # of whatever ends the run.
            if self._failure is None:
                self._report(f"while the checkpoints in {self.directory} were closed: {error}")

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, oldest first."""
        names = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def save(self, step: int, state: Any, meta: Mapping[str, Any], *, best: bool = False) -> None:
        """Start saving `state`; returns once its arrays may be donated.

        A save that fails (a full disk, a directory that became read-only) is reported, older
        checkpoints stay as they are, and the next save tries again.

        Args:
            best: this is the best so far by the run's metric, kept until a better one.
        """
        self.wait()
        if broadcast_bool(self.path(step).exists()) and step not in self._damaged:
            if best:
                self.best = step
            return
        aside = self.directory / f"step_{step:08d}.saving"
        try:
            if is_first():
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
            wait_for_all("a checkpoint's directory")
            leaves = named_leaves(state)
            self._saver.save(aside / _STATE, args=ocp.args.PyTreeSave(leaves))
        except Exception as error:
            self._failed(step, aside, error)
            return
        arrays = {
            name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
            for name, leaf in leaves.items()
        }
        self._finishing = threading.Thread(
            target=self._finish, args=(step, aside, dict(meta), arrays, best), name="checkpoint"
        )
        self._finishing.start()

    def wait(self) -> None:
        """Wait until the save in progress, if any, is finished or has failed."""
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None

    @property
    def failure(self) -> Exception | None:
        """The error that the last save failed with, or None."""
        return self._failure

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The newest undamaged checkpoint as (state, meta), or None if there is none.

        A damaged one is reported and the one before it is tried.

        Args:
            abstract: the state as `jax.ShapeDtypeStruct`s, with the shardings to restore to.
            step: The only step to restore; by default the newest that is undamaged.

        Raises:
            RestoreError: it holds other arrays, shapes or dtypes than `abstract`; or all that
                there are, are damaged.
        """
        damaged: list[int] = []
        for candidate in reversed(self.steps()):
            if step not in (None, candidate):
                continue
            path = self.path(candidate)
            problem = damage(path) if is_first() else None
            if broadcast_bool(problem is not None):
                self._report(f"{path} is damaged ({problem}): trying the one before it")
                damaged.append(candidate)
                continue
            self._damaged = set(damaged)
            return self._read(path, abstract)
        if damaged:
            raise RestoreError(
                f"every checkpoint of {self.directory} is damaged ({len(damaged)}): restore one "
                "from a backup, or start again in another run directory"
            )
        return None

    def _read(self, path: Path, abstract: Any) -> tuple[Any, dict[str, Any]]:
        wanted = named_leaves(abstract)
        stored = stored_arrays(path)
        problems = [f"{name} is not in it" for name in wanted if name not in stored]
        problems += [f"{name} belongs to another run" for name in stored if name not in wanted]
        for name in wanted.keys() & stored.keys():
            mine = {"shape": list(wanted[name].shape), "dtype": str(wanted[name].dtype)}
            if stored[name] != mine:
                problems.append(f"{name} is {_describe(stored[name])}, expected {_describe(mine)}")
        if problems:
            shown = "; ".join(sorted(problems)[:5])
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise RestoreError(f"{path} holds another state: {shown}{more}")
        arguments = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
        )
        leaves = self._saver.restore(path / _STATE, args=arguments)
        state = jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in wanted])
        return state, read_json(path / _META, max_bytes=MAX_SETTINGS_BYTES)

    def _finish(
        self, step: int, aside: Path, meta: dict[str, Any], arrays: dict[str, Any], best: bool
    ) -> None:
        try:
            self._saver.wait_until_finished()
            if jax.process_index() == 0:
                (aside / _META).write_text(json.dumps(meta, indent=1))
                write_manifest(aside, arrays)
                make_durable(aside)
                if self.path(step).exists():
                    self._remove(step)
                aside.rename(self.path(step))
                sync(self.directory)
            self._damaged.discard(step)
        except Exception as error:
            self._failed(step, aside, error)
            return
        self._failure = None
        # Only now: until this one is finished, the best before it must not be removed.
        if best:
            self.best = step
        try:
            self._prune()
        except OSError as error:
            self._report(f"an old checkpoint in {self.directory} could not be removed: {error}")

    def _failed(self, step: int, aside: Path, error: Exception) -> None:
        self._failure = error
        # Half a checkpoint must not take the room that a log, or the next one, could have.
        shutil.rmtree(aside, ignore_errors=True)
        self._report(
            f"the checkpoint of step {step} could not be saved in {self.directory}: {error}; "
            f"older ones ({self.steps()}) are intact, the next save tries again"
        )

    def _prune(self) -> None:
        if jax.process_index() != 0:
            return
        config = self.config
        steps = [step for step in self.steps() if step not in self._damaged]
        kept = set(steps[-config.keep_last :])
        if config.keep_every:
            kept |= {step for step in steps if step % config.keep_every == 0}
        if config.keep_best and self.best is not None:
            kept.add(self.best)
        for step in self.steps():
            if step not in kept:
                self._remove(step)

    def _remove(self, step: int) -> None:
        # Renamed first: a kill halfway leaves no directory that looks like a checkpoint.
        doomed = self.directory / f"step_{step:08d}.saving-old"
        shutil.rmtree(doomed, ignore_errors=True)
        self.path(step).rename(doomed)
        shutil.rmtree(doomed)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Every leaf by a name made of its path, in the tree's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _describe(array: Mapping[str, Any]) -> str:
    return f"{array['dtype']}{array['shape']}"


def write_manifest(directory: Path, arrays: Mapping[str, Mapping[str, Any]]) -> None:
    """Describe every file below `directory` as it is now.

    Args:
        arrays: by name, {"shape": [...], "dtype": "..."}.
    """
    files = {name: digest(directory / name) for name in sorted(_files(directory))}
    fields = {"format": _FORMAT, "files": files, "arrays": dict(arrays)}
    (directory / MANIFEST).write_bytes(sealed_json(fields))


def stored_arrays(directory: Path) -> dict[str, dict[str, Any]]:
    """{"shape", "dtype"} of each array of an undamaged checkpoint, by name."""
    return read_json(directory / MANIFEST, max_bytes=MAX_SETTINGS_BYTES)["arrays"]


def damage(directory: Path) -> str | None:
    """A description of the damage to a checkpoint's files, or None. Reads every byte."""
    try:
        content = read_bytes(directory / MANIFEST, max_bytes=MAX_SETTINGS_BYTES)
        fields = parse_json(content, MANIFEST)
        fields.pop("sha256")
        files = fields["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    if sealed_json(fields) != content:
        return f"{MANIFEST} does not have the sha256 that it ends with"
    present = _files(directory)
    for name, expected in files.items():
        if name not in present:
            return f"{name} is missing"
        try:
            found = digest(directory / name)
        except OSError as error:
            return f"{name} cannot be read: {error}"
        if found != expected:
            return f"{name} has other bytes than when it was written"
    extra = sorted(present - files.keys())
    return f"{extra[0]} was not written with it" if extra else None


def digest(file: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(directory: Path) -> set[str]:
    """Every file by relative name, the manifest aside."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {file.relative_to(directory).as_posix() for file in files} - {MANIFEST}
