"""Whether the best values lie at the end of their range, and what a wider one would be. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binom

from spaces.parameters import LIMITS, Choice, Hyperparameters, LogUniform, Number, RandInt, Searched, Uniform
from spaces.schema import Space

# The part of a range, at either end, that counts as its edge.
EDGE = 0.05
# Findings that chance makes more often, in a space without any, are not reported.
MAX_CHANCE = 0.05
# A quarter of the range more.
WIDENED_BY = 0.25
# A mirror image's mirror is the image: more flips than this are fewer.
MOST_FLIPS = 0.5


@dataclass(frozen=True, slots=True)
class Edge:
    """Good values crowd at an end of a range.

    Attributes:
        name: of the parameter.
        upper: which end.
        end: its value.
        n_near: of the best values, how many lie there.
        n_best: how many there are.
        chance: how often a space in which nothing matters shows one like it at any end of any range.
        wider: the range to search instead.
    """

    name: str
    upper: bool
    end: Number
    n_near: int
    n_best: int
    chance: float
    wider: Searched


def crowded_edges(best: Sequence[Hyperparameters], space: Space) -> list[Edge]:
    """The ends at which more of the best configurations lie than chance puts there.

    The chance is the binomial one of independent draws from the range, times the number of ends looked at. TPE's
    proposals are not independent: it proposes more where the first good ones were.

    Args:
        best: configurations, of which `EDGE` of the range each is looked at.
        space: what was searched. Choices have no ends; an end that is the parameter's natural limit is none to
            be widened.
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
    """The range with a quarter more at one end, in its own scale and within what the parameter can take at all."""
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
    """Whether there is nothing beyond an end, or nothing that differs from it."""
    if not upper:
        return parameter.low <= LIMITS[name].low
    highest = {"flip_p": MOST_FLIPS, "step_size": float(max_epochs)}.get(name, LIMITS[name].high)
    return parameter.high >= highest


def _n_edge_values(parameter: RandInt) -> int:
    return max(1, int(EDGE * (parameter.high - parameter.low + 1)))


def _share(parameter: Uniform | LogUniform | RandInt) -> float:
    """The part of the range that is one of its edges."""
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
