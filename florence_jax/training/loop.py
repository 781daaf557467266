"""The run: batches in, updates out, and everything that has to survive on the way."""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from florence_jax.runtime.directory_lock import directory_lock
from florence_jax.training.aot_compile import AotCompiled
from florence_jax.training.build import TrainSetup, eval_params, make_preprocessor
from florence_jax.training.cached_features.vision_tower import with_features
from florence_jax.training.checkpointing.best import CheckpointPolicy
from florence_jax.training.checkpointing.manager import Checkpoints
from florence_jax.training.checkpointing.resume import (
    PROCESSOR,
    RunError,
    begin,
    check_data,
    init_or_restore,
)
from florence_jax.training.config import TrainConfig
from florence_jax.training.data.bad_rows import BadRowLog, TooManyProblems
from florence_jax.training.data.example import DataError, Source
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.preprocess import HostBatch
from florence_jax.training.data.registry import Named, source_notes, training_sources
from florence_jax.training.distributed import AnyProcess, is_first, is_of_another
from florence_jax.training.ending import Ending, Outcome
from florence_jax.training.evaluation import Evaluation
from florence_jax.training.interruption import Interrupted, Interruption
from florence_jax.training.metrics.flops import peak_flops, update_flops
from florence_jax.training.metrics.logger import RunLog, say
from florence_jax.training.metrics.profile import Profile
from florence_jax.training.preflight import Prepared, prepare, with_longest
from florence_jax.training.pretrained import PretrainedFiles
from florence_jax.training.state import TrainState
from florence_jax.training.step import merge_metrics


def train(config: TrainConfig, *, profile_steps: int = 0) -> Outcome:
    """Run until the last step, an interruption, or a loss that is not finite.

    Args:
        config: the settings; where `config.directory` holds a checkpoint, it is gone on from.
        profile_steps: write a jax profile of so many steps to RUN/profile.

    Raises:
        DirectoryInUseError: another run writes to the directory.
        RunError: a changed config, or a checkpoint that could not be saved.
        DataError, CheckpointError, SettingsError, ValueError: what is wrong with the settings.
        TooManyProblems: too many rows cannot be used.
    """
    directory = Path(config.directory)
    with tempfile.TemporaryDirectory(prefix="florence-run-") as temporary:
        files = Path(temporary) / PROCESSOR
        prepared = prepare(config, files, run=directory)
        say_notes([*(source for _, source, _ in prepared.sources), *prepared.valid.values()])
        pins = check_data(prepared.config, directory, prepared.sources)
        directory.mkdir(parents=True, exist_ok=True)
        # Of a run's processes the first writes what there is once; it keeps another run out.
        with directory_lock(directory) if is_first() else contextlib.nullcontext():
            begin(prepared.config, directory, files, pins)
            return _train(prepared, directory, profile_steps)


def _train(prepared: Prepared, directory: Path, profile_steps: int) -> Outcome:
    config, training = prepared.config, prepared.training
    share = training.placement.share
    padded = with_longest(config, prepared.start, prepared.sources) if share[1] > 1 else config
    stream = build_stream(padded, prepared.start, share, prepared.sources)
    start = dataclasses.replace(prepared.start, files=directory / PROCESSOR)
    total = sum(len(source) for _, source, _ in stream.sources)
    # Each process writes down what it sees: the first for all, the others of their own data.
    own = directory if is_first() else directory / f"process_{jax.process_index()}"
    own.mkdir(exist_ok=True)
    quarantine = BadRowLog(
        own / "quarantine.jsonl", share=config.data.quarantine_share, total=total
    )
    with contextlib.ExitStack() as stack:
        # First in and last out: a signal must not cut the last save short.
        interruption = stack.enter_context(Interruption(alone=jax.process_count() == 1))
        checkpoints = stack.enter_context(
            Checkpoints(directory / "checkpoints", config.checkpoint, report=say)
        )
        state, meta = init_or_restore(training, start, directory, checkpoints)
        if config.data.cached_features is not None:
            stream = with_features(stream, training, state.frozen)
        peak = config.logging.peak_flops or peak_flops(jax.devices()[0].device_kind)
        log = stack.enter_context(
            RunLog(
                own,
                dataclasses.replace(
                    config.logging, tensorboard=config.logging.tensorboard and is_first()
                ),
                first=int(state.step),
                steps=config.steps,
                peak_flops=peak,
            )
        )
        keeping = CheckpointPolicy(training, checkpoints, meta)
        run = Trainer(training, start, directory, keeping, interruption, log, quarantine)
        try:
            return run.fit(state, stream, prepared.valid, profile_steps)
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if not is_of_another(error):
                raise
            raise RunError(
                "a step that all processes take together failed, most likely because another "
                "process of the run ended: start all of them again with the same command, and the "
                f"run goes on from its last checkpoint ({error})"
            ) from error


