"""Statistics of rungs: what became of trials there, and how well a rung predicts the end. Pure functions."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from search.experiment.events import EpochDone, SpaceSet
from search.experiment.history import History, Trial
from search.experiment.space_file import space_of_journal
from search.policy.asha import StoppingRule, replay
from search.policy.rungs import RungVisit
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
    """

    epoch: int
    entered: int
    passed: int
    stopped: int
    failed: int


def rung_survival(trials: Sequence[Trial], space: Space) -> list[RungSurvival]:
    """Counts at each rung, lowest rung first. They come from the trials' results, not from the stopping rule."""
    found = []
    for epoch in space.rung_epochs:
        entered = sum(trial.n_epochs >= epoch for trial in trials)
        last_here = [trial for trial in trials if trial.n_epochs == epoch]
        ends = [trial.status for trial in last_here]
        stopped, failed = ends.count("stopped"), ends.count("failed") + ends.count("diverged")
        found.append(RungSurvival(epoch, entered, entered - stopped - failed, stopped, failed))
    return found


@dataclass(frozen=True, slots=True)
class Correlation:
    """Rank correlation between the scores at a rung and at the end of training.

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
        A correlation for each rung but the last. A rung at which all scores are equal is left out; with fewer
        than `MIN_TRIALS` trials, the list is empty.
    """
    from scipy.stats import spearmanr  # half a second, and the live screen needs `rung_survival` only

    n = len(trials)
    if n < MIN_TRIALS:
        return []
    curves = [[trial.metric.score(trial.epochs[epoch - 1]) for trial in trials] for epoch in rung_epochs]
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


def rung_visits(history: History, space: Space) -> dict[int, dict[int, RungVisit]]:
    """Replay a search with its own rule, under the space of each time.

    Args:
        history: of the search.
        space: the present space.

    Returns:
        By number of the trial and epoch of the rung; without rungs at which a trial only counts as diverged.

    Raises:
        InputError: this version cannot read an earlier space of the search.
    """
    known, found = History(chances=history.chances), defaultdict[int, dict[int, RungVisit]](dict)
    then, rule = space, StoppingRule(space, history)
    for event in history.events:
        known.apply(event)
        match event:
            case SpaceSet():
                then = space if known.space == history.space else space_of_journal(known, space.name)
                rule = StoppingRule(then, known)
                replay(rule, known)
            case EpochDone() if not (trial := known.trials[event.trial]).excluded:
                if not event.diverged and event.epoch in then.rung_epochs[:-1]:
                    found[trial.number][event.epoch] = rule.visit(trial, event)
                rule.apply(trial, event)
    return found
