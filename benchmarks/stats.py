"""Statistics of the benchmarks: medians, paired differences, and factors between regret curves. Pure functions."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

Array = NDArray[np.float64]

N_RESAMPLED = 1000
# Epochs between two values of a thinned regret curve.
STEP = 3


def medians(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median of each variant's runs; variants without runs are left out."""
    return {name: statistics.median(values) for name, values in runs.items() if values}


def factors(values: Mapping[str, float], reference: str) -> dict[str, float]:
    """Each value divided by the reference's value; empty if the reference was not measured."""
    if reference not in values:
        return {}
    return {name: value / values[reference] for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of paired differences.

    Attributes:
        mean: the mean.
        interval: 95 % interval by Student's t; None for fewer than two pairs.
    """

    mean: float
    interval: tuple[float, float] | None

    @property
    def includes_zero(self) -> bool | None:
        return None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]


def difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Mean of `values` - `reference`, paired by position."""
    differences = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Difference(mean, None)
    half = student_t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return Difference(mean, (mean - float(half), mean + float(half)))


@dataclass(frozen=True, slots=True)
class Factor:
    """Epochs of one arm divided by the epochs of another, both to the same median regret.

    Attributes:
        value: the factor; infinite if the arm never reaches that regret.
        low, high: 95 % bootstrap interval over paired seeds.
    """

    value: float
    low: float
    high: float


def steps_to(regret: Array, level: float) -> float:
    """Number of values of a (T,) curve after which it stays at or below `level`; infinite if it ends above `level`."""
    above = np.flatnonzero(regret > level)
    if not len(above):
        return 1.0
    return math.inf if above[-1] == len(regret) - 1 else float(above[-1] + 2)


def thinned(regrets: Array, step: int = STEP) -> Array:
    """Every `step`-th value of (S, T) curves, as (S, T / step)."""
    return regrets[:, step - 1 :: step]


def resampled_factors(regrets: Array, reference: Array, of_budget: bool = False, seed: int = 0) -> Array:
    """Factors of an arm to the median regret with which a reference ends.

    Args:
        regrets: (S, T) thinned curves of the arm.
        reference: (S, T) thinned curves of the reference, for the same seeds in the same order.
        of_budget: divide by all epochs of the reference; otherwise by the epochs after which its median stays at or
            below its last value.
        seed: seed of the resampling.

    Returns:
        (1 + N_RESAMPLED,) factors: of all seeds, then of seeds drawn with replacement.
    """
    generator = np.random.default_rng(seed)
    n_seeds = min(len(regrets), len(reference))
    regrets, reference = regrets[:n_seeds], reference[:n_seeds]
    drawn = [np.arange(n_seeds), *generator.integers(n_seeds, size=(N_RESAMPLED, n_seeds))]
    return np.array([_factor(np.median(regrets[rows], 0), np.median(reference[rows], 0), of_budget) for rows in drawn])


def factor_of(resampled: Array) -> Factor:
    """The factor of all seeds, with the interval of the resampled factors."""
    # "nearest", because two infinite factors have no mean.
    low, high = np.quantile(resampled[1:], [0.025, 0.975], method="nearest")
    return Factor(float(resampled[0]), float(low), float(high))


def geometric_mean(tables: Sequence[Array], most: float) -> Array:
    """Geometric mean over tables of `resampled_factors`, each factor at most `most`."""
    return np.asarray(np.exp(np.mean([np.log(np.minimum(table, most)) for table in tables], axis=0)))


def _factor(regret: Array, reference: Array, of_budget: bool) -> float:
    level = float(reference[-1])
    return steps_to(regret, level) / (len(reference) if of_budget else steps_to(reference, level))
