"""The cost of a search that has not started: trials, epochs, seconds and bytes."""

import math
from dataclasses import dataclass, replace

from search.analysis.cost import Expected, expected_search, of_trials, seconds_left
from search.policy import budget, confirmation
from spaces.schema import Space

# Measured sizes of journal, tables, study.db and Ray's logs and snapshots, plus 50 %.
FOLDER_BYTES = 4_000_000
TRIAL_BYTES = 60_000
EPOCH_BYTES = 6_000
# Retraining keeps a checkpoint for each seed until its export; the exports are about as large as two more.
RETRAINED_CHECKPOINTS = 6


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a search is expected to take.

    Attributes:
        expected: trials and their epochs.
        total_s: seconds of all trials and replicates, without start-up.
        epoch_s: seconds of an epoch in its slot, as timed.
        max_bytes: of the experiment's folder, its retraining included; where only time limits the search, for half as
            many trials more.
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
    max_epochs, time_s = space.training.max_epochs, space.search.time_budget_s
    time_epochs = None
    if time_s is not None:
        time_epochs = (time_s - confirmation.seconds_to_confirm(space)) / epoch_s * trials_side_by_side
    expected = expected_search(space, time_epochs)
    assert expected is not None  # the loader requires a limit
    n_replicates = round(confirmation.expected_epochs(expected.epochs, space) / max_epochs)
    n_exempt = 1 + expected.n_audits
    trial_epochs = [*[max_epochs] * n_exempt, *[expected.each] * (expected.trials - n_exempt)]
    total_s = seconds_left(trial_epochs, [max_epochs] * n_replicates, epoch_s, trials_side_by_side)
    max_bytes = _max_bytes(space, trials_at_once, expected, checkpoint_bytes)
    return PlanCost(expected, min(total_s, time_s or math.inf), epoch_s, max_bytes)


def audit_epochs(space: Space, trials: int, audit_fraction: float) -> float:
    """Expected epochs that `trials` trials take more with `audit_fraction` than without audits."""
    with_audits, without = (
        of_trials(replace(space, search=space.search.model_copy(update={"audit_fraction": fraction})), trials)
        for fraction in (audit_fraction, 0.0)
    )
    return with_audits.epochs - without.epochs


def _max_bytes(space: Space, trials_at_once: int, expected: Expected, checkpoint_bytes: int) -> int:
    search, max_epochs = space.search, space.training.max_epochs
    if search.trials is None and search.epoch_budget is None:
        trials, epochs = math.ceil(1.5 * expected.trials), math.ceil(1.5 * expected.epochs)
    else:
        trials, epochs = search.most_trials, search.most_trials * max_epochs
    if search.epoch_budget is not None:
        epochs = min(epochs, search.epoch_budget + budget.most_epochs_over(space, trials_at_once))
    # A running trial keeps two checkpoints and writes a third.
    n_checkpoints = 3 * trials_at_once
    checkpoints = checkpoint_bytes * max(n_checkpoints, RETRAINED_CHECKPOINTS)
    return FOLDER_BYTES + checkpoints + trials * TRIAL_BYTES + epochs * EPOCH_BYTES
