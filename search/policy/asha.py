"""ASHA for the trials of a history: which trials stop. Pure functions: no Ray, no clock.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in the stopping variant.
"""

from search.experiment.events import EpochDone
from search.experiment.history import History, Trial
from search.policy.rungs import Rungs, RungVisit
from spaces.schema import Space


class StoppingRule:
    """Decides which trials stop, from results in the order in which they were recorded.

    Args:
        space: of the search; with `search.asha: off` it has no rungs.
        history: of the search, with the metric and the chance level.
    """

    def __init__(self, space: Space, history: History) -> None:
        search = space.search
        is_adaptive = search.asha == "adaptive"
        self._rungs = Rungs(space.rung_epochs, search.reduction_factor, history.chance, history.metric, is_adaptive)

    def apply(self, trial: Trial, result: EpochDone) -> str | None:
        """Apply the newest result of a trial, which `trial` includes. Returns why the trial must end; else None."""
        if result.diverged:
            self._rungs.diverge(trial.number, result.epoch, is_exempt(trial))
            return None
        reason = self._rungs.arrive(trial.number, result.epoch, trial.metric.score(result))
        return None if is_exempt(trial) else reason

    def visit(self, trial: Trial, result: EpochDone) -> RungVisit:
        """What the rung of a result says of it, before `apply`."""
        return self._rungs.visit(result.epoch, trial.metric.score(result))


def replay(rule: StoppingRule, history: History) -> dict[int, str | None]:
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
