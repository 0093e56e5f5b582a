"""Proposals of the curve model (`search.sampler: curves`), and when they are not to be trusted. Pure functions.

Source: expected improvement as in Jones, Schonlau and Welch, "Efficient Global Optimization" (1998). Near running
trials the deviation is reduced, so that several workers get different configurations; near stopped trials too, because
a rung would refuse another one there again.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from search.experiment.history import History
from search.policy.coordinates import Array, all_from_unit, from_unit, to_unit, values_of
from search.policy.forecasts import model_of
from spaces.parameters import Hyperparameters, Number
from spaces.schema import Space

N_RANDOM = 700
N_PARENTS = 4
N_PERTURBED = 60  # candidates near each parent
PERTURBATION = 0.12  # standard deviation in the unit cube
RANDOM_SHARE = 0.2
FEWEST_CHECKED = 10  # completed trials
SMALLEST_CORRELATION = 0.6  # of foreseen and seen results; below it, every other proposal is Optuna's TPE's


def proposal(space: Space, history: History, number: int) -> dict[str, Number] | None:
    """Values of the searched parameters for trial `number`; None: they are to be drawn at random."""
    if is_random(space, history, number):
        return None
    generator = np.random.default_rng([space.search.seed, number])
    trials, model = model_of(history)
    means, _ = model.of_curves()
    n_epochs = np.array([trial.n_epochs for trial in trials])
    is_complete = n_epochs == space.training.max_epochs
    best = float(means[is_complete].max() if is_complete.any() else means.max())
    places = _candidates(space, [trials[index].config for index in np.argsort(-means)[:N_PARENTS]], generator)
    fixed = {name: np.full(len(places), value) for name, value in space.baseline.as_dict().items()}
    values = fixed | all_from_unit(space.searched, places)
    mean, deviation = model.of_configs(values)
    avoided = [trial.config for trial in history.counting if trial.status in ("running", "stopped")]
    if avoided:
        nearest = model.similarity(values, values_of(avoided)).max(1)
        deviation = deviation * np.sqrt(np.maximum(1 - nearest**2, 1e-9))
    return from_unit(space.searched, places[int(np.argmax(expected_improvement(mean, deviation, best)))])


def foresight(history: History) -> float | None:
    """Correlation of foreseen and seen results of the completed trials; None if there are fewer than `FEWEST_CHECKED`.

    What is foreseen of a trial rests on all others, also on later ones. 0 if the results are equal. All completed
    trials count: the last ones of a good search are so alike that there is little to foresee.
    """
    return _foresight(history, len(history.results_in_order), history.n_ended, history.n_spaces)


# A history grows: the numbers are part of the key of what is remembered.
@lru_cache(maxsize=1)
def _foresight(history: History, n_results: int, n_ended: int, n_spaces: int) -> float | None:
    if sum(trial.status == "completed" for trial in history.counting) < FEWEST_CHECKED:
        return None
    trials, model = model_of(history)
    foreseen, seen = model.left_out()
    # The oldest curves of a very long search are not in the model.
    is_checked = np.isfinite(seen) & [trial.status == "completed" for trial in trials]
    foreseen, seen = foreseen[is_checked], seen[is_checked]
    if not foreseen.std() or not seen.std():
        return 0.0
    return float(np.corrcoef(foreseen, seen)[0, 1])


def is_guarded(history: History, number: int) -> bool:
    """Whether Optuna's TPE proposes trial `number`, every other one where the model foresees badly."""
    if number % 2:
        return False
    found = foresight(history)
    return found is not None and found < SMALLEST_CORRELATION


def is_random(space: Space, history: History, number: int) -> bool:
    """Whether trial `number` is random: before the first result, before `search.startup_trials`, later one in five."""
    draw = np.random.default_rng([space.search.seed, number, 1]).random()
    has_results = any(trial.epochs for trial in history.counting)
    return not has_results or number < space.search.startup_trials or draw < RANDOM_SHARE


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Expected excess of normal variables over `best`, where negative excess counts as 0."""
    standardised = (mean - best) / deviation
    density = np.exp(-(standardised**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(deviation * (standardised * ndtr(standardised) + density))


def _candidates(space: Space, parents: Sequence[Hyperparameters], generator: np.random.Generator) -> Array:
    """Places of the candidates in the unit cube, (M, D)."""
    n = len(space.searched)
    places = [generator.random((N_RANDOM, n))]
    for parent in parents:
        centre = to_unit(space.searched, parent.as_dict())
        places.append(np.clip(centre + PERTURBATION * generator.standard_normal((N_PERTURBED, n)), 0, 1))
    return np.concatenate(places)
