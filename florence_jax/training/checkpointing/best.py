"""What a run under way keeps: its checkpoints, and which of them is the best."""

import math
from collections.abc import Mapping
from typing import Any

from florence_jax.training.build import TrainSetup, drop_frozen
from florence_jax.training.checkpointing.manager import Checkpoints
from florence_jax.training.checkpointing.resume import RunError
from florence_jax.training.config_loader import to_tree
from florence_jax.training.metrics.tasks import LOSSES
from florence_jax.training.state import TrainState


class CheckpointPolicy:
    """The checkpoints with what a run wants to find beside them.

    Attributes:
        best: {"step", "metric", "value"} of the best evaluation whose checkpoint is saved or being
            saved, or None.
        evaluated: the step of the last evaluation.
    """

    def __init__(self, training: TrainSetup, checkpoints: Checkpoints, meta: Mapping[str, Any]):
        """
        Args:
            meta: of the checkpoint that the run goes on from; empty for a new run.
        """
        self._training, self._checkpoints = training, checkpoints
        self.best: dict[str, Any] | None = meta.get("best")
        self._best_before: dict[str, Any] | None = None
        self.last_eval_step: int = meta.get("evaluated", 0)

    def is_best(self, step: int, scores: Mapping[str, float]) -> bool:
        """Whether the evaluation of a step is the best so far; it is, then, from now on.

        Raises:
            RunError: the metric that decides is not among the scores.
        """
        metric = self._training.config.evaluation.metric
        if metric not in scores:
            raise RunError(
                f"evaluation.metric={metric!r} is not among what is measured: {', '.join(scores)}"
            )
        self._forget_a_best_that_failed(step)
        self.last_eval_step = step
        value, sign = scores[metric], -1.0 if metric in LOSSES else 1.0
        before = self.best
        # A value of another metric, from before the run went on with this one, says nothing.
        comparable = before is not None and before["metric"] == metric
        if math.isnan(value):
            return False
        if before is not None and comparable and not sign * value > sign * before["value"]:
            return False
        self._best_before = self.best
        self.best = {"step": step, "metric": metric, "value": value}
        return True

    def save(self, state: TrainState, step: int, *, best: bool = False) -> None:
        """Start saving; what fails is reported, and the next save tries again."""
        self._forget_a_best_that_failed(step)
        config = self._training.config
        meta = {
            "step": step,
            "rows": step * config.batch_size,
            "config": to_tree(config),
            "best": self.best,
            "evaluated": self.last_eval_step,
        }
        true_shaped = self._training.placement.to_true_shape(drop_frozen(state))
        self._checkpoints.save(step, true_shaped, meta, best=best)

    def wait(self) -> None:
        """Until the last save is on disk.

        Raises:
            RunError: it could not be saved.
        """
        self._checkpoints.wait()
        failure = self._checkpoints.failure
        if failure is not None:
            steps = self._checkpoints.steps()
            raise RunError(f"the last checkpoint could not be saved: {failure}; there are {steps}")

    def _forget_a_best_that_failed(self, step: int) -> None:
        """What could not be saved is not the best that there is."""
        self._checkpoints.wait()
        if self.best is not None and self.best["step"] not in (step, self._checkpoints.best):
            self.best = self._best_before
