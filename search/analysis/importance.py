"""Importance of hyperparameters: Optuna's fANOVA, compared with fANOVA of shuffled values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial

from search.experiment.history import Trial
from search.policy.study import distributions
from spaces.parameters import Hyperparameters, LogUniform
from spaces.schema import Space
from trainable.metric import LEAST_SCALE

MIN_TRIALS = 10  # with fewer trials, a tree has a leaf for each, and every parameter seems important
MAX_TRIALS = 200  # of more trials, a random sample is used: a forest takes seconds
N_TREES = 32
N_SHUFFLED = 19  # permutation test: the maximum of 19 null draws is exceeded with p = 1/20
N_TREES_SHUFFLED = 8  # fewer trees scatter more, so that the null draws are slightly too large


@dataclass(frozen=True, slots=True)
class Importance:
    """Share of the variance between trials that each parameter explains.

    Attributes:
        epoch: epoch whose scores are compared.
        n: number of trials.
        shares: share of the variance that each searched parameter explains alone, 0 to 1; largest first.
        by_chance: largest share of any parameter in `N_SHUFFLED` permutations of the scores.
    """

    epoch: int
    n: int
    shares: Mapping[str, float]
    by_chance: float

    @property
    def found(self) -> dict[str, float]:
        """Parameters whose share is larger than `by_chance`."""
        return {name: share for name, share in self.shares.items() if share > self.by_chance}


def importance_at(epoch: int, trials: Sequence[Trial], space: Space) -> Importance | None:
    """fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014) of the score after an epoch; losses count as logarithms.

    Each parameter is taken in its own scale; Optuna's evaluator would weigh the upper decade of a loguniform range
    ten times as much as the decade below. A trial that diverged until this epoch gets the lowest score of the
    others. fANOVA also attributes pure noise to parameters, which `by_chance` measures. Replicates do not count,
    because only the best trials have them.

    Args:
        epoch: counted from 1.
        trials: trials that did not reach the epoch, or lie outside the space, are left out.
        space: the searched space.

    Returns:
        None for fewer than `MIN_TRIALS` trials, fewer than two parameters, or equal scores.
    """
    generator = np.random.default_rng(space.search.seed)
    inside = [trial for trial in trials if space.contains(trial.config)]
    arrived = [(trial, value) for trial in inside if (value := _value_at(epoch, trial)) is not None]
    if len(arrived) > MAX_TRIALS:
        arrived = [arrived[i] for i in sorted(generator.choice(len(arrived), MAX_TRIALS, replace=False))]
    known = [value for _, value in arrived if math.isfinite(value)]
    if len(arrived) < MIN_TRIALS or len(space.searched) < 2 or len(set(known)) < 2:
        return None
    configs = [trial.config for trial, _ in arrived]
    values = np.array([value if math.isfinite(value) else min(known) for _, value in arrived])
    shares = _shares(configs, values, space, N_TREES)
    shuffled = [_shares(configs, generator.permutation(values), space, N_TREES_SHUFFLED) for _ in range(N_SHUFFLED)]
    by_chance = max(share for shares_then in shuffled for share in shares_then.values())
    return Importance(epoch, len(arrived), dict(sorted(shares.items(), key=lambda item: -item[1])), by_chance)


def _value_at(epoch: int, trial: Trial) -> float | None:
    """Score after an epoch; NaN where the trial diverged before, None where it ended before.

    Losses as minus their logarithms, because a few large ones would have nearly all of the variance.
    """
    if epoch in trial.scores:
        score = trial.scores[epoch]
        return -math.log(max(-score, LEAST_SCALE)) if trial.metric.is_loss else score
    return math.nan if trial.last and trial.last.diverged and trial.n_epochs <= epoch else None


def _shares(
    configs: Sequence[Hyperparameters], values: NDArray[np.float64], space: Space, n_trees: int
) -> dict[str, float]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    scales: dict[str, BaseDistribution] = distributions(space)
    logs = {name: range_ for name, range_ in space.searched.items() if isinstance(range_, LogUniform)}
    scales |= {name: FloatDistribution(math.log(range_.low), math.log(range_.high)) for name, range_ in logs.items()}
    for config, value in zip(configs, values, strict=True):
        params = {name: getattr(config, name) for name in scales}
        params |= {name: math.log(params[name]) for name in logs}
        study.add_trial(create_trial(params=params, distributions=scales, value=float(value)))
    evaluator = FanovaImportanceEvaluator(n_trees=n_trees, seed=space.search.seed)
    return {name: float(share) for name, share in evaluator.evaluate(study).items()}
