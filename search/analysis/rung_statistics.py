"""Statistics of rungs: what became of trials there, and how well a rung predicts the end. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.experiment.history import History, Trial
from search.policy.asha import is_exempt, waits_at_rung
from search.policy.rungs import Rungs
from spaces.schema import Space

MIN_TRIALS = 5  # with fewer trials, the interval of a correlation says nothing


@dataclass(frozen=True, slots=True)
class RungSurvival:
    """Numbers of trials at a rung; `entered` is the sum of the others.

    Attributes:
        epoch: epoch of the rung; that of the last rung is the end of training.
        entered: trials that finished this epoch, the baseline and audit trials included.
        passed: trials that continue or completed.
        stopped: trials that ASHA stopped at this rung.
        failed: trials that failed or diverged at this rung.
        waiting: trials that may still be promoted, where `search.asha` is `promote`.
    """

    epoch: int
    entered: int
    passed: int
    stopped: int
    failed: int
    waiting: int


def rung_survival(trials: Sequence[Trial], space: Space) -> list[RungSurvival]:
    """Counts at each rung, lowest rung first. They come from the trials' results, not from the stopping rule."""
    found = []
    for epoch in space.rung_epochs:
        entered = sum(trial.n_epochs >= epoch for trial in trials)
        last_here = [trial for trial in trials if trial.n_epochs == epoch]
        ends = [trial.status for trial in last_here]
        stopped, failed = ends.count("stopped"), ends.count("failed") + ends.count("diverged")
        waiting = sum(waits_at_rung(trial, space) for trial in last_here)
        found.append(RungSurvival(epoch, entered, entered - stopped - failed - waiting, stopped, failed, waiting))
    return found


@dataclass(frozen=True, slots=True)
class Correlation:
    """Rank correlation between the accuracies at a rung and at the end of training.

    Attributes:
        epoch: epoch of the rung.
        value: Spearman's rank correlation, -1 to 1.
        low, high: ends of its 95 % interval.
        n: number of trials.
    """

    epoch: int
    value: float
    low: float
    high: float
    n: int


def rung_correlations(trials: Sequence[Trial], rung_epochs: Sequence[int]) -> list[Correlation]:
    """Rank correlation between each rung and the end of training.

    The interval is Fisher's, with the standard error that Bonett and Wright give for ranks (Psychometrika 65, 2000):
    sqrt((1 + value² / 2) / (n - 3)).

    Args:
        trials: completed trials.
        rung_epochs: ascending; the last is the end of training.

    Returns:
        A correlation for each rung but the last. A rung at which all accuracies are equal is left out; with fewer
        than `MIN_TRIALS` trials, the list is empty.
    """
    from scipy.stats import spearmanr  # half a second, and the live screen needs `rung_survival` only

    n = len(trials)
    if n < MIN_TRIALS:
        return []
    curves = [[trial.epochs[epoch - 1].validation_accuracy for trial in trials] for epoch in rung_epochs]
    found = []
    for epoch, values in zip(rung_epochs[:-1], curves, strict=False):
        if min(len(set(values)), len(set(curves[-1]))) > 1:
            value = float(spearmanr(values, curves[-1]).statistic)
            # A perfect correlation has no finite interval: it is lowered by half a swap of neighbours.
            most = 1 - 6 / (n * (n * n - 1))
            centre = math.atanh(min(max(value, -most), most))
            half = 1.96 * math.sqrt((1 + value**2 / 2) / (n - 3))
            found.append(Correlation(epoch, value, math.tanh(centre - half), math.tanh(centre + half), n))
    return found


def refused_audits(history: History, space: Space, chance: float | None = None) -> set[int]:
    """Numbers of the audit trials that a rung of the stopping variant would have stopped.

    Where `search.asha` is `promote`, the stopping variant gives nearly the same.
    """
    rungs = Rungs(space.rung_epochs, space.search.reduction_factor, chance)
    refused = set[int]()
    for result in history.results_in_order:
        trial = history.trials[result.trial]
        if trial.excluded:
            continue
        if result.diverged:
            rungs.diverge(trial.number, result.epoch, is_exempt(trial))
        elif rungs.arrive(trial.number, result.epoch, result.validation_accuracy) and trial.audit:
            refused.add(trial.number)
    return refused
