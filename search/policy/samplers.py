"""Who proposes configurations: Optuna's samplers by name. Pure functions."""

import numpy as np
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from spaces.errors import InputError
from spaces.schema import Space


def sampler_for(space: Space, number: int) -> BaseSampler:
    """The sampler that `search.sampler` names, seeded for one trial.

    `gp` takes no notice of trials that were stopped: Optuna's `GPSampler` fits completed ones only.

    Args:
        space: what is searched.
        number: the trial's.

    Raises:
        InputError: `gp` is asked for, and what it needs is not installed.
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
    # Optuna imports it where it first uses it, in the middle of a search.
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError(
            "`search.sampler` is gp, which needs PyTorch, but it cannot be imported. Install it, or choose another."
        ) from None
