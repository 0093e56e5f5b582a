"""Configurations as numbers: places in the unit cube, and what they do to the learning rate. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.parameters import (
    HYPERPARAMETER_NAMES,
    Choice,
    Hyperparameters,
    LogUniform,
    Number,
    RandInt,
    Searched,
    Uniform,
)

Array = NDArray[np.float64]
# Values of all hyperparameters by name; (N,) of N configurations.
Values = Mapping[str, NDArray[Any]]

# These parameters act through the learning rates, see `_schedule_columns`.
SCHEDULE = ("lr", "momentum", "gamma", "step_size")
# Factors of the other parameters that are known; unknown ones are scaled to 0 to `UNIT_SCALE`.
SCALES = {"flip_p": 1.0, "shift_scale_rotate_p": 0.5, "coarse_dropout_p": 0.5}
UNIT_SCALE = 1.6
SMALLEST_FACTOR = 1e-6  # of the learning rate; smaller factors train no more


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


def values_of(configs: Sequence[Hyperparameters]) -> Values:
    """The hyperparameters of N configurations by name, (N,) each."""
    return {name: np.array([getattr(config, name) for config in configs], float) for name in HYPERPARAMETER_NAMES}


def features(searched: Mapping[str, Searched], values: Values, epochs: NDArray[np.int64]) -> Array:
    """Points x(e) of N configurations after N epochs, (N, D): near points have similar accuracies.

    Args:
        searched: the searched parameters by name.
        values: of N configurations.
        epochs: (N,) number of trained epochs of each, at least 1.
    """
    columns = [np.zeros(len(epochs))]
    if searched.keys() & set(SCHEDULE):
        columns += _schedule_columns(values, epochs)
    for name, parameter in searched.items():
        if name in SCHEDULE:
            continue
        found, known = values[name], SCALES.get(name)
        columns += [UNIT_SCALE * c for c in columns_of(parameter, found)] if known is None else [known * found]
    return np.stack(columns, axis=1)


def _schedule_columns(values: Values, epochs: NDArray[np.int64]) -> list[Array]:
    """Mean effective learning rate, momentum, mean decay and last decay; rates and decays as decimal logarithms."""
    lr, momentum, gamma, step_size = (values[name] for name in SCHEDULE)
    before = np.arange(int(epochs.max()))
    factors = np.maximum(gamma[:, None] ** (before // step_size[:, None]), SMALLEST_FACTOR)
    is_trained = before < epochs[:, None]
    decay = np.log10((factors * is_trained).sum(1) / epochs)
    last_factor = factors[np.arange(len(epochs)), epochs - 1]
    return [np.log10(lr / (1 - momentum)) + decay, 2 * momentum, decay, np.log10(last_factor) / 2]


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
