"""Values of searched parameters as numbers from 0 to 1, and back. Pure functions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.parameters import Choice, LogUniform, Number, RandInt, Searched, Uniform

Array = NDArray[np.float64]


def columns_of(parameter: Searched, values: Array) -> list[Array]:
    """Scale (N,) values to 0 to 1, by the logarithm for `LogUniform`; one column per option of a `Choice`.

    Values outside the range, such as those of another search, count as its nearest end.
    """
    match parameter:
        case Uniform(low, high) | RandInt(low, high):
            return [(np.clip(values, low, high) - low) / (high - low)]
        case LogUniform(low, high):
            return [np.log(np.clip(values, low, high) / low) / np.log(high / low)]
        case Choice(options):
            return [(values == option).astype(float) for option in options]


def to_unit(searched: Mapping[str, Searched], values: Mapping[str, Number]) -> Array:
    """The place of a configuration in the unit cube, (D,): the inverse of `from_unit`.

    Args:
        searched: D searched parameters by name.
        values: a value of each.
    """
    return np.array([_place(parameter, values[name]) for name, parameter in searched.items()])


def from_unit(searched: Mapping[str, Searched], place: Array) -> dict[str, Number]:
    """The values at a place; uniform places give the distribution that the space describes.

    Args:
        searched: D searched parameters by name.
        place: (D,) numbers from 0 to 1.
    """
    return {name: values[0].item() for name, values in all_from_unit(searched, place[None]).items()}


def all_from_unit(searched: Mapping[str, Searched], places: Array) -> dict[str, NDArray[Any]]:
    """The values at (M, D) places, (M,) of each parameter."""
    return {name: _values(parameter, u) for (name, parameter), u in zip(searched.items(), places.T, strict=True)}


def _place(parameter: Searched, value: Number) -> float:
    match parameter:
        case RandInt(low, high):
            return (value - low + 0.5) / (high - low + 1)
        case Choice(options):
            return (options.index(value) + 0.5) / len(options)
        case _:
            return float(columns_of(parameter, np.array([value], float))[0][0])


def _values(parameter: Searched, places: Array) -> NDArray[Any]:
    match parameter:
        case Uniform(low, high):
            return np.asarray(low + (high - low) * places)
        case LogUniform(low, high):
            return np.asarray(np.clip(low * (high / low) ** places, low, high))
        case RandInt(low, high):
            return np.asarray(np.minimum(high, low + (places * (high - low + 1)).astype(int)))
        case Choice(options):
            return np.asarray(np.array(options)[np.minimum(len(options) - 1, (places * len(options)).astype(int))])
