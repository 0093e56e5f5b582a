"""Best values at the end of their range, and wider ranges. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binom

from spaces.parameters import LIMITS, Choice, Hyperparameters, LogUniform, Number, RandInt, Searched, Uniform
from spaces.schema import Space

EDGE = 0.05  # share of a range, at either end, that counts as its edge
MAX_CHANCE = 0.05  # an edge with a larger p-value is not reported
WIDENED_BY = 0.25  # share of the range that a wider one has in addition
MOST_FLIPS = 0.5  # p and 1 - p flip the same images apart from a mirror, so that p <= 0.5 is enough


@dataclass(frozen=True, slots=True)
class Edge:
    """An end of a range at which many of the best values lie.

    Attributes:
        name: name of the parameter.
        upper: whether it is the upper end.
        end: value of the end.
        n_near: number of the best values that lie at this end.
        n_best: number of the best values.
        chance: p-value: probability of such an edge at any end of any range, if no parameter mattered.
        wider: a range that is wider at this end.
    """

    name: str
    upper: bool
    end: Number
    n_near: int
    n_best: int
    chance: float
    wider: Searched


def crowded_edges(best: Sequence[Hyperparameters], space: Space) -> list[Edge]:
    """Ends of ranges at which more of the best configurations lie than by chance, smallest p-value first.

    The p-value is the binomial one of independent draws from the range, times the number of tested ends
    (Bonferroni). TPE's draws are not independent: it proposes more values near the first good ones.

    Args:
        best: the best configurations.
        space: the searched space. Choices have no ends, and ends at the natural limit of a parameter are not tested.
    """
    ends = [
        (name, parameter, upper)
        for name, parameter in space.searched.items()
        if not isinstance(parameter, Choice)
        for upper in (False, True)
        if not _is_natural(name, parameter, upper, space.training.max_epochs)
    ]
    found = []
    for name, parameter, upper in ends:
        n_near = sum(_is_near(parameter, getattr(config, name), upper) for config in best)
        chance = min(1.0, len(ends) * float(binom.sf(n_near - 1, len(best), _share(parameter))))
        if n_near and chance <= MAX_CHANCE:
            end = parameter.high if upper else parameter.low
            found.append(Edge(name, upper, end, n_near, len(best), chance, widened(name, parameter, upper)))
    return sorted(found, key=lambda edge: edge.chance)


def widened(name: str, parameter: Uniform | LogUniform | RandInt, upper: bool) -> Searched:
    """The range extended by `WIDENED_BY` at one end, in its own scale and within the limits of the parameter."""
    low, high = parameter.low, parameter.high
    if isinstance(parameter, RandInt):
        whole = max(1, round(WIDENED_BY * (high - low)))
        if upper:
            return RandInt(parameter.low, int(min(high + whole, LIMITS[name].high)))
        return RandInt(int(max(low - whole, LIMITS[name].low)), parameter.high)
    if isinstance(parameter, LogUniform):
        factor = (high / low) ** WIDENED_BY
        end = high * factor if upper else low / factor
    else:
        more = WIDENED_BY * (high - low)
        end = high + more if upper else low - more
    end = _within_limits(name, float(f"{end:.2g}"), high if upper else low)
    return type(parameter)(low, end) if upper else type(parameter)(end, high)


def _within_limits(name: str, end: float, before: float) -> float:
    limits = LIMITS[name]
    if limits.allow(end):
        return end
    limit, included = (limits.high, limits.includes_high) if end >= limits.high else (limits.low, limits.includes_low)
    return limit if included else (before + limit) / 2


def _is_natural(name: str, parameter: Uniform | LogUniform | RandInt, upper: bool, max_epochs: int) -> bool:
    """Whether values beyond this end are impossible or equivalent to values inside the range."""
    if not upper:
        return parameter.low <= LIMITS[name].low
    highest = {"flip_p": MOST_FLIPS, "step_size": float(max_epochs)}.get(name, LIMITS[name].high)
    return parameter.high >= highest


def _n_edge_values(parameter: RandInt) -> int:
    return max(1, int(EDGE * (parameter.high - parameter.low + 1)))


def _share(parameter: Uniform | LogUniform | RandInt) -> float:
    """Share of the range that is one of its edges."""
    if isinstance(parameter, RandInt):
        return _n_edge_values(parameter) / (parameter.high - parameter.low + 1)
    return EDGE


def _is_near(parameter: Uniform | LogUniform | RandInt, value: Number, upper: bool) -> bool:
    low, high = float(parameter.low), float(parameter.high)
    if isinstance(parameter, RandInt):
        distance = high - value if upper else value - low
        return distance < _n_edge_values(parameter)
    if isinstance(parameter, LogUniform):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (high - value if upper else value - low) <= EDGE * (high - low)
