"""Regret curves of many seeds boiled down to epochs, factors and intervals. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

N_RESAMPLED = 1000
# Regrets are resampled at every so many epochs only.
STEP = 3


@dataclass(frozen=True, slots=True)
class Factor:
    """Epochs that one arm needs over those that another needs, to the same median regret.

    Attributes:
        value: infinite where it does not get there.
        low, high: 95 % bootstrap interval over paired seeds.
    """

    value: float
    low: float
    high: float


def epochs_to(medians: Array, level: float, step: int = 1) -> float:
    """Epochs after which a curve stays at or below `level`; infinite where it ends above it.

    Args:
        medians: (T,) after `step`, 2 × `step` … epochs.
        level: in the unit of `medians`.
        step: epochs between two values.
    """
    above = np.flatnonzero(medians > level)
    if not len(above):
        return float(step)
    return math.inf if above[-1] == len(medians) - 1 else float(step * (above[-1] + 2))


def thinned(regrets: Array, step: int = STEP) -> Array:
    """(S, T / step) of (S, T): the values after `step`, 2 × `step` … epochs."""
    return regrets[:, step - 1 :: step]


def resampled_factors(regrets: Array, reference: Array, of_budget: bool = False, seed: int = 0) -> Array:
    """How many times the epochs of `reference` an arm needs to the median regret that the reference ends with.

    Args:
        regrets: (S, T) of the arm, thinned.
        reference: (S, T) of the reference, the same seeds in the same order.
        of_budget: whether the reference's epochs are all that it trained; else those after which its median stayed
            at or below what it ended with.
        seed: of the resampling.

    Returns:
        (1 + N_RESAMPLED,): of all seeds, then of seeds drawn with replacement, the same ones for both.
    """
    generator = np.random.default_rng(seed)
    n_seeds = min(len(regrets), len(reference))
    regrets, reference = regrets[:n_seeds], reference[:n_seeds]
    drawn = [np.arange(n_seeds), *generator.integers(n_seeds, size=(N_RESAMPLED, n_seeds))]
    return np.array([_factor(np.median(regrets[rows], 0), np.median(reference[rows], 0), of_budget) for rows in drawn])


def factor_of(resampled: Array) -> Factor:
    """The factor of all seeds, with the interval that the resampled ones give."""
    # Of two infinite ones no mean can be taken.
    low, high = np.quantile(resampled[1:], [0.025, 0.975], method="nearest")
    return Factor(float(resampled[0]), float(low), float(high))


def geometric_mean(tables: Sequence[Array], most: float) -> Array:
    """Over tables; what is above `most`, or infinite, counts as `most`.

    Args:
        tables: `resampled_factors` of each.
        most: as it says.
    """
    return np.asarray(np.exp(np.mean([np.log(np.minimum(table, most)) for table in tables], axis=0)))


def interval_of_median(values: Array, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a median over seeds."""
    drawn = np.random.default_rng(seed).choice(values, size=(N_RESAMPLED, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _factor(medians: Array, reference: Array, of_budget: bool) -> float:
    level = float(reference[-1])
    return epochs_to(medians, level) / (len(reference) if of_budget else epochs_to(reference, level))
