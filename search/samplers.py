"""Who proposes configurations: Optuna's samplers by name, and an evenly spread start. Pure functions."""

import math

import numpy as np
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from spaces.errors import InputError
from spaces.parameters import Choice, LogUniform, Number, RandInt, Searched, Uniform
from spaces.schema import Space

# Of the stream that scrambles Sobol's sequence, beside the experiment's seed.
_SOBOL = 0x50B01


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


def startup_suggestion(space: Space, number: int) -> dict[str, Number] | None:
    """The configuration of a trial at the start; None where the sampler is to propose it.

    With `search.startup: sobol`, trial 1 has the first point of Sobol's sequence, trial 2 the second, and so on
    (trial 0 is the baseline), scrambled by the experiment's seed and laid over each parameter on its own scale.

    Source: Owen, "Scrambling Sobol' and Niederreiter-Xing Points" (Journal of Complexity 14, 1998), in SciPy.
    """
    if space.search.startup != "sobol" or not 1 <= number < space.search.startup_trials or not space.searched:
        return None
    # Imported late: it takes half a second.
    from scipy.stats.qmc import Sobol

    engine = Sobol(len(space.searched), scramble=True, rng=np.random.default_rng([space.search.seed, _SOBOL]))
    if number > 1:  # SciPy cannot go forward by none
        engine.fast_forward(number - 1)
    shares = engine.random(1)[0]
    return {name: at_share(p, float(share)) for (name, p), share in zip(space.searched.items(), shares, strict=True)}


def at_share(parameter: Searched, share: float) -> Number:
    """The value so far into a parameter's range, 0 to 1, on its own scale."""
    match parameter:
        case Uniform(low, high):
            return min(high, max(low, low + share * (high - low)))
        case LogUniform(low, high):
            return min(high, max(low, low * math.exp(share * math.log(high / low))))
        case RandInt(low, high):
            return min(high, low + math.floor(share * (high - low + 1)))
        case Choice(options):
            return options[min(len(options) - 1, math.floor(share * len(options)))]


def _must_have_torch() -> None:
    # Optuna imports it where it first uses it, in the middle of a search.
    try:
        import torch  # noqa: F401
    except ImportError:
        raise InputError(
            "`search.sampler` is gp, which needs PyTorch, but it cannot be imported. Install it, or choose another."
        ) from None
