"""What a search costs: epochs, seconds and bytes, before it starts and while it runs. Pure functions."""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from search.experiment.audits import n_audits
from search.experiment.events import EpochDone, ReplicateEpochDone
from search.experiment.history import History, Replicate, Trial
from search.policy import budget, confirmation
from search.policy.rungs import Rungs
from spaces.schema import Space

N_SIMULATED = 200  # searches whose rungs are simulated; fewer of long ones
MAX_SIMULATED_TRIALS = 500  # the share that passes a rung no longer changes with more trials
_ROUNDS = 3  # iterations until the number of trials and the share that passes agree
N_RECENT = 20  # latest epochs that the time of an epoch is measured from; a worker's first epochs are slow
PAUSE = 3.0  # a slot that took this many times an epoch's own seconds was paused, or waited for its worker


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected size of a whole search without its replicates.

    Attributes:
        trials: number of trials, the baseline included.
        n_audits: number of audit trials; the baseline is not one of them.
        each: expected epochs of each of the other trials.
        epochs: expected epochs of all trials.
    """

    trials: int
    n_audits: int
    each: float
    epochs: float


@dataclass(frozen=True, slots=True)
class Remaining:
    """Expected epochs that a running search still has to train.

    Attributes:
        of_begun: for each unfinished trial.
        of_unstarted: for each trial that is not started yet; None where only a time budget limits the search.
        of_runs: for each replicate that is unfinished or not started yet, if no trials are tied.
    """

    of_begun: tuple[float, ...]
    of_unstarted: tuple[float, ...] | None
    of_runs: tuple[float, ...]

    def seconds(self, epoch_s: float | None, trials_at_once: int, budget_left_s: float | None = None) -> float | None:
        """Seconds until the search ends; None where it is not known.

        Args:
            epoch_s: seconds of an epoch in its slot; None before the first epoch.
            trials_at_once: number of slots.
            budget_left_s: rest of the time budget; None without a time budget.
        """
        budget_left_s = None if budget_left_s is None else max(0.0, budget_left_s)
        if self.of_unstarted is None:
            return budget_left_s
        if epoch_s is None:
            return None
        left_s = seconds_left([*self.of_begun, *self.of_unstarted], self.of_runs, epoch_s, trials_at_once)
        return left_s if budget_left_s is None else min(left_s, budget_left_s)


def expected_search(space: Space, time_epochs: float | None = None) -> Expected | None:
    """Expected size of the whole search.

    Args:
        space: the space, with its limits and rungs.
        time_epochs: number of epochs that fit into the time budget; None where it is not known.

    Returns:
        None where only a time budget limits the search and `time_epochs` is None.
    """
    budgets = [float(limit) for limit in (space.search.epoch_budget, time_epochs) if limit is not None]
    most = space.search.trials
    if not budgets:
        return None if most is None else of_trials(space, most)
    trials = 2
    for _ in range(_ROUNDS):
        # The baseline is trained to the end as well.
        others = (min(budgets) - space.training.max_epochs) / _epochs_each(space, of_trials(space, trials).each)
        trials = 1 + max(0, math.ceil(others))
    return of_trials(space, trials if most is None else min(trials, most))


def of_trials(space: Space, trials: int) -> Expected:
    """Expected size of a search of `trials` trials."""
    n_audit = n_audits(space, trials)
    passing = passing_of(space, trials, n_audit / max(trials - 1, 1))
    each = expected_epochs_left(0, space.rung_epochs, passing)
    n_exempt = 1 + n_audit
    epochs = n_exempt * space.training.max_epochs + (trials - n_exempt) * each
    return Expected(trials, n_audit, each, epochs)


def expected_epochs_left(done: int, rung_epochs: Sequence[int], passing: Sequence[float]) -> float:
    """Expected epochs that a trial still has to train.

    Args:
        done: epochs that the trial has trained; where that is a rung, the trial has passed it.
        rung_epochs: ascending; the last is the end of training.
        passing: share of trials that passes each rung but the last.
    """
    left, reaches, at = 0.0, 1.0, done
    for rung, share in zip(rung_epochs, [*passing, 0.0], strict=True):
        if rung > done:
            left += reaches * (rung - at)
            at = rung
            reaches *= share
    return left


def passing_of(space: Space, trials: int, audit_fraction: float) -> tuple[float, ...]:
    """Share of trials that passes each rung but the last, by the rule of `search.asha`; see `passing_shares`."""
    search = space.search
    if search.asha == "adaptive":  # nobody knows before whether the rungs below the last one will stop trials
        last = passing_shares(trials, space.rung_epochs[-2:], search.reduction_factor, audit_fraction)
        return (*(1.0 for _ in space.rung_epochs[:-2]), *last)
    return passing_shares(trials, space.rung_epochs, search.reduction_factor, audit_fraction)


@lru_cache(maxsize=64)
def passing_shares(
    trials: int, rung_epochs: tuple[int, ...], reduction_factor: int, audit_fraction: float = 0.0
) -> tuple[float, ...]:
    """Share of the trials that ASHA may stop that passes each rung but the last.

    Simulates searches whose trials keep their random rank from rung to rung. The baseline and the audit trials count
    in the cutoffs, but not in the shares. In a real search, learning curves cross and proposals improve, so that more
    trials may pass.

    Args:
        trials: number of trials.
        rung_epochs: ascending; the last is the end of training.
        reduction_factor: of the rungs.
        audit_fraction: probability that a trial is an audit trial, 0 to 1.
    """
    generator = np.random.default_rng(0)
    n_trials = min(max(trials, 2), MAX_SIMULATED_TRIALS)
    n_arrived = np.zeros(len(rung_epochs))
    for _ in range(max(1, min(N_SIMULATED, 10_000 // n_trials))):
        rungs = Rungs(rung_epochs, reduction_factor)
        values = generator.random(n_trials)
        exempt = generator.random(n_trials) < audit_fraction if audit_fraction else np.zeros(n_trials, bool)
        exempt[0] = True
        for trial, value in enumerate(values.tolist()):
            for i, epoch in enumerate(rung_epochs):
                n_arrived[i] += not exempt[trial]
                refused = rungs.arrive(trial, epoch, value)
                if refused and not exempt[trial]:
                    break
    return tuple(float(share) for share in n_arrived[1:] / np.maximum(n_arrived[:-1], 1))


def seconds_left(
    trial_epochs: Iterable[float], run_epochs: Iterable[float], epoch_s: float, trials_at_once: int
) -> float:
    """Seconds until all trials, and after them all replicates, are trained.

    Args:
        trial_epochs: epochs that each trial still has to train. Trials of different length fill all slots to the
            end, but the longest trial needs its own time.
        run_epochs: the same for each replicate. Replicates are few and of equal length, and start when the last
            trial has ended, so that slots stay empty at their end.
        epoch_s: seconds of an epoch in its slot.
        trials_at_once: number of slots.
    """
    trials = list(trial_epochs)
    epochs_of_trials = max(sum(trials) / trials_at_once, max(trials, default=0.0))
    slots = [0.0] * trials_at_once
    for epochs in sorted(run_epochs, reverse=True):
        heapq.heapreplace(slots, slots[0] + epochs)
    return (epochs_of_trials + max(slots)) * epoch_s


def remaining(history: History, space: Space) -> Remaining:
    """Expected epochs that a running search still has to train."""
    expected = expected_search(space)
    trials = expected.trials if expected else MAX_SIMULATED_TRIALS
    passing = passing_of(space, trials, space.search.audit_fraction)
    begun = tuple(_epochs_left_of(trial, space, passing) for trial in history.unfinished)
    unstarted = _epochs_left_of_unstarted(history, space, passing, sum(begun)) if expected else None
    return Remaining(begun, unstarted, _epochs_left_of_runs(history, space, sum(begun) + sum(unstarted or ())))


def recent_epoch_s(history: History) -> float | None:
    """Mean seconds for which each of the latest epochs occupied its slot; None before the first epoch.

    These include checkpoints and the start of trials, but not pauses and the start of workers.
    """
    of_trials = [
        (epoch.at, _slot_s(epoch, history.trials[epoch.trial])) for epoch in history.results_in_order[-N_RECENT:]
    ]
    latest_runs = list(history.replicates.values())[-N_RECENT:]
    of_runs = [(epoch.at, _slot_s(epoch, run)) for run in latest_runs for epoch in run.epochs]
    latest = sorted([*of_trials, *of_runs])[-N_RECENT:]
    return sum(slot_s for _, slot_s in latest) / len(latest) if latest else None


def _slot_s(epoch: EpochDone | ReplicateEpochDone, one: Trial | Replicate) -> float:
    start = one.epochs[epoch.epoch - 2].at if epoch.epoch > 1 else one.started_at
    return min(max(epoch.seconds, epoch.at - start), PAUSE * epoch.seconds)


def _epochs_each(space: Space, each: float) -> float:
    """Expected epochs of a trial that is an audit trial by chance and takes `each` epochs otherwise."""
    audit_fraction = space.search.audit_fraction
    return audit_fraction * space.training.max_epochs + (1 - audit_fraction) * each


def _epochs_left_of(trial: Trial, space: Space, passing: Sequence[float]) -> float:
    if trial.baseline or trial.audit:
        return space.training.max_epochs - trial.n_epochs
    return expected_epochs_left(trial.n_epochs, space.rung_epochs, passing)


def _epochs_left_of_unstarted(
    history: History, space: Space, passing: Sequence[float], epochs_to_come: float
) -> tuple[float, ...]:
    """Expected epochs of each trial that is not started; unfinished trials still take `epochs_to_come` epochs."""
    search = space.search
    each = _epochs_each(space, expected_epochs_left(0, space.rung_epochs, passing))
    n = budget.n_to_start(history, space)
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
    # While replicates run, the next block may be waiting for them.
    if history.replicates and not begun and not confirmation.next_run(history, space):
        n_to_come = 0  # the order was clear early
    return (*begun, *[float(max_epochs)] * max(0, n_to_come))
