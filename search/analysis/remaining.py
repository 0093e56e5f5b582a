"""What a running search has still to train, and how long that takes. Pure functions of the history."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from search.analysis.estimates import MAX_SIMULATED_TRIALS, expected_epochs_left, seconds_left
from search.analysis.expectation import expected_search, passing_of
from search.experiment.events import EpochDone, ReplicateEpochDone
from search.experiment.history import History, Replicate, Trial
from search.policy import budget, confirmation
from search.policy.asha import waits_at_rung
from spaces.schema import Space

# The first epochs of each worker are slow; the latest ones say more of what is to come.
N_RECENT = 20


@dataclass(frozen=True, slots=True)
class Remaining:
    """Epochs that are left.

    Attributes:
        of_begun: expected, of each trial that can go on.
        of_unstarted: likewise, of each that is to come; None where time alone tells.
        of_runs: of each replicate that goes on or is still to come, if nobody is tied.
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
            epoch_s: what an epoch takes in its slot; None before the first.
            trials_at_once: places that all is trained in.
            budget_left_s: of the time budget; None without one.

        Returns:
            None where that cannot be told.
        """
        if self.of_unstarted is None:
            return None if budget_left_s is None else max(0.0, budget_left_s)
        if epoch_s is None:
            return None
        left_s = seconds_left([*self.of_begun, *self.of_unstarted], self.of_runs, epoch_s, trials_at_once)
        return left_s if budget_left_s is None else min(left_s, max(0.0, budget_left_s))


def remaining(history: History, space: Space) -> Remaining:
    """What a search is expected to train yet."""
    expected = expected_search(space)
    # By then the share that passes has settled, where the number of trials is not known.
    trials = expected.trials if expected else MAX_SIMULATED_TRIALS
    passing = passing_of(space, trials, space.search.audit_fraction)
    begun = tuple(_epochs_left_of(trial, space, passing) for trial in history.unfinished)
    unstarted = _epochs_left_of_unstarted(history, space, passing, sum(begun)) if expected else None
    # Where time alone limits the trials, their number is not known.
    return Remaining(begun, unstarted, _epochs_left_of_runs(history, space, sum(begun) + sum(unstarted or ())))


def recent_epoch_s(history: History, session_start: float) -> float | None:
    """Mean seconds for which each of the latest epochs occupied its slot; None before the first epoch.

    That is more than training and validation: checkpoints, and the start of trials. Epochs that began before the
    session's first result count with training and validation alone, because workers were starting.

    Args:
        history: so far.
        session_start: of the latest session, in seconds since 1970 (UTC).
    """
    of_trials = [(_trial_epoch_start(history, epoch), epoch) for epoch in history.results_in_order[-N_RECENT:]]
    latest_runs = list(history.replicates.values())[-N_RECENT:]
    of_runs = [timed for run in latest_runs for timed in _timed_epochs(run)]
    latest = sorted([*of_trials, *of_runs], key=lambda timed: timed[1].at)[-N_RECENT:]
    workers_started = _first_result_at(history, session_start)
    each_s = [
        max(epoch.seconds, epoch.at - start) if start >= workers_started else epoch.seconds for start, epoch in latest
    ]
    return sum(each_s) / len(each_s) if each_s else None


def _trial_epoch_start(history: History, epoch: EpochDone) -> float:
    """When a trial's slot became busy with `epoch`, in seconds since 1970 (UTC)."""
    trial = history.trials[epoch.trial]
    before = trial.epochs[epoch.epoch - 2].at if epoch.epoch > 1 else trial.started_at
    return max([before, *(promotion.at for promotion in trial.promotions if promotion.epoch == epoch.epoch - 1)])


def _timed_epochs(run: Replicate) -> list[tuple[float, ReplicateEpochDone]]:
    """Epochs of a replicate, each with its start."""
    return list(zip([run.started_at, *(epoch.at for epoch in run.epochs)], run.epochs, strict=False))


def _first_result_at(history: History, session_start: float) -> float:
    """When the first epoch of a session ended; infinity before that."""
    results = history.results_in_order
    i = bisect_left(results, session_start, key=lambda epoch: epoch.at)
    of_runs = (epoch.at for run in history.replicates.values() for epoch in run.epochs if epoch.at >= session_start)
    return min([*(epoch.at for epoch in results[i : i + 1]), *of_runs], default=math.inf)


def _epochs_left_of(trial: Trial, space: Space, passing: Sequence[float]) -> float:
    if trial.baseline or trial.audit:
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
    each = search.audit_fraction * space.training.max_epochs + (1 - search.audit_fraction) * each
    n = search.most_trials - len(history.counting)
    if search.epoch_budget is not None:
        unspent = search.epoch_budget - budget.epochs_trained(history) - epochs_to_come
        n = min(n, math.ceil(unspent / each))
    return (each,) * max(0, n)


def _epochs_left_of_runs(history: History, space: Space, epochs_to_come: float) -> tuple[float, ...]:
    max_epochs = space.training.max_epochs
    begun = [float(max_epochs - run.n_epochs) for run in history.unfinished_replicates]
    total = confirmation.expected_epochs(history.n_epochs + epochs_to_come, space)
    n_to_come = round(total / max_epochs) - len(history.replicates)
    if history.replicates and n_to_come <= 0:
        n_to_come = confirmation.n_replicates_of_tied(history, space)
    # While runs go on, the next block may be waiting for them.
    if history.replicates and not begun and not confirmation.next_run(history, space):
        n_to_come = 0  # the order was clear early
    return (*begun, *[float(max_epochs)] * max(0, n_to_come))
