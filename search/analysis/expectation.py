"""What a search will come to, from its limits and its rungs. Pure functions."""

import math
from dataclasses import dataclass

from search.analysis.estimates import expected_epochs_left, passing_shares
from search.experiment.audits import n_audits
from spaces.schema import Space

# Trials and the share of them that passes depend on each other; by then neither changes any more.
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of a whole search, its replicates left out.

    Attributes:
        trials: how many are started, the baseline among them.
        n_audits: those beside the baseline that go to the end whatever a rung says.
        passing: the share of the others that goes on at each rung but the last.
        each: epochs of each of those others.
        epochs: of all trials together.
    """

    trials: int
    n_audits: int
    passing: tuple[float, ...]
    each: float
    epochs: float


def expected_search(space: Space, time_epochs: float | None = None) -> Expected | None:
    """What a search will come to; None where only time limits it, and nothing says what that is worth.

    Args:
        space: what is searched.
        time_epochs: that the time budget is enough for; None where that is not known.
    """
    budgets = [float(limit) for limit in (space.search.epoch_budget, time_epochs) if limit is not None]
    most = space.search.trials
    if not budgets:
        return None if most is None else of_trials(space, most)
    budget, trials = min(budgets), 2
    for _ in range(_ROUNDS):
        audit_fraction, max_epochs = space.search.audit_fraction, space.training.max_epochs
        per_trial = audit_fraction * max_epochs + (1 - audit_fraction) * of_trials(space, trials).each
        # The baseline goes to the end beside the others.
        trials = 1 + max(0, math.ceil((budget - max_epochs) / per_trial))
    return of_trials(space, trials if most is None else min(trials, most))


def passing_of(space: Space, trials: int, audit_fraction: float) -> tuple[float, ...]:
    """The share of trials that goes on at each rung, of so many, the part `audit_fraction` of which nothing stops."""
    search = space.search
    if search.asha == "promote":
        return _promoted_shares(trials, len(space.rung_epochs) - 1, search.reduction_factor)
    return passing_shares(trials, space.rung_epochs, search.reduction_factor, audit_fraction)


def of_trials(space: Space, trials: int) -> Expected:
    """What a search of so many trials comes to."""
    n_audit = n_audits(space, trials)
    passing = passing_of(space, trials, n_audit / max(trials - 1, 1))
    each = expected_epochs_left(0, space.rung_epochs, passing)
    n_exempt = 1 + n_audit
    epochs = n_exempt * space.training.max_epochs + (trials - n_exempt) * each
    return Expected(trials, n_audit, passing, each, epochs)


def _promoted_shares(trials: int, n_rungs: int, reduction_factor: int) -> tuple[float, ...]:
    shares, n_arrived = [], trials
    for _ in range(n_rungs):
        n_promoted = n_arrived // reduction_factor
        shares.append(n_promoted / n_arrived if n_arrived else 0.0)
        n_arrived = n_promoted
    return tuple(shares)
