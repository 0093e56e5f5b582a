"""ASHA's rungs: which trials go on. Pure: no Ray, no clock, no randomness.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the stopping
variant that Ray Tune's `AsyncHyperBandScheduler` implements; a test holds the two against each other.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rung says of one arrival.

    Attributes:
        passed: whether the trial goes on.
        cutoff: the value that it had to reach; None for the first arrival.
    """

    passed: bool
    cutoff: float | None


class Rungs:
    """Values of the trials that reached each rung.

    A trial passes a rung when its value is not below the (1 - 1 / reduction) quantile of the values that
    *other* trials had there; the first arrival passes.

    Args:
        rung_epochs: epochs at which trials are compared, ascending; the last is where trials end anyway.
        reduction_factor: about one trial in so many passes.
    """

    def __init__(self, rung_epochs: tuple[int, ...], reduction_factor: int) -> None:
        self._percentile = (1 - 1 / reduction_factor) * 100
        self._values: dict[int, dict[int, float]] = {epoch: {} for epoch in rung_epochs[:-1]}

    def arrive(self, trial: int, epoch: int, value: float) -> Verdict | None:
        """Tell of a trial's result.

        Args:
            trial: the trial's number.
            epoch: counted from 1.
            value: finite; larger is better.

        Returns:
            The verdict, or None where there is no rung or the trial has been there already.
        """
        arrived = self._values.get(epoch)
        if arrived is None or trial in arrived:
            return None
        cutoff = float(np.percentile(list(arrived.values()), self._percentile)) if arrived else None
        arrived[trial] = value
        return Verdict(passed=cutoff is None or value >= cutoff, cutoff=cutoff)
