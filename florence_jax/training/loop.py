"""The training loop: batches in, updates out, checkpoints, evaluations, and how a run ends."""

import contextlib
import dataclasses
import enum
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.runtime.signals import Interrupted, Interruption
from florence_jax.training.aot_compile import AotCompiled
from florence_jax.training.checkpointing.manager import Checkpoints
from florence_jax.training.checkpointing.resume import (
    PROCESSOR,
    CheckpointPolicy,
    RunError,
    begin,
    has_begun,
    init_or_restore,
)
from florence_jax.training.data.example import DataError
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.distributed import AnyProcess, is_first, is_of_another
from florence_jax.training.metrics.flops import peak_flops
from florence_jax.training.metrics.logger import BadRowLog, Profile, RunLog, TooManyProblems, say
from florence_jax.training.metrics.trackers import check_packages
from florence_jax.training.metrics.writers import open_writers
from florence_jax.training.run import Evaluator, Run, prepare_run
from florence_jax.training.run_config import RunConfig
from florence_jax.training.state import Batch, TrainState, drop_frozen, eval_params, not_finite
from florence_jax.training.step import Metrics, merge_metrics


class Outcome(enum.IntEnum):
    """How a run ended, as the exit status of the program."""

    DONE = 0
    FAILED = 1
    INTERRUPTED = 143  # what a shell reports of a process that SIGTERM ended


def train(config: RunConfig, *, profile_steps: int = 0) -> Outcome:
    """Run until the last step, an interruption, or a loss that is not finite.

    Args:
        config: the settings. Where `config.directory` holds a checkpoint, the run resumes from it.
        profile_steps: number of steps to trace with the jax profiler into RUN/profile.

    Raises:
        DirectoryInUseError: another run writes to the directory.
        RunError: the config differs from that of the run to resume, or a checkpoint could not be
            saved.
        DataError, CheckpointError, SettingsError, ValueError: the settings do not fit.
        TooManyProblems: too many rows cannot be used.
    """
    began, directory = time.perf_counter(), Path(config.directory)
    check_packages(config.logging)
    with tempfile.TemporaryDirectory(prefix="florence-run-") as temporary:
        resumed = has_begun(directory)
        files = (directory if resumed else Path(temporary)) / PROCESSOR
        run = prepare_run(config, files, resumed=resumed)
        for note in run.notes if is_first() else ():
            say(f"note: {note}")
        directory.mkdir(parents=True, exist_ok=True)
        # The first process writes the run's files, and its lock keeps other runs out.
        with directory_lock(directory) if is_first() else contextlib.nullcontext():
            begin(run.config, directory, files, run.pin)
            return _train(run.at(directory / PROCESSOR), directory, profile_steps, began)


def _train(run: Run, directory: Path, profile_steps: int, began: float) -> Outcome:
    config, setup = run.config, run.setup
    # The first process logs for all; each of the others logs what its own data hold.
    own = directory if is_first() else directory / f"process_{jax.process_index()}"
    own.mkdir(exist_ok=True)
    bad_rows = BadRowLog(
        own / "quarantine.jsonl", share=config.data.quarantine_share, total=run.rows
    )
    with contextlib.ExitStack() as stack:
        # Entered first and left last: a signal must not cut the last save short.
        interruption = stack.enter_context(Interruption(alone=jax.process_count() == 1))
        checkpoints = stack.enter_context(
            Checkpoints(directory / "checkpoints", config.checkpoint, report=say)
        )
        state, meta = init_or_restore(setup, run.first_parameters, directory, checkpoints)
        loader = run.loader(state)
        first = int(state.step)
        log = stack.enter_context(
            RunLog(
                open_writers(own, config, first=first, shared=is_first(), say=say),
                first=first,
                steps=setup.steps,
                peak_flops=config.logging.peak_flops or peak_flops(jax.devices()[0].device_kind),
                starting=time.perf_counter() - began,
            )
        )
        policy = CheckpointPolicy(setup, checkpoints, meta)
        trainer = Trainer(run, directory, policy, interruption, log, bad_rows)
        try:
            return trainer.fit(state, loader, profile_steps)
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if not is_of_another(error):
                raise
            raise RunError(
                "a step that all processes take together failed, most likely because another "
                "process of the run ended: start all of them again with the same command, and the "
                f"run goes on from its last checkpoint ({error})"
            ) from error


