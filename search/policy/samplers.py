"""Optuna's samplers by the names of `search.sampler`. Pure functions."""

import numpy as np
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from spaces.errors import InputError
from spaces.schema import Space


def sampler_for(space: Space, number: int) -> BaseSampler:
    """The sampler of `search.sampler`, seeded for one trial.

    `gp` ignores stopped trials: Optuna's `GPSampler` fits completed trials only.

    Args:
        space: the searched space.
        number: number of the trial.

    Raises:
        InputError: `search.sampler` is `gp`, and PyTorch is not installed.
    """
    seed = int(np.random.SeedSequence([space.search.seed, number]).generate_state(1)[0])
    n_startup = space.search.startup_trials
    match space.search.sampler:
        case "random":
            return RandomSampler(seed=seed)
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=n_startup)
        case "gp":
            _must_have_torch()
            return GPSampler(seed=seed, n_startup_trials=n_startup)


def _must_have_torch() -> None:
    # Optuna imports PyTorch at its first use, in the middle of a search.
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError(
            "`search.sampler` is gp, which needs PyTorch, but it cannot be imported. Install it, or choose another."
        ) from None
