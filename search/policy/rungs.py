"""ASHA's rungs: which trials continue. Pure functions: no Ray, no clock, no randomness.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the stopping
variant that Ray Tune's `AsyncHyperBandScheduler` implements; a test holds `RungRule.RAYS` against it.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WORST = 0.0  # rung value of a diverged trial
ONE_SIDED_95 = 1.645  # 95 % quantile of the standard normal distribution


class RungRule(Enum):
    """Which trials do not pass a rung.

    RAYS: trials below the cutoff. Trials that all have the same chance accuracy pass together.
    OURS: also trials at the cutoff, and trials at chance if any trial is above chance. If no trial is above chance,
        as at a rung before the network has learned anything, only Ray's rule applies.
    """

    RAYS = "rays"
    OURS = "ours"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Decision of a rung about one trial.

    Attributes:
        passed: whether the trial continues.
        cutoff: value that the trial had to exceed; None for the first trial at the rung.
        why: reason for not passing; None if the trial passed.
    """

    passed: bool
    cutoff: float | None
    why: Literal["below", "tied", "chance"] | None = None


class Rungs:
    """Values of the trials that reached each rung.

    A trial passes a rung when its value is above the (1 - 1 / reduction) quantile of the values that *other* trials
    had there; the first trial passes. `rule` can add conditions.

    Args:
        rung_epochs: epochs at which trials are compared, ascending; trials end at the last.
        reduction_factor: about one trial in so many passes.
        rule: which trials pass.
        chance: the highest accuracy of a run that only guesses (`chance_accuracy`), 0 to 1; None if unknown. Then
            `RungRule.OURS` differs from Ray's rule only in ties.
    """

    def __init__(
        self,
        rung_epochs: tuple[int, ...],
        reduction_factor: int,
        rule: RungRule = RungRule.OURS,
        chance: float | None = None,
    ) -> None:
        self._share = (1 - 1 / reduction_factor) * 100 / 100
        self._rule = rule
        self._chance = chance
        self._epochs = rung_epochs[:-1]
        self._arrived: dict[int, set[int]] = {epoch: set() for epoch in self._epochs}
        # Kept ascending, so that a cutoff needs no sorting.
        self._values: dict[int, list[float]] = {epoch: [] for epoch in self._epochs}

    def arrive(self, trial: int, epoch: int, value: float) -> Verdict | None:
        """Record a result of a trial.

        Args:
            trial: number of the trial.
            epoch: of the result, from 1.
            value: validation accuracy, finite.

        Returns:
            The verdict; None if `epoch` has no rung, or the trial was recorded at it before.
        """
        arrived = self._arrived.get(epoch)
        if arrived is None or trial in arrived:
            return None
        values = self._values[epoch]
        cutoff = quantile(values, self._share) if values else None
        arrived.add(trial)
        bisect.insort(values, value)
        why = None if cutoff is None else self._why_not(value, cutoff, values[-1])
        return Verdict(passed=why is None, cutoff=cutoff, why=why)

    def diverge(self, trial: int, epoch: int, goes_to_the_end: bool) -> None:
        """Record a diverged trial, with the value `WORST` at the next rung.

        Args:
            trial: number of the trial.
            epoch: epoch in which training diverged, from 1.
            goes_to_the_end: whether no rung stops the trial. Then it has the value `WORST` at all later rungs.
        """
        if self._rule is RungRule.RAYS:
            self.arrive(trial, epoch, WORST)
            return
        ahead = [rung for rung in self._epochs if rung >= epoch]
        for rung in ahead if goes_to_the_end else ahead[:1]:
            self.arrive(trial, rung, WORST)

    def _why_not(self, value: float, cutoff: float, best: float) -> Literal["below", "tied", "chance"] | None:
        below: Literal["below"] | None = "below" if value < cutoff else None
        if self._rule is RungRule.RAYS or (self._chance is not None and best <= self._chance):
            return below
        if self._chance is not None and value <= self._chance:
            return "chance"
        return "tied" if value == cutoff else below


def refusal_text(verdict: Verdict, value: float, epoch: int) -> str:
    """Why a trial did not pass a rung, as a phrase for messages."""
    if verdict.why == "chance":
        return f"at chance ({value:.2%}) at rung {epoch}, where others have learned"
    if verdict.why == "tied":
        return f"tied with the cutoff {verdict.cutoff:.2%} of rung {epoch}"
    return f"{value:.2%} at rung {epoch}, below its cutoff {verdict.cutoff:.2%}"


def chance_accuracy(labels: NDArray[np.int64]) -> float:
    """Highest accuracy that a model which only guesses reaches on images with these labels.

    The best guess is always the commonest class, and is right with probability p. Its accuracy on n images exceeds
    p + 1.645 sqrt(p (1 - p) / n) in 5 % of cases (one-sided, normal approximation of the binomial distribution).

    Args:
        labels: (N,) class indices of the validation images, N > 0.

    Returns:
        The bound, 0 to 1.
    """
    share = float(np.bincount(labels).max()) / len(labels)
    return min(1.0, share + ONE_SIDED_95 * math.sqrt(share * (1 - share) / len(labels)))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Equal to `numpy.percentile(ordered, 100 * share)` to the last bit, without sorting.

    Args:
        ordered: values, ascending, at least one.
        share: 0 to 1.
    """
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    part = position - low
    below, above = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
    # numpy also interpolates from the nearer end.
    return below + (above - below) * part if part < 0.5 else above - (above - below) * (1 - part)
