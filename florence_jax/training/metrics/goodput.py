"""Goodput: the share of a run's time in which it trained, and what took the rest."""

import math
import time
from typing import Literal

Cause = Literal["start", "compilation", "data", "checkpoint", "evaluation"]


class Goodput:
    """Seconds of a run by what they were spent on.

    "start" is reading settings, data and weights, or the checkpoint of a resumed run; "data" is
    time in which the device had nothing to do because no batch was ready.
    """

    def __init__(self, starting: float = 0.0):
        """
        Args:
            starting: seconds before this, since the run was called.
        """
        self._began = time.perf_counter() - starting
        self.lost: dict[Cause, float] = {
            "start": starting,
            **dict.fromkeys(("compilation", "data", "checkpoint", "evaluation"), 0.0),
        }
        self._steps, self._mean, self._squares = 0, 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Since the run was called."""
        return time.perf_counter() - self._began

    @property
    def productive(self) -> float:
        """Seconds that went into steps."""
        return max(self.seconds - sum(self.lost.values()), 0.0)

    @property
    def share(self) -> float:
        """Productive seconds of all, in 0..1."""
        return self.productive / max(self.seconds, 1e-9)

    def lose(self, seconds: float, cause: Cause) -> None:
        """Seconds that went into something else."""
        self.lost[cause] += seconds

    def steps(self, seconds: float, count: int) -> None:
        """`count` more steps of `seconds` each on average."""
        if not count:
            return
        # Welford's update, of `count` equal values at a time.
        self._steps += count
        before = seconds - self._mean
        self._mean += before * count / self._steps
        self._squares += count * before * (seconds - self._mean)

    @property
    def step_seconds(self) -> tuple[float, float]:
        """Mean and standard deviation of a step, between lines of the log; 0 before the first."""
        return self._mean, math.sqrt(self._squares / self._steps) if self._steps else 0.0

    def figures(self) -> dict[str, float]:
        """Every figure by name, for the log."""
        mean, deviation = self.step_seconds
        return {
            "seconds": self.seconds,
            "goodput": self.share,
            **{f"seconds_{cause}": seconds for cause, seconds in self.lost.items()},
            "seconds_per_step": mean,
            "seconds_per_step_deviation": deviation,
        }

    def __str__(self) -> str:
        """Such as "goodput 83 % of 620 s (compilation 9 %, data 4 %, ...), steps 1.21 s +- 3 %"."""
        seconds, (mean, deviation) = self.seconds, self.step_seconds
        worst = sorted(self.lost.items(), key=lambda one: -one[1])
        lost = ", ".join(f"{cause} {lost / max(seconds, 1e-9):.1%}" for cause, lost in worst)
        spread = f"{deviation / mean:.0%}" if mean else "0%"
        return (
            f"goodput {self.share:.1%} of {seconds:.0f} s ({lost}); a step {mean:.3g} s +- {spread}"
        )
