"""What a running search has still to train, and how long that takes. Pure functions of the history."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from search import budget, confirmation
from search.asha import waits_at_rung
from search.estimates import MAX_SIMULATED_TRIALS, expected_epochs_left, seconds_left
from search.expectation import expected_search, passing_of
from search.records import History, Trial
from spaces.schema import Space

# The first epochs of each worker are slow; the latest ones say more of what is to come.
N_RECENT = 20


@dataclass(frozen=True, slots=True)
class Remaining:
    """Epochs that are left.

    Attributes:
        of_begun: expected, of each trial that can go on.
        of_unstarted: likewise, of each that is to come; None where time alone tells.
        of_runs: of each fresh run that goes on or is still to come, if nobody is tied.
    """

    of_begun: tuple[float, ...]
    of_unstarted: tuple[float, ...] | None
    of_runs: tuple[float, ...]

    @property
    def trial_epochs(self) -> float | None:
        """Of all trials; None where time alone tells."""
        return None if self.of_unstarted is None else sum(self.of_begun) + sum(self.of_unstarted)

    def seconds(self, epoch_s: float | None, trials_at_once: int, budget_left_s: float | None = None) -> float | None:
        """Until the search ends.

        Args:
            epoch_s: what an epoch takes; None before the first.
            trials_at_once: places that all is trained in.
            budget_left_s: of the time budget; None without one.

        Returns:
            None where that cannot be told.
        """
        if self.of_unstarted is None:
            return None if budget_left_s is None else max(0.0, budget_left_s)
        if epoch_s is None:
            return None
        left_s = seconds_left([*self.of_begun, *self.of_unstarted, *self.of_runs], epoch_s, trials_at_once)
        return left_s if budget_left_s is None else min(left_s, max(0.0, budget_left_s))


def remaining(history: History, space: Space) -> Remaining:
    """What a search is expected to train yet."""
    expected = expected_search(space)
    # By then the share that passes has settled, where the number of trials is not known.
    trials = expected.trials if expected else MAX_SIMULATED_TRIALS
    passing = passing_of(space, trials, space.search.explore)
    begun = tuple(_epochs_left_of(trial, space, passing) for trial in history.unfinished)
    unstarted = _epochs_left_of_unstarted(history, space, passing, sum(begun)) if expected else None
    return Remaining(begun, unstarted, _epochs_left_of_runs(history, space, sum(begun)))


def recent_epoch_s(history: History) -> float | None:
    """Seconds that the latest epochs took, on average; None before the first."""
    latest_trials = history.results_in_order[-N_RECENT:]
    latest_runs = chain.from_iterable(run.epochs for run in list(history.runs.values())[-N_RECENT:])
    latest = sorted([*latest_trials, *latest_runs], key=lambda epoch: epoch.at)
    return mean_of_latest([epoch.seconds for epoch in latest])


def mean_of_latest(epoch_s: Sequence[float]) -> float | None:
    """The mean of the last few; None where there are none."""
    recent = epoch_s[-N_RECENT:]
    return sum(recent) / len(recent) if recent else None


def _epochs_left_of(trial: Trial, space: Space, passing: Sequence[float]) -> float:
    if trial.baseline or trial.explored:
        return space.training.max_epochs - trial.n_epochs
    rungs = space.rung_epochs
    left = expected_epochs_left(trial.n_epochs, rungs, passing)
    return left * passing[rungs.index(trial.n_epochs)] if waits_at_rung(trial, space) else left


def _epochs_left_of_unstarted(
    history: History, space: Space, passing: Sequence[float], epochs_to_come: float
) -> tuple[float, ...]:
    """Of each trial that is to be started, beside so many epochs of those that are."""
    search = space.search
    each = expected_epochs_left(0, space.rung_epochs, passing)
    each = search.explore * space.training.max_epochs + (1 - search.explore) * each
    n = search.most_trials - len(history.counting)
    if search.epoch_budget is not None:
        unspent = search.epoch_budget - budget.epochs_trained(history) - epochs_to_come
        n = min(n, math.ceil(unspent / each))
    return (each,) * max(0, n)


def _epochs_left_of_runs(history: History, space: Space, epochs_to_come: float) -> tuple[float, ...]:
    max_epochs = space.training.max_epochs
    begun = [float(max_epochs - run.n_epochs) for run in history.unfinished_runs]
    total = confirmation.expected_epochs(history.n_epochs + epochs_to_come, space)
    n_to_come = max(0, round(total / max_epochs) - len(history.runs))
    # While runs go on, the next block may be waiting for them.
    if history.runs and not begun and not confirmation.next_run(history, space):
        n_to_come = 0  # the order was clear early
    return (*begun, *[float(max_epochs)] * n_to_come)
