"""Forecasts of trials after their last epoch, from all partial learning curves. Pure functions of the history."""

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


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the curve model expects of a trial after the last epoch, as scores of the metric.

    Attributes:
        mean: the expected score.
        low, high: ends of its 95 % credible interval.
    """

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval, which need not be symmetric."""
        return (self.high - self.low) / 2


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
    mean, deviation = model.of_curves()
    ends = [from_z(mean + side * _TWO_SIDED_95 * deviation, history.metric.is_loss) for side in (0, -1, 1)]
    found = zip(trials, *ends, strict=True)
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
    worst = min((metric.score(result) for result in results if not result.diverged), default=metric.worst)
    for result in results:
        seen = scores.setdefault(result.trial, [])
        # A diverged trial counts as the worst score to the end.
        seen += [worst] * (max_epochs - len(seen)) if result.diverged else [metric.score(result)]
    trials = [history.trials[number] for number in scores]
    curves = [Curve(trial.config, scores[trial.number]) for trial in trials]
    return trials, CurveModel(space.searched, max_epochs, curves, parameters, metric.is_loss)
