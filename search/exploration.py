"""Which trials are trained to the end whatever a rung says, so that what stopping loses can be measured."""

import random
from functools import lru_cache

from spaces.schema import Space


def is_explored(trial: int, seed: int, explore: float) -> bool:
    """Whether chance exempts a trial from being stopped: always the same for the same arguments.

    Each trial has a draw of its own, so that a larger `explore` exempts more trials, but no others.

    Args:
        trial: its number.
        seed: of the experiment.
        explore: the chance.
    """
    # Text seeds are hashed, so that neighbouring numbers give unrelated draws.
    return explore > 0 and random.Random(f"explore/{seed}/{trial}").random() < explore


def n_explored(space: Space) -> int:
    """How many of a search's trials are; the first, as the baseline, goes to the end anyway."""
    return _count(space.search.trials, space.search.seed, space.search.explore)


@lru_cache(maxsize=64)
def _count(trials: int, seed: int, explore: float) -> int:
    return sum(is_explored(trial, seed, explore) for trial in range(1, trials)) if explore else 0
