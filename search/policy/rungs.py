"""ASHA's rungs: which trials go on. Pure: no Ray, no clock, no randomness.

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

# Of a diverged run: no accuracy is less.
WORST = 0.0
# Of the normal distribution: 5 % of runs that only guess come out above it.
ONE_SIDED_95 = 1.645


class RungRule(Enum):
    """What keeps a trial from passing a rung.

    RAYS: being below the cutoff. Runs that all sit at the same chance accuracy go on together.
    OURS: also being as good as the cutoff, and being at chance where any run has left it. Where none has, as at a
        first rung that comes before this network learns anything, Ray's rule alone decides.
    """

    RAYS = "rays"
    OURS = "ours"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rung says of one arrival.

    Attributes:
        passed: whether the trial goes on.
        cutoff: the value that it had to reach; None for the first arrival.
        why: it did not pass; None where it did.
    """

    passed: bool
    cutoff: float | None
    why: Literal["below", "tied", "chance"] | None = None


class Rungs:
    """Values of the trials that reached each rung.

    A trial passes a rung when its value is above the (1 - 1 / reduction) quantile of the values that *other* trials
    had there; the first arrival passes. What else counts is `rule`'s.

    Args:
        rung_epochs: epochs at which trials are compared, ascending; the last is where trials end anyway.
        reduction_factor: about one trial in so many passes.
        rule: which trials pass.
        chance: the highest value that a run has which only guesses (`chance_accuracy`); None where it is not known:
            then ties alone tell `RungRule.OURS` from Ray's.
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
        # Ascending, so that a cutoff costs no sorting.
        self._values: dict[int, list[float]] = {epoch: [] for epoch in self._epochs}

    def arrive(self, trial: int, epoch: int, value: float) -> Verdict | None:
        """Tell of a trial's result.

        Args:
            trial: the trial's number.
            epoch: counted from 1.
            value: finite; larger is better.

        Returns:
            The verdict, or None where there is no rung or the trial has been there already.
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
        """Tell of a trial whose training diverged: it is the worst at the rung that it would have come to next.

        Args:
            trial: the trial's number.
            epoch: in which it diverged.
            goes_to_the_end: whether no rung would have stopped it, so that it would have come to all that follow.
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
    """Why a trial did not pass a rung, for people."""
    if verdict.why == "chance":
        return f"at chance ({value:.2%}) at rung {epoch}, where others have learned"
    if verdict.why == "tied":
        return f"tied with the cutoff {verdict.cutoff:.2%} of rung {epoch}"
    return f"{value:.2%} at rung {epoch}, below its cutoff {verdict.cutoff:.2%}"


def chance_accuracy(labels: NDArray[np.int64]) -> float:
    """The accuracy on images with these labels up to which a run may be only guessing.

    The best that a guess can do is to name the commonest class always, which is right with probability p. A run
    that guesses so comes out above p + 1.645 sqrt(p (1 - p) / n) in 5 % of cases: one side of the normal
    approximation of the binomial distribution.

    Args:
        labels: (N,) of the validation images, at least one.
    """
    share = float(np.bincount(labels).max()) / len(labels)
    return min(1.0, share + ONE_SIDED_95 * math.sqrt(share * (1 - share) / len(labels)))


def quantile(ordered: Sequence[float], share: float) -> float:
    """As `numpy.percentile(ordered, 100 * share)`, to the last bit, but without sorting what is sorted.

    Args:
        ordered: ascending, at least one.
        share: 0 to 1.
    """
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    part = position - low
    below, above = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
    # From the nearer end, as numpy does.
    return below + (above - below) * part if part < 0.5 else above - (above - below) * (1 - part)
