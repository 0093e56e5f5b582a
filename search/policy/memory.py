"""Configurations that did well in earlier searches: the first trials of a new one. Pure functions.

The best hyperparameters of a small CNN are much the same on different images: `benchmarks/replay/README.md` has the
correlations, and what these trials are worth.

Source: a portfolio of complementary configurations as the start of a search is the idea of Feurer et al., "Auto-sklearn
2.0" (2022); the random tasks are the project's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.experiment.history import History
from search.experiment.space_file import space_of_journal
from search.policy.coordinates import Array, features, from_unit, values_of
from search.policy.curve_model import distances, matern52
from search.policy.forecasts import model_of
from spaces.parameters import Hyperparameters, Searched
from spaces.schema import Space

N_STARTS = 4
N_CANDIDATES = 700
FEWEST_TRIALS = 8  # with results, in an earlier search; fewer say too little
MOST_REMEMBERED = 500  # the newest ones of an earlier search, which bounds time and memory
SCORE_NOISE = 0.1  # variance of the noise of an earlier score, in units of the variance of all scores of its search
TASK_VARIANCE = 0.2  # variance of the difference between two tasks, in the same units
N_TASKS = 32  # random tasks for each earlier search, and as many with the opposite differences


@dataclass(frozen=True, slots=True, eq=False)
class EarlierSearch:
    """Final scores of N configurations of an earlier search.

    Attributes:
        name: name of its experiment.
        max_epochs: epochs of a complete curve.
        searched: names of the searched hyperparameters.
        configs: N configurations.
        scores: (N,) final scores, more is better, on any scale with about equal noise, such as that of `to_z`.
    """

    name: str
    max_epochs: int
    searched: frozenset[str]
    configs: Sequence[Hyperparameters]
    scores: Array


def earlier_search(name: str, history: History) -> EarlierSearch | None:
    """The forecasts of an earlier search, also of its stopped trials.

    Returns:
        None if fewer than `FEWEST_TRIALS` have results, or none is above chance.

    Raises:
        InputError: this version cannot read the space of the search.
    """
    scores = [trial.last_score for trial in history.counting if trial.last_score is not None]
    if len(scores) < FEWEST_TRIALS or (history.chance is not None and max(scores) <= history.chance):
        return None
    space = space_of_journal(history, name)
    trials, model = model_of(history)
    configs = [trial.config for trial in trials][-MOST_REMEMBERED:]
    final = model.of_curves()[0][-MOST_REMEMBERED:]
    return EarlierSearch(name, space.training.max_epochs, frozenset(space.searched), configs, final)


def starts(space: Space, memory: Sequence[EarlierSearch]) -> list[Hyperparameters]:
    """At most `N_STARTS` configurations of `space`, the most promising first.

    Each is the one that most raises the expected best score of the baseline and those before it, over random tasks: the
    scores of one of the earlier searches, which have hyperparameters in common with `space`, plus a smooth random
    difference.
    """
    if not memory:
        return []
    generator = np.random.default_rng([space.search.seed, N_STARTS])
    places = generator.random((N_CANDIDATES, len(space.searched)))
    configs = [space.baseline, *(space.complete(from_unit(space.searched, place)) for place in places)]
    points = _points(space.searched, configs, space.training.max_epochs)
    covariance = TASK_VARIANCE * matern52(distances(points, points)) + 1e-6 * np.eye(len(configs))
    difference = generator.standard_normal((N_TASKS, len(configs))) @ np.linalg.cholesky(covariance).T
    differences = np.concatenate([difference, -difference])
    tasks = np.concatenate([scores_at(one, space, configs) + differences for one in memory])  # (tasks, configurations)
    chosen, best = list[int](), tasks[:, 0]
    for _ in range(N_STARTS):
        chosen.append(int(np.maximum(best[:, None], tasks).mean(0).argmax()))
        best = np.maximum(best, tasks[:, chosen[-1]])
    return [configs[index] for index in dict.fromkeys(chosen) if index]


def scores_at(earlier: EarlierSearch, space: Space, configs: Sequence[Hyperparameters]) -> Array:
    """Standardised scores of an earlier search at M configurations of `space`, (M,), by a Gaussian process."""
    common = {name: parameter for name, parameter in space.searched.items() if name in earlier.searched}
    known = _points(common, earlier.configs, earlier.max_epochs)
    covariance = matern52(distances(known, known)) + SCORE_NOISE * np.eye(len(known))
    standardised = (earlier.scores - earlier.scores.mean()) / max(float(earlier.scores.std()), 1e-6)
    weights = np.linalg.solve(covariance, standardised)
    return matern52(distances(_points(common, configs, space.training.max_epochs), known)) @ weights


def _points(searched: Mapping[str, Searched], configs: Sequence[Hyperparameters], max_epochs: int) -> Array:
    return features(searched, values_of(configs), np.full(len(configs), max_epochs))
