"""ASHA's stopping and promoting variants behind one interface. Pure functions: no Ray, no clock.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020).
"""

import bisect
import math
from collections.abc import Container
from typing import Protocol

from search.experiment.events import EpochDone
from search.experiment.history import History, Trial
from search.policy.forecasts import result_order
from search.policy.rungs import Rungs, RungVisit, at_chance_text, rung_visit, rungs_of_diverged
from spaces.schema import Space
from trainable.metric import Metric

# Sort key of a result at a rung: minus the score, then loss, then the number of the trial; see `result_order`.
_Rank = tuple[float, float, int]


class RungRule(Protocol):
    """Decides which trials stop, wait or continue, from results in the order in which they were recorded."""

    def apply(self, trial: Trial, result: EpochDone) -> str | None:
        """Apply the newest result of a trial, which `trial` includes. Returns why the trial must end; else None."""

    def visit(self, trial: Trial, result: EpochDone) -> RungVisit:
        """What the rung says of a result now. The stopping variant is asked before `apply`, the promoting one after."""

    def next_promoted(self, history: History) -> Trial | None:
        """The waiting trial that is promoted next; None if no trial can be promoted."""

    def reason_left_behind(self, trial: Trial) -> str:
        """Why a waiting trial ends at its rung, when no more trials are promoted."""


def rung_rule(space: Space, history: History) -> RungRule:
    """The rule of `search.asha`, with the metric and the chance of a history. With `off`, the space has no rungs."""
    search, rungs = space.search, space.rung_epochs
    if search.asha == "promote":
        return PromotingRungs(rungs, search.reduction_factor, history.chance, history.metric)
    is_adaptive = search.asha == "adaptive"
    return StoppingRungs(rungs, search.reduction_factor, history.chance, history.metric, is_adaptive)


def replay(rule: RungRule, history: History) -> dict[int, str | None]:
    """Apply the results of a history to a new rule. Returns the answer to the last result of each trial."""
    return {
        result.trial: rule.apply(history.trials[result.trial], result)
        for result in history.results_in_order
        if not history.trials[result.trial].excluded
    }


def is_exempt(trial: Trial) -> bool:
    """Whether no rung stops a trial.

    The winner is compared with the baseline, and audit trials show how stopped trials would have continued.
    """
    return trial.baseline or trial.audit


def waits_at_rung(trial: Trial, space: Space) -> bool:
    """Whether a trial waits to be promoted."""
    return space.search.asha == "promote" and _waits(trial, space.rung_epochs[:-1])


class StoppingRungs:
    """The stopping variant: a trial that does not pass a rung ends there. Arguments as in `Rungs`."""

    def __init__(
        self,
        rung_epochs: tuple[int, ...],
        reduction_factor: int,
        chance: float | None,
        metric: Metric,
        adaptive: bool = False,
    ) -> None:
        self._rungs = Rungs(rung_epochs, reduction_factor, chance, metric, adaptive)

    def apply(self, trial: Trial, result: EpochDone) -> str | None:
        if result.diverged:
            self._rungs.diverge(trial.number, result.epoch, is_exempt(trial))
            return None
        reason = self._rungs.arrive(trial.number, result.epoch, trial.metric.score(result))
        return None if is_exempt(trial) else reason

    def visit(self, trial: Trial, result: EpochDone) -> RungVisit:
        return self._rungs.visit(result.epoch, trial.metric.score(result))

    def next_promoted(self, history: History) -> Trial | None:
        return None

    def reason_left_behind(self, trial: Trial) -> str:
        raise ValueError(f"trial {trial.number} does not wait at a rung.")


class PromotingRungs:
    """The promoting variant: trials wait at each rung, and the best n / reduction_factor of n trials are promoted.

    This is `get_job` of the paper: from the highest rung downwards, the best trial that was not promoted yet. A trial
    at chance is not promoted if another trial is above chance. A diverged trial is never promoted, and counts as the
    worst at the next rung. Exempt trials do not wait, but count at each rung. Arguments as in `Rungs`.
    """

    def __init__(
        self, rung_epochs: tuple[int, ...], reduction_factor: int, chance: float | None, metric: Metric
    ) -> None:
        self._reduction_factor = reduction_factor
        self._chance, self._metric = chance, metric
        # Sorted, best first.
        self._ranks: dict[int, list[_Rank]] = {epoch: [] for epoch in rung_epochs[:-1]}

    def apply(self, trial: Trial, result: EpochDone) -> str | None:
        if result.diverged:
            for rung in rungs_of_diverged(self._ranks, result.epoch, is_exempt(trial)):
                bisect.insort(self._ranks[rung], (-self._metric.worst, math.inf, trial.number))
        elif result.epoch in self._ranks:
            bisect.insort(self._ranks[result.epoch], result_order(trial.number, result, self._metric))
        return None

    def visit(self, trial: Trial, result: EpochDone) -> RungVisit:
        epoch, value, ranks = result.epoch, self._metric.score(result), self._ranks[result.epoch]
        n_promoted, here = self._n_promoted(epoch), f"{self._metric.text(value)} at rung {epoch}"
        place = 1 + bisect.bisect_left(ranks, result_order(trial.number, result, self._metric))
        # The value of the last of the best among the other trials.
        cutoff = -ranks[n_promoted if place <= n_promoted else n_promoted - 1][0] if n_promoted else None
        reason = None
        if self._is_at_chance(value, epoch):
            reason = at_chance_text(value, epoch, self._metric)
            cutoff = None if cutoff is None else max(cutoff, self._chance or 0.0)
        elif not n_promoted:
            reason = f"{here}, where {len(ranks)} are too few for one to go on"
        elif place > n_promoted:
            reason = f"{here}, not among the best {n_promoted} of {len(ranks)} that go on"
        return rung_visit(self._metric, epoch, value, cutoff, place, len(ranks), reason)

    def next_promoted(self, history: History) -> Trial | None:
        for epoch in reversed(self._ranks):
            for value, _, number in self._ranks[epoch][: self._n_promoted(epoch)]:
                trial = history.trials[number]
                if trial.n_epochs == epoch and _waits(trial, self._ranks) and not self._is_at_chance(-value, epoch):
                    return trial
        return None

    def reason_left_behind(self, trial: Trial) -> str:
        assert trial.last is not None
        visit, here = self.visit(trial, trial.last), self._metric.text(self._metric.score(trial.last))
        best = f"the best {self._n_promoted(visit.epoch)} of {visit.n}"
        return visit.reason or f"{here} at rung {visit.epoch}, among {best}, when the budget was used"

    def _n_promoted(self, epoch: int) -> int:
        return len(self._ranks[epoch]) // self._reduction_factor

    def _is_at_chance(self, value: float, epoch: int) -> bool:
        return self._chance is not None and value <= self._chance < -self._ranks[epoch][0][0]


def _waits(trial: Trial, rungs: Container[int]) -> bool:
    if trial.end or is_exempt(trial) or (trial.last and trial.last.diverged):
        return False
    return trial.n_epochs in rungs and trial.promoted_at < trial.n_epochs
