"""Which trials are trained to the end whatever a rung says, so that what stopping loses can be measured."""

import math
import random
from functools import lru_cache

from spaces.schema import Space


def is_audit(trial: int, seed: int, audit_fraction: float) -> bool:
    """Whether chance exempts a trial from being stopped: always the same for the same arguments.

    A systematic sample from a random start: each trial is as likely as any other, and the share of
    audit trials in any sequence of trials is `audit_fraction`, to within one trial. Independent draws would leave a
    short search with none, or with early ones only.

    Args:
        trial: number of the trial.
        seed: seed of the experiment.
        audit_fraction: probability of being an audit trial, in [0, 1].
    """
    return _n_up_to(trial, seed, audit_fraction) > _n_up_to(trial - 1, seed, audit_fraction)


def n_audits(space: Space, trials: int) -> int:
    """How many of so many trials are; the first, as the baseline, goes to the end anyway."""
    seed, audit_fraction = space.search.seed, space.search.audit_fraction
    return _n_up_to(trials - 1, seed, audit_fraction) - _n_up_to(0, seed, audit_fraction)


def _n_up_to(trial: int, seed: int, audit_fraction: float) -> int:
    return math.floor(audit_fraction * trial + _start(seed))


@lru_cache
def _start(seed: int) -> float:
    return random.Random(f"explore/{seed}").random()
