"""ASHA's rungs: which trials continue. Pure functions: no Ray, no clock, no randomness.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the stopping
variant that Ray Tune's `AsyncHyperBandScheduler` implements; a test compares the decisions with Ray's.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.schema import MetricName
from trainable.metric import ACCURACY, Metric

# A rung below the last one opens when so many trials have reached the last, and the ranks at both correlate so much.
FEWEST_PAIRS = 6
SMALLEST_CORRELATION = 0.7
# Up to so many trials at the last rung, the order is compared at each arrival there; then once in 2, 3, … arrivals.
MOST_PAIRS_BY_ONE = 100
ONE_SIDED_95 = 1.645  # 95 % quantile of the standard normal distribution


@dataclass(frozen=True, slots=True)
class RungVisit:
    """A result at a rung, and what the rung says of it.

    Attributes:
        epoch: epoch of the rung.
        metric: metric of `value` and `cutoff`, as `search.metric` names it.
        value: of the trial at the rung.
        cutoff: value to exceed; None where there is none.
        margin: difference of the two, positive where `value` is better.
        place: place of `value` among the `n` results that the rung has with this one, from 1.
        reason: why the trial does not pass; None if it passes. Exempt trials continue whatever the rung says.
        is_open: whether the rung stops trials; without, `cutoff` is None, and the trial passes.
    """

    epoch: int
    metric: MetricName
    value: float
    cutoff: float | None
    margin: float | None
    place: int
    n: int
    reason: str | None
    is_open: bool = True


class Rungs:
    """Values of the trials that reached each rung.

    A trial passes a rung when its value is above the (1 - 1 / reduction) quantile of the values that *other* trials
    had there; the first trial passes. A trial at chance does not pass if any trial is above chance. If none is, as at
    a rung before the network has learned anything, trials at the cutoff pass too, as with Ray.

    How well a rung orders the trials depends on the images: after few epochs, it may be at random. With `adaptive`, a
    rung below the last one stops trials only while its values and those at the last rung have about the same order.

    Args:
        rung_epochs: epochs at which trials are compared, ascending; trials end at the last.
        reduction_factor: about one trial in so many passes.
        chance: the highest score of a run that only guesses (`chance_levels`); None if unknown.
        metric: of the search; values are its scores.
        adaptive: whether rungs below the last one wait until their order is known to be that of the last one.
    """

    def __init__(
        self,
        rung_epochs: tuple[int, ...],
        reduction_factor: int,
        chance: float | None = None,
        metric: Metric = ACCURACY,
        adaptive: bool = False,
    ) -> None:
        self._share = (1 - 1 / reduction_factor) * 100 / 100  # rounded as Ray rounds it
        self._chance, self._metric = chance, metric
        self._by_trial: dict[int, dict[int, float]] = {epoch: {} for epoch in rung_epochs[:-1]}
        # Kept ascending, so that a cutoff needs no sorting.
        self._values: dict[int, list[float]] = {epoch: [] for epoch in rung_epochs[:-1]}
        self._closed = set(rung_epochs[:-2]) if adaptive else set[int]()
        self._adaptive, self._last = adaptive, max(self._by_trial, default=0)
        self._n_for_next_test = FEWEST_PAIRS

    def arrive(self, trial: int, epoch: int, value: float) -> str | None:
        """Record a result of a trial.

        Args:
            trial: number of the trial.
            epoch: of the result, from 1.
            value: score, finite.

        Returns:
            Why the trial does not pass; None if it passes, if `epoch` has no rung, and if the trial was recorded at
            this rung before.
        """
        arrived = self._by_trial.get(epoch)
        if arrived is None or trial in arrived:
            return None
        reason = self.visit(epoch, value).reason
        arrived[trial] = value
        bisect.insort(self._values[epoch], value)
        if self._adaptive and epoch == self._last and len(arrived) >= self._n_for_next_test:
            self._n_for_next_test = len(arrived) + 1 + len(arrived) // MOST_PAIRS_BY_ONE
            self._closed = {rung for rung in self._by_trial if rung != epoch and not self._orders_as(epoch, rung)}
        return reason

    def visit(self, epoch: int, value: float) -> RungVisit:
        """What the rung of `epoch` says of a trial with this value, which is not recorded yet."""
        values, reason, bound = self._values[epoch], None, None
        is_open = epoch not in self._closed
        if values and is_open:
            cutoff, best = quantile(values, self._share), values[-1]
            reason = self._reason(epoch, value, cutoff, best)
            bound = cutoff if self._chance is None or best <= self._chance else max(cutoff, self._chance)
        place = 1 + len(values) - bisect.bisect_right(values, value)
        metric = self._metric
        cutoff_value = None if bound is None else metric.value(bound)
        margin = None if bound is None else value - bound
        n = 1 + len(values)
        return RungVisit(epoch, metric.name, metric.value(value), cutoff_value, margin, place, n, reason, is_open)

    def _orders_as(self, last: int, rung: int) -> bool:
        """Whether the trials that reached rung `last` had about the same order at an earlier rung."""
        from scipy.stats import spearmanr  # half a second, which commands that only read rungs save

        pairs = [
            (self._by_trial[rung][trial], value)
            for trial, value in self._by_trial[last].items()
            if trial in self._by_trial[rung]
        ]
        if len(pairs) < FEWEST_PAIRS or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
            return False
        return bool(spearmanr(pairs).statistic >= SMALLEST_CORRELATION)

    def diverge(self, trial: int, epoch: int, goes_to_the_end: bool) -> None:
        """Record a diverged trial, with the metric's worst score at the next rung.

        Args:
            trial: number of the trial.
            epoch: epoch in which training diverged, from 1.
            goes_to_the_end: whether no rung stops the trial. Then it has the worst score at all later rungs.
        """
        ahead = [rung for rung in self._values if rung >= epoch]
        for rung in ahead if goes_to_the_end else ahead[:1]:
            self.arrive(trial, rung, self._metric.worst)

    def _reason(self, epoch: int, value: float, cutoff: float, best: float) -> str | None:
        metric, shown = self._metric, self._metric.text(cutoff)
        below = f"{metric.text(value)} at rung {epoch}, {metric.worse} its cutoff {shown}" if value < cutoff else None
        if self._chance is not None and best <= self._chance:
            return below
        if self._chance is not None and value <= self._chance:
            return f"at chance ({metric.text(value)}) at rung {epoch}, where others have learned"
        return f"tied with the cutoff {shown} of rung {epoch}" if value == cutoff else below


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


def chance_levels(labels: NDArray[np.int64]) -> dict[str, float]:
    """Values of the other metrics that a run which only guesses reaches at best, by the metric's name.

    A run that names k classes at random has a balanced accuracy of 1/k, and no guess has a higher macro F1. The bound
    is 1.645 standard deviations of that balanced accuracy above 1/k; that of macro F1 is not larger. No answer that is
    the same for all images has a lower loss than the shares of the classes, whose loss is their entropy.

    Args:
        labels: (N,) class indices of the validation images, N > 0.
    """
    counts = np.unique(labels, return_counts=True)[1]
    k, shares = len(counts), counts / len(labels)
    deviation = math.sqrt((k - 1) * float((1 / counts).sum())) / k**2
    bound = min(1.0, 1 / k + ONE_SIDED_95 * deviation)
    return {"balanced_accuracy": bound, "macro_f1": bound, "loss": -float((shares * np.log(shares)).sum())}


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
