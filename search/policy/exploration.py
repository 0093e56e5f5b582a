"""Which trials are trained to the end whatever a rung says, so that what stopping loses can be measured."""

import math
import random
from functools import lru_cache

from spaces.schema import Space


def is_explored(trial: int, seed: int, explore: float) -> bool:
    """Whether chance exempts a trial from being stopped: always the same for the same arguments.

    A systematic sample from a random start: each trial is as likely as any other, and of any so many trials in a row
    the part `explore` is exempt, give or take one. Independent draws would leave a short search with none, or with
    only early ones.

    Args:
        trial: its number.
        seed: of the experiment.
        explore: the chance.
    """
    return _n_up_to(trial, seed, explore) > _n_up_to(trial - 1, seed, explore)


def n_explored(space: Space, trials: int) -> int:
    """How many of so many trials are; the first, as the baseline, goes to the end anyway."""
    seed, explore = space.search.seed, space.search.explore
    return _n_up_to(trials - 1, seed, explore) - _n_up_to(0, seed, explore)


def _n_up_to(trial: int, seed: int, explore: float) -> int:
    return math.floor(explore * trial + _start(seed))


@lru_cache
def _start(seed: int) -> float:
    return random.Random(f"explore/{seed}").random()