def build_stream(
    config: TrainConfig,
    start: PretrainedFiles,
    share: tuple[int, int] = (0, 1),
    sources: Sequence[Named] | None = None,
) -> DataLoader:
    """The training data, or one of the equal shares that processes bring to each step.

    Args:
        sources: of the settings, where they are open already.
    """
    number, count = share
    if sources is None:
        sources = training_sources(config.data, config.seed)
    return DataLoader(
        sources=sources,
        # A share's longest row says nothing of the others', and all must have one shape.
        make_row=make_preprocessor(config.data, start, training=True, longest=count > 1),
        batch_size=config.batch_size,
        micro=config.accumulation,
        seed=config.seed,
        host=number,
        hosts=count,
        mix=config.data.mix,
    )


def say_notes(sources: Iterable[Source]) -> None:
    """What the data sets joined, cut or left out."""
    for note in source_notes(sources) if is_first() else ():
        say(f"note: {note}")


class Trainer:
    """One run under way."""

    def __init__(
        self,
        training: TrainSetup,
        start: PretrainedFiles,
        directory: Path,
        keeping: CheckpointPolicy,
        interruption: Interruption,
        log: RunLog,
        quarantine: BadRowLog,
    ):
        self.config, self.training, self.start = training.config, training, start
        self.directory, self.keeping = directory, keeping
        self.interruption, self.log, self.quarantine = interruption, log, quarantine
        self.last: dict[str, float] = {}
        self.any_process = AnyProcess()
        self.refused: TooManyProblems | None = None
        self.ending = Ending(training, start, directory, keeping, log, quarantine)

    def fit(
        self,
        state: TrainState,
        stream: DataLoader,
        valid: Mapping[str, Source],
        profile_steps: int,
    ) -> Outcome:
        """From `state` to the end of the run."""
        config, log, keeping = self.config, self.log, self.keeping
        first = int(state.step)
        placement = self.training.placement
        update = AotCompiled(
            self.training.placed_step,
            self.interruption,
            donate_first=True,
            mesh=placement.mesh,
            out_shardings=self._shardings(),
            name="the training step",
            say=log.say,
        )
        data = self.config.data
        evaluation = Evaluation(
            self.training, self.start, valid, self.interruption, say=log.say, drawing=log.reporting
        )
        batches = stream.batches(first, threads=data.threads, workers=data.workers)
        profile = Profile(self.directory / "profile", first, profile_steps)
        before = since_line = None
        and_one_more = jax.jit(merge_metrics)
        if first:
            log.say(f"going on at step {first} of {config.steps}")
            log.write("resumed", first, {})
        try:
            for step in itertools.count(first):
                # More than were asked for, where a constant rate's run goes on with fewer.
                done = step >= config.steps
                if (
                    self._due(config.evaluation.every, step, done)
                    and keeping.last_eval_step != step
                ):
                    self._check_finite(state)
                    if self._evaluate(evaluation, state, step):
                        self._save(state, step, best=True)
                if self._due(config.checkpoint.every, step, done):
                    self._check_finite(state)
                    self._save(state, step)
                if done:
                    break
                profile.at(step)
                batch = self._next(batches)
                compiling = update.seconds_compiling
                state, metrics = update(state, placement.batch(batch.arrays))
                # One step is always queued behind the one that runs, and no more: a signal is
                # answered within two steps.
                jax.block_until_ready(before)
                before = metrics
                since_line = and_one_more(since_line, metrics) if since_line else metrics
                log.leave_out(update.seconds_compiling - compiling)
                self._count(batch)
                with log.reporting():
                    self.quarantine.add(batch.problems)
                if (step + 1) % config.logging.every == 0 or step + 1 == config.steps:
                    numbers = jax.device_get(since_line._asdict())
                    self.last = {name: float(number) for name, number in numbers.items()}
                    since_line = None
                    self._check_finite(state)
                    log.training(step + 1, self.last)
                self._check((step + 1 - first) * config.batch_size // placement.share[1])
        except Interrupted:
            return self.ending.interrupted(state)
        except _NotFinite:
            return self.ending.not_finite(state)
        except (TooManyProblems, RunError, DataError):
            self.ending.refused(state)
            raise
        finally:
            profile.stop()
        return self.ending.done(state, self.last)

    def _shardings(self) -> tuple[TrainState, NamedSharding]:
        """Of what an update gives: the state as it was, and metrics that every process can read."""
        state = jax.tree.map(lambda leaf: leaf.sharding, self.training.placed_state())
        return state, NamedSharding(self.training.placement.mesh, PartitionSpec())

    def _check(self, seen: int) -> None:
        """End the run between two steps, in all processes at once, if any has a reason to.

        Args:
            seen: rows that this process has drawn since it started.
        """
        try:
            self.quarantine.check(seen)
        except TooManyProblems as error:
            self.refused = error
        if self.any_process(self.interruption.asked or self.refused is not None):
            raise self.refused or Interrupted

    def _due(self, every: int, step: int, done: bool) -> bool:
        return every > 0 and step > 0 and (step % every == 0 or done)

    def _next(self, batches: Iterator[HostBatch]) -> HostBatch:
        try:
            return next(batches)
        except Exception:
            # A signal to the whole process group ends the workers too, before they can answer.
            self.interruption.check()
            raise

    def _count(self, batch: HostBatch) -> None:
        labels = np.asarray(batch.arrays.labels)
        shares = self.training.placement.share[1]
        rows = labels.shape[0] * labels.shape[1] * shares
        questions = labels.shape[1] // batch.arrays.images.shape[1]
        self.log.count(
            tokens=int((labels != -100).sum()) * shares,
            images=rows // questions,
            flops=update_flops(
                self.training.objective.model.config,
                self.training.param_groups,
                rows=rows,
                questions=questions,
                image_size=self.start.image.size,
                prompt=batch.arrays.input_ids.shape[-1],
                target=labels.shape[-1],
                cached_features=self.config.data.cached_features is not None,
            ),
        )

    def _evaluate(self, evaluation: Evaluation, state: TrainState, step: int) -> bool:
        """Whether it is the best so far."""
        if not evaluation.sources:
            return False
        with self.log.pause():
            pictures = self.directory / "samples" / f"step_{step:08d}"
            scores = evaluation(eval_params(state), pictures)
            with self.log.reporting():
                self.quarantine.add(evaluation.problems, split="valid")
        self.log.write("evaluation", step, scores)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.log.say(f"step {step}: {shown}")
        return self.keeping.is_best(step, scores)

    def _save(self, state: TrainState, step: int, *, best: bool = False) -> None:
        with self.log.pause():
            self.keeping.save(state, step, best=best)

    def _check_finite(self, state: TrainState) -> None:
        if int(state.failed_at) >= 0:
            raise _NotFinite


class _NotFinite(Exception):
    pass
