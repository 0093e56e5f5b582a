"""What a search will cost, from its rungs. Pure functions."""

import heapq
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from search.policy.rungs import Rungs

N_SIMULATED = 200
# Measured, and half as much again: journal and copy, tables, study.db, Ray's logs, and its snapshot while it runs.
FOLDER_BYTES = 4_000_000
TRIAL_BYTES = 60_000
EPOCH_BYTES = 6_000
# Retraining keeps one a seed until it has exported; the exports take about as much as another two.
RETRAINED_CHECKPOINTS = 6

# The share that passes a rung no longer changes beyond so many trials.
MAX_SIMULATED_TRIALS = 500


def expected_epochs(trials: int, rung_epochs: tuple[int, ...], reduction_factor: int, n_audits: int = 0) -> float:
    """Epochs that ASHA is expected to train in all; the first trial, as the baseline, goes to the end.

    Args:
        trials: how many are started.
        rung_epochs: ascending; the last is where trials end.
        reduction_factor: of the rungs.
        n_audits: trials beside the baseline that go to the end whatever a rung says.
    """
    passing = passing_shares(trials, rung_epochs, reduction_factor, n_audits / max(trials - 1, 1))
    n_exempt = 1 + n_audits
    return n_exempt * rung_epochs[-1] + (trials - n_exempt) * expected_epochs_left(0, rung_epochs, passing)


def expected_epochs_left(done: int, rung_epochs: Sequence[int], passing: Sequence[float]) -> float:
    """Epochs that a trial is expected to train yet.

    Args:
        done: epochs that it has trained; a rung that it stands at, it has passed.
        rung_epochs: ascending; the last is where trials end.
        passing: share of trials that goes on at each rung but the last.
    """
    left, reaches, at = 0.0, 1.0, done
    for rung, share in zip(rung_epochs, [*passing, 0.0], strict=True):
        if rung > done:
            left += reaches * (rung - at)
            at = rung
            reaches *= share
    return left


def disk_bytes(trials: int, epochs: int, n_checkpoints: int, checkpoint_bytes: int) -> int:
    """What an experiment's folder may take at most, its retraining included.

    Args:
        trials: so many are started.
        epochs: of all of them.
        n_checkpoints: that are kept at the same time.
        checkpoint_bytes: of one.
    """
    checkpoints = checkpoint_bytes * max(n_checkpoints, RETRAINED_CHECKPOINTS)
    return FOLDER_BYTES + checkpoints + trials * TRIAL_BYTES + epochs * EPOCH_BYTES


def size_text(n_bytes: float) -> str:
    """`13 MB`, in powers of ten; at least `1 MB`."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{max(1, math.ceil(n_bytes / 1e6))} MB"


def seconds_left(
    trial_epochs: Iterable[float], run_epochs: Iterable[float], epoch_s: float, trials_at_once: int
) -> float:
    """Seconds until all trials, and after them all replicates, are trained.

    Args:
        trial_epochs: epochs that each trial still has to train. Trials of different length fill all slots to the
            end, but the longest trial needs its own time.
        run_epochs: likewise of each replicate. Replicates are few and of equal length, and start when the last
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


@lru_cache(maxsize=64)
def passing_shares(
    trials: int, rung_epochs: tuple[int, ...], reduction_factor: int, audit_fraction: float = 0.0
) -> tuple[float, ...]:
    """The share of trials that goes on at each rung but the last, of those that a rung may stop.

    Trials with random, steady ranks are sent through the real rungs one after the other; the first, as the
    baseline, and the part `audit_fraction` of the others are compared with, but not counted. Real curves cross, and
    proposals improve, so that more may pass.
    """
    generator = np.random.default_rng(0)
    n_trials = min(max(trials, 2), MAX_SIMULATED_TRIALS)
    n_simulated = max(1, min(N_SIMULATED, 10_000 // n_trials))
    n_arrived = np.zeros(len(rung_epochs))
    for _ in range(n_simulated):
        values = generator.random(n_trials)
        exempt = generator.random(n_trials) < audit_fraction if audit_fraction else np.zeros(n_trials, bool)
        exempt[0] = True
        n_arrived += _arrivals(values, exempt, rung_epochs, reduction_factor)
    return tuple(float(share) for share in n_arrived[1:] / np.maximum(n_arrived[:-1], 1))


def duration_text(seconds: float) -> str:
    """Such as `45 seconds`, `12 minutes` or `3.5 hours`."""
    if seconds < 90:
        return _counted(f"{seconds:.0f}", "second")
    if seconds < 90 * 60:
        return _counted(f"{seconds / 60:.0f}", "minute")
    return _counted(f"{seconds / 3600:.1f}", "hour")


def _counted(number: str, unit: str) -> str:
    return f"{number} {unit}" if number == "1" else f"{number} {unit}s"


def _arrivals(
    values: np.ndarray, exempt: np.ndarray, rung_epochs: tuple[int, ...], reduction_factor: int
) -> np.ndarray:
    """How many trials that are not exempt reach each rung."""
    rungs = Rungs(rung_epochs, reduction_factor)
    n_arrived = np.zeros(len(rung_epochs))
    for number, value in enumerate(values):
        for i, epoch in enumerate(rung_epochs):
            n_arrived[i] += not exempt[number]
            verdict = rungs.arrive(number, epoch, float(value))
            if verdict and not verdict.passed and not exempt[number]:
                break
    return n_arrived
