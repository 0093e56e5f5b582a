"""Forecasts of trials after their last epoch, from all partial learning curves, and the order of trials by them.

Pure functions of the history.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from search.experiment.events import EpochDone
from search.experiment.history import History, Trial
from search.experiment.space_file import space_of_journal
from search.policy.curve_model import Curve, CurveModel, KernelParameters, from_z
from spaces.schema import Space

# The parameters of the covariance are chosen anew when the number of results has grown by this factor.
REFIT_FACTOR = 1.2
_TWO_SIDED_95 = 1.96  # standard deviations of a normal distribution
# Lower sorts first. A stopped trial may look better than a completed one, but only up to where it stopped.
_STATUS_ORDER = {"completed": 0, "stopped": 1, "running": 1, "failed": 2, "diverged": 3}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the curve model expects of a trial after the last epoch, as scores of the metric.

    Attributes:
        mean: the expected score.
        half_width: half the width of its 95 % credible interval, which need not be symmetric.
    """

    mean: float
    half_width: float


def forecasts(history: History) -> Mapping[int, Forecast]:
    """Forecasts by number of the trial, for each that can win (`Trial.can_win`).

    A completed trial has one as well: its result is partly luck, and trials of similar configurations correct it. Empty
    where the history has no space.
    """
    if not history.results_in_order or history.space is None:
        return {}
    return _forecasts(history, len(history.results_in_order), history.n_spaces)


def model_of(history: History) -> tuple[list[Trial], CurveModel]:
    """The trials that count and have results, and a model of their curves.

    Args:
        history: of the search, with a space and at least one result of a trial that counts.
    """
    return _model_of(history, len(history.results_in_order), history.n_spaces)


# Histories grow: the numbers of their results and spaces are part of the keys of what is remembered.
@lru_cache(maxsize=4)
def _forecasts(history: History, n_results: int, n_spaces: int) -> Mapping[int, Forecast]:
    if not any(trial.epochs for trial in history.counting):
        return {}
    trials, model = model_of(history)
    z, deviation = model.of_curves()
    mean, low, high = (from_z(z + side * _TWO_SIDED_95 * deviation, history.metric.is_loss) for side in (0, -1, 1))
    found = zip(trials, mean, (high - low) / 2, strict=True)
    return {trial.number: Forecast(*map(float, values)) for trial, *values in found if trial.can_win}


@lru_cache(maxsize=4)
def _model_of(history: History, n_results: int, n_spaces: int) -> tuple[list[Trial], CurveModel]:
    space = _space_of(history, n_spaces)
    results = [result for result in history.results_in_order if not history.trials[result.trial].excluded]
    # From a first part of the history only, so that a resumed search chooses the same parameters.
    n_first = 1
    while (n_next := max(n_first + 1, int(n_first * REFIT_FACTOR))) <= len(results):
        n_first = n_next
    parameters = _parameters_of(history, n_first, n_spaces)
    return _fitted(history, space, results, parameters)


@lru_cache(maxsize=4)
def _parameters_of(history: History, n_first: int, n_spaces: int) -> KernelParameters:
    results = [result for result in history.results_in_order if not history.trials[result.trial].excluded]
    return _fitted(history, _space_of(history, n_spaces), results[:n_first], None)[1].parameters


@lru_cache(maxsize=4)
def _space_of(history: History, n_spaces: int) -> Space:
    return space_of_journal(history, "search")


def _fitted(
    history: History, space: Space, results: Sequence[EpochDone], parameters: KernelParameters | None
) -> tuple[list[Trial], CurveModel]:
    max_epochs, metric, scores = space.training.max_epochs, history.metric, dict[int, list[float]]()
    diverged = [result.trial for result in results if result.diverged]
    for result in results:
        seen = scores.setdefault(result.trial, [])
        if not result.diverged:
            seen.append(metric.score(result))
    worst = min((score for seen in scores.values() for score in seen), default=metric.worst) if diverged else 0.0
    for trial in diverged:  # counts as the worst score to the end
        scores[trial] += [worst] * (max_epochs - len(scores[trial]))
    trials = [history.trials[number] for number in scores]
    curves = [Curve(trial.config, scores[trial.number]) for trial in trials]
    return trials, CurveModel(space.searched, max_epochs, curves, parameters, metric.is_loss)


def search_order(trial: Trial) -> tuple[float, ...]:
    """Sort key of trials, best first.

    Trials that count come before excluded ones; completed trials before stopped and running ones, then failed, then
    diverged ones. Trials that did not complete are ordered by their number of epochs. Ties are broken by
    the score of the last epoch, then its validation loss, then the trial's number; a trial without a finite result
    comes last.
    """
    score, result = trial.last_score, (math.inf, math.inf)
    if trial.last and score is not None:
        loss = trial.last.validation_loss
        result = (-score, loss if math.isfinite(loss) else math.inf)
    n_epochs = 0 if trial.status == "completed" else -trial.n_epochs
    return (trial.excluded, _STATUS_ORDER[trial.status], n_epochs, *result, trial.number)


def best_first(history: History) -> list[Trial]:
    """All trials, best first, without regard to replicates.

    Trials that count come before excluded ones; then failed, then diverged ones are last. Trials at chance come after
    others. The rest is ordered by forecast, whether a trial has completed or not; ties, and trials without a forecast,
    by `search_order`.
    """
    foreseen, chance = forecasts(history), history.chance

    def key(trial: Trial) -> tuple[float, ...]:
        forecast, score = foreseen.get(trial.number), trial.last_score
        at_chance = chance is not None and score is not None and score <= chance
        group = 0 if trial.can_win else 2 if trial.status == "diverged" else 1
        return (trial.excluded, group, at_chance, -forecast.mean if forecast else math.inf, *search_order(trial))

    return sorted(history.trials.values(), key=key)
