"""How a run ends: what is saved, said and written down, and the exit status."""

import dataclasses
import enum
from pathlib import Path

import jax

from florence_jax.training.build import TrainSetup, drop_frozen
from florence_jax.training.checkpointing.best import CheckpointPolicy
from florence_jax.training.data.bad_rows import BadRowLog
from florence_jax.training.export import export_run
from florence_jax.training.metrics.logger import RunLog
from florence_jax.training.pretrained import PretrainedFiles
from florence_jax.training.state import TrainState, not_finite


class Outcome(enum.IntEnum):
    """How a run ended: the program's exit status."""

    DONE = 0
    FAILED = 1
    INTERRUPTED = 143  # what a shell reports of a process that SIGTERM ended


class Ending:
    """The endings of one run; whichever is called is the last thing that it does."""

    def __init__(
        self,
        training: TrainSetup,
        start: PretrainedFiles,
        directory: Path,
        keeping: CheckpointPolicy,
        log: RunLog,
        quarantine: BadRowLog,
    ):
        self._training, self._start, self._directory = training, start, directory
        self._keeping, self._log, self._quarantine = keeping, log, quarantine

    def done(self, state: TrainState, last: dict[str, float]) -> Outcome:
        """After the last step; `last` are the metrics that were logged last."""
        training, keeping, log = self._training, self._keeping, self._log
        keeping.wait()
        step = int(state.step)
        lines = [f"done: {step} steps in {log.seconds / 60:.1f} minutes, in {self._directory}"]
        if last:
            lines.append(f"last loss {last['loss']:.4f}, accuracy {last['accuracy']:.2%}")
        if keeping.best is not None:
            lines.append("best {metric} {value:.4f} at step {step}".format(**keeping.best))
        if len(self._quarantine):
            rows = len(self._quarantine)
            lines.append(f"{rows} rows could not be used: {self._quarantine.path}")
        if training.config.export.at_end:
            stored = training.placement.to_true_shape(state)
            lines += [f"exported {path}" for path in export_run(training, self._start, stored)]
        self._saved("; ".join(lines))
        log.write("done", step, {"seconds": log.seconds})
        return Outcome.DONE

    def interrupted(self, state: TrainState) -> Outcome:
        """By a signal, in any phase."""
        if int(state.failed_at) >= 0:
            return self.not_finite(state)
        step = int(state.step)
        self._save(state, step)
        self._saved(f"interrupted and saved at step {step}: the same command goes on from there")
        return Outcome.INTERRUPTED

    def not_finite(self, state: TrainState) -> Outcome:
        """By a loss, gradient or update that is not finite; `state` is the last good one."""
        step = int(state.failed_at)
        self._log.write("not finite", step, {})
        begun = (
            f"stopped: the loss, its gradient or the update was not finite in the step after {step}"
        )
        bad = not_finite(drop_frozen(state))
        if bad:
            # Only what the run started from can be so: no step makes it.
            self._saved(
                f"{begun}, and nothing is saved, because {', '.join(bad[:3])} "
                f"{'has' if len(bad) == 1 else 'have'} numbers that are not finite already before "
                "it: check what model.start names, or model.from_scratch"
            )
            return Outcome.FAILED
        good = dataclasses.replace(state, failed_at=jax.numpy.full_like(state.failed_at, -1))
        self._save(good, step)
        self._saved(
            f"{begun}; the last good state is saved as step {step}. Lower optimizer.learning_rate "
            "or optimizer.weight_decay, lengthen the warm-up or set model.dtype=float32 in a new "
            f"run; `python -m train.export {self._directory}` makes its model.start"
        )
        return Outcome.FAILED

    def refused(self, state: TrainState) -> None:
        """By rows or an evaluation that cannot be used: once that is mended it goes on."""
        if int(state.failed_at) < 0:
            self._save(state, int(state.step))

    def _save(self, state: TrainState, step: int) -> None:
        with self._log.pause():
            self._keeping.save(state, step)

    def _saved(self, text: str) -> None:
        """Say how the run ended, once its last checkpoint is on disk."""
        self._keeping.wait()
        self._log.say(text)