class Trainer:
    """The loop of one run, and its ways to end."""

    def __init__(
        self,
        run: Run,
        directory: Path,
        policy: CheckpointPolicy,
        interruption: Interruption,
        log: RunLog,
        bad_rows: BadRowLog,
    ):
        self.config, self.setup, self.run = run.config, run.setup, run
        self.directory, self.policy = directory, policy
        self.interruption, self.log, self.bad_rows = interruption, log, bad_rows
        self.last: dict[str, float] = {}
        # Figures of the evaluations before the first step and of the latest.
        self.before: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.any_process = AnyProcess()
        self.refused: TooManyProblems | None = None

    def fit(self, state: TrainState, loader: DataLoader, profile_steps: int) -> Outcome:
        """Train from `state` to the end of the run."""
        config, log = self.config, self.log
        first, steps = int(state.step), self.setup.steps
        placement = self.setup.placement
        update = AotCompiled(
            self.setup.padded_step,
            self.interruption,
            donate_first=True,
            mesh=placement.mesh,
            out_shardings=self._shardings(),
            name="the training step",
            say=log.say,
        )
        evaluation = self.run.evaluator(self.interruption, say=log.say, drawing=log.reporting)
        batches = loader.batches(first, threads=config.data.threads, workers=config.data.workers)
        profile = Profile(self.directory / "profile", first, profile_steps)
        before = since_line = None
        and_one_more = jax.jit(merge_metrics)
        if first:
            log.say(f"going on at step {first} of {steps}")
            log.write("resumed", first, {})
        try:
            if config.evaluation.before and not first:
                self.before = self._evaluate(evaluation, state, 0)
            for step in itertools.count(first):
                # Past the last step, where a run with a constant rate resumes with fewer steps.
                done = step >= steps
                evaluated = self.policy.last_eval_step == step
                if _is_due(config.evaluation.every, step, done) and not evaluated:
                    self._check_finite(state)
                    self.latest = self._evaluate(evaluation, state, step)
                    if self.latest and self.policy.is_best(step, self.latest):
                        self._save(state, step, best=True)
                if _is_due(config.checkpoint.every, step, done):
                    self._check_finite(state)
                    self._save(state, step)
                if done:
                    break
                profile.at(step)
                batch = self._next(batches, before)
                compiling = update.seconds_compiling
                state, metrics = update(state, placement.batch(batch))
                # One step is always queued behind the one that runs, and no more: a signal is
                # answered within two steps.
                jax.block_until_ready(before)
                before = metrics
                since_line = and_one_more(since_line, metrics) if since_line else metrics
                log.leave_out(update.seconds_compiling - compiling, "compilation")
                self._count(batch)
                with log.reporting():
                    self.bad_rows.add(batch.problems)
                if (step + 1) % config.logging.every == 0 or step + 1 == steps:
                    numbers = jax.device_get(since_line._asdict())
                    self.last = {name: float(number) for name, number in numbers.items()}
                    since_line = None
                    self._check_finite(state)
                    log.training(step + 1, self.last)
                self._check((step + 1 - first) * config.batch_size // placement.share[1])
        except Interrupted:
            return self._finish_interrupted(state)
        except _NotFinite:
            return self._finish_not_finite(state)
        except (TooManyProblems, RunError, DataError):
            # Once the rows or the evaluation are mended, the run goes on from here.
            if int(state.failed_at) < 0:
                self._save(state, int(state.step))
            raise
        finally:
            profile.stop()
        return self._finish_done(state)

    def _shardings(self) -> tuple[TrainState, NamedSharding]:
        """Shardings of an update's results: of the state, and of metrics on every process."""
        state = jax.tree.map(lambda leaf: leaf.sharding, self.setup.padded_state())
        return state, NamedSharding(self.setup.placement.mesh, PartitionSpec())

    def _check(self, seen: int) -> None:
        """End the run between two steps, in all processes at once, if any has a reason to.

        Args:
            seen: rows that this process has drawn since it started.
        """
        try:
            self.bad_rows.check(seen)
        except TooManyProblems as error:
            self.refused = error
        if self.any_process(self.interruption.asked or self.refused is not None):
            raise self.refused or Interrupted

    def _next(self, batches: Iterator[Batch], before: Metrics | None) -> Batch:
        """The next batch; `before` are the metrics of the step that the device works on."""
        began = time.perf_counter()
        try:
            batch = next(batches)
            # jax's declared type of arrays lacks the method, which all of them have.
            if before is None or before.loss.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
                # The device waited too, at least for a part of this.
                self.log.goodput.lose(time.perf_counter() - began, "data")
            return batch
        except Exception:
            # A signal to the whole process group ends the workers too, before they can answer.
            self.interruption.check()
            raise

    def _count(self, batch: Batch) -> None:
        labels, images, flops = self.run.count(batch)
        self.log.count(tokens=labels, images=images, flops=flops)

    def _evaluate(self, evaluation: Evaluator, state: TrainState, step: int) -> dict[str, float]:
        """Evaluate, log and return every figure by name; none without validation data."""
        if not evaluation.sources:
            return {}
        with self.log.pause("evaluation"):
            samples = self.directory / "samples" / f"step_{step:08d}"
            scores = evaluation(eval_params(state), samples, is_before=step == 0)
            with self.log.reporting():
                self.bad_rows.add(evaluation.problems, split="valid")
            self.log.write("evaluation", step, scores)
            self.log.pictures(step, samples)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.log.say(f"step {step}: {shown}")
        return scores

    def _save(self, state: TrainState, step: int, *, best: bool = False) -> None:
        with self.log.pause("checkpoint"):
            self.policy.save(state, step, best=best)

    def _check_finite(self, state: TrainState) -> None:
        if int(state.failed_at) >= 0:
            raise _NotFinite

    def _finish_done(self, state: TrainState) -> Outcome:
        """End after the last step: export, and sum up."""
        self.policy.wait()
        step = int(state.step)
        if self.before and self.latest:
            changes = [f"{k} {self.before[k]:.4f} -> {v:.4f}" for k, v in self.latest.items()]
            self.log.say(f"before -> after: {', '.join(changes)}")
        lines = [f"done: {step} steps in {self.log.seconds / 60:.1f} minutes, in {self.directory}"]
        if self.last:
            lines.append(f"last loss {self.last['loss']:.4f}, accuracy {self.last['accuracy']:.2%}")
        if self.policy.best is not None:
            lines.append("best {metric} {value:.4f} at step {step}".format(**self.policy.best))
        lines.append(str(self.log.goodput))
        if len(self.bad_rows):
            lines.append(f"{len(self.bad_rows)} rows could not be used: {self.bad_rows.path}")
        if self.config.export.at_end:
            exported = self.run.export(self.setup.placement.to_true_shape(state))
            lines += [f"exported {path}" for path in exported]
        self._finish("; ".join(lines))
        self.log.write("done", step, self.log.goodput.figures())
        return Outcome.DONE

    def _finish_interrupted(self, state: TrainState) -> Outcome:
        """End after a signal, in any phase."""
        if int(state.failed_at) >= 0:
            return self._finish_not_finite(state)
        step = int(state.step)
        self._save(state, step)
        self._finish(f"interrupted and saved at step {step}: the same command goes on from there")
        return Outcome.INTERRUPTED

    def _finish_not_finite(self, state: TrainState) -> Outcome:
        """End after a loss, gradient or update that is not finite; `state` is the last good one."""
        step = int(state.failed_at)
        self.log.write("not finite", step, {})
        begun = (
            f"stopped: the loss, its gradient or the update was not finite in the step after {step}"
        )
        bad = not_finite(drop_frozen(state))
        if bad:
            # No step writes such numbers: the run started from them.
            self._finish(
                f"{begun}, and nothing is saved, because {', '.join(bad[:3])} "
                f"{'has' if len(bad) == 1 else 'have'} numbers that are not finite already before "
                "it: check what model.start names, or model.from_scratch"
            )
            return Outcome.FAILED
        good = dataclasses.replace(state, failed_at=jax.numpy.full_like(state.failed_at, -1))
        self._save(good, step)
        self._finish(
            f"{begun}; the last good state is saved as step {step}. Lower optimizer.learning_rate "
            "or optimizer.weight_decay, lengthen the warm-up or set model.dtype=float32 in a new "
            f"run; `python -m train.export {self.directory}` makes its model.start"
        )
        return Outcome.FAILED

    def _finish(self, text: str) -> None:
        """Say how the run ended, once its last checkpoint is on disk."""
        self.policy.wait()
        self.log.say(text)


def _is_due(every: int, step: int, done: bool) -> bool:
    return every > 0 and step > 0 and (step % every == 0 or done)


class _NotFinite(Exception):
    pass
