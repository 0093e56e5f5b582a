"""The cost of a search that has not started: trials, epochs, seconds and bytes."""

import math
from dataclasses import dataclass, replace

from search.analysis.cost import Expected, disk_bytes, expected_search, of_trials, seconds_left
from search.policy import budget, confirmation
from spaces.schema import Space


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a search is expected to take.

    Attributes:
        expected: trials and their epochs.
        total_s: seconds of all trials and replicates, without start-up.
        epoch_s: seconds of an epoch in its slot, as timed.
        max_bytes: of the experiment's folder; where only time limits the search, for half as many trials more.
    """

    expected: Expected
    total_s: float
    epoch_s: float
    max_bytes: int


def plan_cost(
    space: Space, trials_at_once: int, trials_side_by_side: int, epoch_s: float, checkpoint_bytes: int
) -> PlanCost:
    """Estimate the cost of a search.

    Args:
        space: what is searched.
        trials_at_once: number of slots.
        trials_side_by_side: number of trials that do not slow each other down.
        epoch_s: seconds of an epoch in its slot.
        checkpoint_bytes: of one checkpoint.
    """
    expected = _expected(space, trials_side_by_side, epoch_s)
    total_s = _total_s(space, expected, trials_side_by_side, epoch_s)
    trials, epochs = _most(space, trials_at_once, expected)
    # A running trial keeps two checkpoints and writes a third; a trial that waits at a rung keeps one.
    n_checkpoints = 3 * trials_at_once + (trials if space.search.asha == "promote" else 0)
    return PlanCost(expected, total_s, epoch_s, disk_bytes(trials, epochs, n_checkpoints, checkpoint_bytes))


def audit_epochs(space: Space, trials: int, audit_fraction: float) -> float:
    """Expected epochs that `trials` trials take more with `audit_fraction` than without audits."""
    return _with_audits(space, trials, audit_fraction) - _with_audits(space, trials, 0.0)


def _with_audits(space: Space, trials: int, audit_fraction: float) -> float:
    search = space.search.model_copy(update={"audit_fraction": audit_fraction})
    return of_trials(replace(space, search=search), trials).epochs


def _expected(space: Space, trials_side_by_side: int, epoch_s: float) -> Expected:
    """Expected trials and epochs; a time budget counts without start-up."""
    time_s = space.search.time_budget_s
    if time_s is not None:
        time_s -= confirmation.seconds_to_confirm(space)
    time_epochs = None if time_s is None else time_s / epoch_s * trials_side_by_side
    expected = expected_search(space, time_epochs)
    assert expected is not None  # the loader requires a limit
    return expected


def _total_s(space: Space, expected: Expected, trials_side_by_side: int, epoch_s: float) -> float:
    max_epochs = space.training.max_epochs
    n_replicates = round(confirmation.expected_epochs(expected.epochs, space) / max_epochs)
    n_exempt = 1 + expected.n_audits
    trial_epochs = [*[max_epochs] * n_exempt, *[expected.each] * (expected.trials - n_exempt)]
    total_s = seconds_left(trial_epochs, [max_epochs] * n_replicates, epoch_s, trials_side_by_side)
    return min(total_s, space.search.time_budget_s or math.inf)


def _most(space: Space, trials_at_once: int, expected: Expected) -> tuple[int, int]:
    """The maximum of trials and of epochs."""
    search, max_epochs = space.search, space.training.max_epochs
    if search.epoch_budget is not None:
        epochs = search.epoch_budget + budget.most_epochs_over(space, trials_at_once)
        return search.most_trials, min(epochs, search.most_trials * max_epochs)
    if search.trials is not None:
        return search.trials, search.trials * max_epochs
    return math.ceil(1.5 * expected.trials), math.ceil(1.5 * expected.epochs)
