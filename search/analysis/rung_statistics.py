"""Statistics of rungs: what became of trials there, how well a rung predicts the end, what stopping loses. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from search.analysis.cost import MAX_SIMULATED_TRIALS, rungs_reached
from search.experiment.history import History, Trial
from search.policy.asha import is_exempt, waits_at_rung
from search.policy.rungs import Rungs
from spaces.schema import Space


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


def rung_survival(trials: Iterable[Trial], space: Space) -> list[RungSurvival]:
    """Counts at each rung, lowest rung first. They come from the trials' results, not from the stopping rule."""
    known = list(trials)
    return [_at_rung(known, epoch, space) for epoch in space.rung_epochs]


def _at_rung(trials: list[Trial], epoch: int, space: Space) -> RungSurvival:
    there = [trial for trial in trials if trial.n_epochs >= epoch]
    last_here = [trial for trial in there if trial.n_epochs == epoch]
    ends = [trial.status for trial in last_here]
    stopped, failed = ends.count("stopped"), ends.count("failed") + ends.count("diverged")
    waiting = sum(waits_at_rung(trial, space) for trial in last_here)
    return RungSurvival(
        epoch=epoch,
        entered=len(there),
        passed=len(there) - stopped - waiting - failed,
        stopped=stopped,
        failed=failed,
        waiting=waiting,
    )


MIN_TRIALS = 5  # with fewer trials, the interval of a correlation says nothing
N_SIMULATED_TRIALS = 10_000  # of all simulated searches
MIN_SIMULATED_SEARCHES = 20

Floats = NDArray[np.float64]


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


@dataclass(frozen=True, slots=True)
class Losses:
    """Expected losses of a search that stops trials.

    Attributes:
        n_winners: mean number of stopped trials that would have ended above the winner.
        chance: probability that the trial with the best end is stopped, 0 to 1.
    """

    n_winners: float
    chance: float


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
    """Rank correlation of two (n,) arrays that are not constant; ties get their mean rank."""
    return float(np.corrcoef(rankdata(values), rankdata(others))[0, 1])


def expected_losses(
    trials: int,
    rung_epochs: tuple[int, ...],
    reduction_factor: int,
    correlations: Sequence[float],
    audit_fraction: float,
) -> Losses:
    """Simulate searches whose rungs have the given rank correlations with the end of training.

    The model: accuracies at the rungs and at the end are jointly normal up to a monotonic transformation, which ranks
    do not change, so that Spearman's correlation s is the normal correlation r = 2 sin(π s / 6) (Pearson 1907). Each
    rung depends on the end only through the next rung (a Markov chain backwards from the end). Simulated trials pass
    the rungs of `search.policy.rungs` one after the other; the baseline and the audit trials are not stopped. A
    stopped trial is a would-be winner if its end lies above the ends of all trials that were not stopped. The model
    has no improving proposals, no parallel trials, no divergence, and no other crossings of curves.

    Args:
        trials: number of trials of a search; at most `MAX_SIMULATED_TRIALS` are simulated.
        rung_epochs: ascending; the last is the end of training.
        reduction_factor: of the rungs.
        correlations: Spearman's correlation for each rung but the last. A correlation below an earlier one is raised
            to it; a negative one counts as 0.
        audit_fraction: probability that a trial is not stopped, 0 to 1.
    """
    n_trials = max(2, min(trials, MAX_SIMULATED_TRIALS))
    n_searches = max(MIN_SIMULATED_SEARCHES, N_SIMULATED_TRIALS // n_trials)
    spread = [2 * math.sin(math.pi * min(max(value, 0.0), 1.0) / 6) for value in correlations]
    normal = np.minimum(np.maximum.accumulate(np.array(spread)), 1.0)
    generator = np.random.default_rng(0)
    n_winners = n_best_stopped = 0
    for _ in range(n_searches):
        # The same draws for every correlation, so that results differ by the correlation only.
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
    """Epoch of the first rung that each trial did not pass, by the trial's number.

    Trials that passed all rungs are left out. The baseline and audit trials are included: they would have been
    stopped at this rung. Where `search.asha` is `promote`, the stopping rule is applied, which gives nearly the same.

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
        if rungs.arrive(trial.number, result.epoch, result.validation_accuracy):
            refused.setdefault(trial.number, result.epoch)
    return refused


def _interval_95(value: float, n: int) -> tuple[float, float]:
    # A perfect correlation has no finite interval: it is lowered by half a swap of neighbours.
    most = 1 - 6 / (n * (n * n - 1))
    centre = math.atanh(min(max(value, -most), most))
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (n - 3))
    return math.tanh(centre - half), math.tanh(centre + half)


def _backwards(ends: Floats, noise: Floats, correlations: Floats) -> Floats:
    """(rungs, trials) values that have the normal `correlations` with `ends`; each rung is drawn from the next."""
    values = np.empty_like(noise)
    later, later_correlation = ends, 1.0
    for i in reversed(range(len(noise))):
        share = correlations[i] / later_correlation if later_correlation else 0.0
        values[i] = share * later + math.sqrt(1 - share**2) * noise[i]
        later, later_correlation = values[i], correlations[i]
    return values
