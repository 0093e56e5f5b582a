"""Samplers by the names of `search.sampler`: any `optuna.samplers.BaseSampler` can be added here. Pure functions."""

import numpy as np
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from spaces.schema import Space


def sampler_for(space: Space, number: int) -> BaseSampler:
    """The sampler of `search.sampler`, seeded for one trial.

    The study that a sampler reads has all trials, with their accuracies after each epoch as intermediate values.
    `gp` ignores stopped trials: Optuna's `GPSampler` fits completed trials only.

    Args:
        space: the searched space.
        number: number of the trial.
    """
    seed = int(np.random.SeedSequence([space.search.seed, number]).generate_state(1)[0])
    n_startup = space.search.startup_trials
    match space.search.sampler:
        case "random" | "curves":  # the random proposals among those of `search.policy.curve_sampler`
            return RandomSampler(seed=seed)
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=n_startup)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=n_startup)
