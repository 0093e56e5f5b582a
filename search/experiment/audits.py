"""Audit trials: a random sample of trials that no rung stops, to measure what stopping loses."""

import math
import random
from functools import lru_cache

from spaces.schema import Space


def is_audit(trial: int, seed: int, audit_fraction: float) -> bool:
    """Whether a trial is an audit trial; deterministic.

    Systematic sampling from a random start: each trial has the same probability, and any sequence of n trials has
    `audit_fraction` × n audit trials, to within one. With independent draws, a short search could have none.
    """
    return _n_up_to(trial, seed, audit_fraction) > _n_up_to(trial - 1, seed, audit_fraction)


def n_audits(space: Space, trials: int) -> int:
    """Number of audit trials among `trials` trials; the first is the baseline, which is none."""
    seed, audit_fraction = space.search.seed, space.search.audit_fraction
    return _n_up_to(trials - 1, seed, audit_fraction) - _n_up_to(0, seed, audit_fraction)


def _n_up_to(trial: int, seed: int, audit_fraction: float) -> int:
    return math.floor(audit_fraction * trial + _start(seed))


@lru_cache
def _start(seed: int) -> float:
    return random.Random(f"explore/{seed}").random()
