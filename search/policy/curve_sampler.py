"""Proposals of the curve model (`search.sampler: curves`). Pure functions.

Source: expected improvement as in Jones, Schonlau and Welch, "Efficient Global Optimization" (1998). Near running
trials the deviation is reduced, so that several workers get different configurations; near stopped trials too, because
a rung would refuse another one there again.
"""

from collections.abc import Sequence

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


def is_for_tpe(number: int) -> bool:
    """Whether Optuna's TPE proposes trial `number` in the model's place: every other one.

    Where accuracies are not as smooth as the model assumes, TPE's proposals are better, elsewhere the model's. Taking
    turns was about as good as the better of both in replays; `benchmarks/replay/README.md` has the figures.
    """
    return number % 2 == 0


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
