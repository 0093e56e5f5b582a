"""How well the order of trials at a rung tells their order at the end, and what stopping by it loses. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from search.analysis.cost import MAX_SIMULATED_TRIALS, rungs_reached
from search.experiment.history import History, Trial
from search.policy.asha import is_exempt
from search.policy.rungs import Rungs

# Fewer leave an interval as wide as the question.
MIN_TRIALS = 5
# Each costs one look at a rung; more trials are simulated in fewer searches.
N_SIMULATED_TRIALS = 10_000
MIN_SIMULATED_SEARCHES = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlation:
    """Of the values at a rung with the values at the end.

    Attributes:
        epoch: of the rung.
        value: Spearman's rank correlation, -1 to 1.
        low, high: its 95 % interval.
        n: trials that it comes from.
    """

    epoch: int
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Losses:
    """What a search like this one loses by stopping trials.

    Attributes:
        n_winners: trials that it stops and that would have ended above its winner, on average.
        chance: that the trial that would have been best of all is among those it stops.
    """

    n_winners: float
    chance: float


def rung_correlations(trials: Sequence[Trial], rung_epochs: Sequence[int]) -> list[Correlation]:
    """The rank correlation between each rung and the end.

    The interval is Fisher's, with the standard error that Bonett and Wright give for ranks (Psychometrika 65, 2000):
    sqrt((1 + value² / 2) / (n - 3)).

    Args:
        trials: completed ones.
        rung_epochs: ascending; the last is the end.

    Returns:
        One for each rung but the last; a rung at which all values are equal is left out, and all of them are
        where there are fewer than `MIN_TRIALS` trials.
    """
    if len(trials) < MIN_TRIALS:
        return []
    ends = np.array([trial.epochs[rung_epochs[-1] - 1].validation_accuracy for trial in trials])
    found = []
    for epoch in rung_epochs[:-1]:
        values = np.array([trial.epochs[epoch - 1].validation_accuracy for trial in trials])
        if np.ptp(values) > 0 and np.ptp(ends) > 0:
            value = spearman(values, ends)
            found.append(Correlation(epoch, value, *_interval_95(value, len(trials)), len(trials)))
    return found


def spearman(values: Floats, others: Floats) -> float:
    """The correlation of the ranks of two (n,) arrays, neither of them constant; ties get their mean rank."""
    return float(np.corrcoef(rankdata(values), rankdata(others))[0, 1])


def expected_losses(
    trials: int,
    rung_epochs: tuple[int, ...],
    reduction_factor: int,
    correlations: Sequence[float],
    audit_fraction: float,
) -> Losses:
    """What searches lose whose rungs tell the end as well as `correlations` say, by simulating such searches.

    The estimator: values at the rungs and at the end are jointly normal up to a change of scale (which ranks do not
    see), so that Spearman's correlation s belongs to the normal one r = 2 sin(π s / 6) (Pearson 1907), and
    each rung tells of the end only what the next rung tells (a Markov chain backwards from the end). Trials drawn
    so are sent through the real rungs (`search.policy.rungs`), one after the other; the first, as the baseline, and
    the part `audit_fraction` of the others are not stopped. A stopped trial counts as a would-be winner if its end lies
    above the ends of all that were not stopped. Not in it: proposals that improve during a search, trials side by side,
    divergence, and curves of bad and good trials that cross otherwise than normal ones.

    Args:
        trials: of a search; more than `MAX_SIMULATED_TRIALS` are simulated as so many.
        rung_epochs: ascending; the last is the end.
        reduction_factor: of the rungs.
        correlations: Spearman's, for each rung but the last. One below an earlier one counts as equal to it, one
            below 0 as 0.
        audit_fraction: chance of a trial not to be stopped.
    """
    n_trials = max(2, min(trials, MAX_SIMULATED_TRIALS))
    n_searches = max(MIN_SIMULATED_SEARCHES, N_SIMULATED_TRIALS // n_trials)
    spread = [2 * math.sin(math.pi * min(max(value, 0.0), 1.0) / 6) for value in correlations]
    normal = np.minimum(np.maximum.accumulate(np.array(spread)), 1.0)
    generator = np.random.default_rng(0)
    n_winners = n_best_stopped = 0
    for _ in range(n_searches):
        # Drawn alike for every correlation, so that results differ by it alone.
        noise = generator.standard_normal((len(rung_epochs), n_trials))
        exempt = generator.random(n_trials) < audit_fraction
        exempt[0] = True
        ends = noise[-1]
        values = _backwards(ends, noise[:-1], normal)
        stopped = rungs_reached(values, exempt, rung_epochs, reduction_factor) < len(rung_epochs)
        n_winners += int((ends[stopped] > ends[~stopped].max()).sum())
        n_best_stopped += bool(stopped[ends.argmax()])
    return Losses(n_winners / n_searches, n_best_stopped / n_searches)


def first_refusals(
    history: History, rung_epochs: tuple[int, ...], reduction_factor: int, chance: float | None = None
) -> dict[int, int]:
    """The epoch of the first rung that a trial did not pass, by its number; those that passed all are left out.

    Exempt trials are among them: this is where they would have been stopped. Of a search that promotes, those are
    named that the stopping rule would have refused, which is nearly the same.

    Args:
        history: of the search.
        rung_epochs, reduction_factor, chance: as in `Rungs`.
    """
    rungs = Rungs(rung_epochs, reduction_factor, chance=chance)
    refused: dict[int, int] = {}
    for result in history.results_in_order:
        trial = history.trials[result.trial]
        if trial.excluded:
            continue
        if result.diverged:
            rungs.diverge(trial.number, result.epoch, is_exempt(trial))
            refused.setdefault(trial.number, result.epoch)
            continue
        verdict = rungs.arrive(trial.number, result.epoch, result.validation_accuracy)
        if verdict and not verdict.passed:
            refused.setdefault(trial.number, result.epoch)
    return refused


def _interval_95(value: float, n: int) -> tuple[float, float]:
    # A perfect order of few trials does not make sure of one: it counts as half a swap of neighbours away from it.
    most = 1 - 6 / (n * (n * n - 1))
    centre = math.atanh(min(max(value, -most), most))
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (n - 3))
    return math.tanh(centre - half), math.tanh(centre + half)


def _backwards(ends: Floats, noise: Floats, correlations: Floats) -> Floats:
    """(rungs, trials) values whose normal correlation with `ends` is `correlations`, each rung from the next."""
    values = np.empty_like(noise)
    later, later_correlation = ends, 1.0
    for i in reversed(range(len(noise))):
        share = correlations[i] / later_correlation if later_correlation else 0.0
        values[i] = share * later + math.sqrt(1 - share**2) * noise[i]
        later, later_correlation = values[i], correlations[i]
    return values
