"""Hyperparameters, their limits, and the five forms in which a space gives their values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, NoReturn, TypeVar

from spaces.errors import did_you_mean
from spaces.printable import shortened

Number = int | float
_Bound = TypeVar("_Bound", int, float)


@dataclass(frozen=True, slots=True)
class Limits:
    """Valid values of a hyperparameter in any space.

    Attributes:
        low, high: bounds, in the unit of the hyperparameter.
        includes_low, includes_high: whether the bound itself is valid.
        whole: whether values are whole numbers (`int`).
    """

    low: float
    high: float
    includes_low: bool = True
    includes_high: bool = True
    whole: bool = False

    def allow(self, value: Number) -> bool:
        above = value >= self.low if self.includes_low else value > self.low
        below = value <= self.high if self.includes_high else value < self.high
        return above and below

    def __str__(self) -> str:
        low = f"at least {self.low:g}" if self.includes_low else f"greater than {self.low:g}"
        high = f"at most {self.high:g}" if self.includes_high else f"less than {self.high:g}"
        return f"a whole number, {low} and {high}" if self.whole else f"{low} and {high}"


LIMITS: Mapping[str, Limits] = {
    "lr": Limits(0, 10, includes_low=False),
    "momentum": Limits(0, 1, includes_high=False),
    "gamma": Limits(0, 1, includes_low=False),
    "step_size": Limits(1, 100_000, whole=True),
    "flip_p": Limits(0, 1),
    "shift_scale_rotate_p": Limits(0, 1),
    "coarse_dropout_p": Limits(0, 1),
    "batch_size": Limits(2, 65_536, whole=True),
    "dropout": Limits(0, 1, includes_high=False),
    "weight_decay": Limits(0, 1),
}


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """One complete configuration. The defaults are the original hand-picked values.

    Attributes:
        lr: learning rate of SGD in the first epoch.
        momentum: momentum of SGD.
        gamma: factor of each decay of the learning rate.
        step_size: epochs between two decays.
        flip_p, shift_scale_rotate_p, coarse_dropout_p: probability of each augmentation, per image.
        batch_size: images per step.
        dropout: probability that dropout zeroes a unit.
        weight_decay: L2 penalty of SGD.
    """

    lr: float = 0.05
    momentum: float = 0.9
    gamma: float = 0.6
    step_size: int = 5
    flip_p: float = 0.5
    shift_scale_rotate_p: float = 0.2
    coarse_dropout_p: float = 0.2
    batch_size: int = 64
    dropout: float = 0.1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in LIMITS:
            try:
                object.__setattr__(self, name, checked(name, getattr(self, name)))
            except ParameterError as error:
                raise ValueError(f"`{name}` {error}") from None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Hyperparameters":
        """Make a configuration from a dict of an external source (YAML, JSON, Ray).

        Raises:
            ValueError: a name is unknown, or a value is not valid.
        """
        unknown = set(values) - set(LIMITS)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are not hyperparameters: {', '.join(LIMITS)} are.")
        return cls(**values)

    def as_dict(self) -> dict[str, Number]:
        # Faster than `asdict`, which copies each value; a leaderboard calls this for every trial.
        return {name: getattr(self, name) for name in HYPERPARAMETER_NAMES}


HYPERPARAMETER_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Hyperparameters))


@dataclass(frozen=True, slots=True)
class _Range(Generic[_Bound]):
    low: _Bound
    high: _Bound

    def contains(self, value: Number) -> bool:
        return self.low <= value <= self.high

    def as_yaml(self) -> dict[str, list[_Bound]]:
        return {type(self).__name__.lower(): [self.low, self.high]}


class Uniform(_Range[float]):
    """A number between `low` and `high`, uniformly distributed."""

    __slots__ = ()


class LogUniform(_Range[float]):
    """A number between `low` and `high`, whose logarithm is uniformly distributed."""

    __slots__ = ()


class RandInt(_Range[int]):
    """A whole number from `low` to `high`, including both, uniformly distributed."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `options`, which have no order."""

    options: tuple[Number, ...]

    def contains(self, value: Number) -> bool:
        return value in self.options

    def as_yaml(self) -> dict[str, list[Number]]:
        return {"choice": list(self.options)}


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always `value`."""

    value: Number

    def contains(self, value: Number) -> bool:
        return value == self.value

    def as_yaml(self) -> Number:
        return self.value


Searched = Uniform | LogUniform | RandInt | Choice
Parameter = Searched | Fixed

KINDS = ("uniform", "loguniform", "randint", "choice")


class ParameterError(ValueError):
    """Invalid parameter. The message continues a sentence that starts with the parameter's name."""


def parse_parameter(name: str, raw: Any) -> Parameter:
    """Parse the YAML value of the hyperparameter `name`: a number, or a mapping of one of `KINDS` to a list.

    Raises:
        ParameterError: `raw` is not valid.
    """
    if isinstance(raw, list):
        _refuse_bare_list(name, raw)
    if not isinstance(raw, dict):
        return Fixed(checked(name, raw))
    if len(raw) != 1 or next(iter(raw)) not in KINDS:
        given = shortened(", ".join(map(str, raw)) or "nothing")
        hint = did_you_mean(str(next(iter(raw))), KINDS) if len(raw) == 1 else ""
        raise ParameterError(f"has {given} inside, but must have exactly one of {', '.join(KINDS)}.{hint}")
    kind, ends = next(iter(raw.items()))
    if not isinstance(ends, list):
        raise ParameterError(f"has {shorten(ends)} after `{kind}`, but must have a list in square brackets.")
    return _parse_choice(name, ends) if kind == "choice" else _parse_range(name, kind, ends)


def _refuse_bare_list(name: str, values: list[Any]) -> NoReturn:
    """Raise an error that says how to write the list, or which of its values are not valid."""
    kind = "choice" if len(values) != 2 else "randint" if LIMITS[name].whole else "uniform"
    parse_parameter(name, {kind: values})
    written = shortened("{" + f"{kind}: {values}" + "}")
    raise ParameterError(f"is {shorten(values)}, but a list must say how values are drawn from it: write {written}.")


def _parse_choice(name: str, options: list[Any]) -> Choice:
    if not options:
        raise ParameterError("is a choice of nothing, but must have at least one option.")
    values = tuple(checked(name, option) for option in options)
    if len(set(values)) < len(values):
        raise ParameterError(f"offers {shorten(options)}, but must name each option once. Remove the repeated one.")
    return Choice(values)


def _parse_range(name: str, kind: str, ends: list[Any]) -> Searched:
    if len(ends) != 2:
        raise ParameterError(f"has {len(ends)} values in `{kind}`, but must have two: [lowest, highest].")
    low, high = (checked(name, end) for end in ends)
    if low >= high:
        raise ParameterError(
            f"goes from {low:g} to {high:g}, but the first must be less than the second. "
            f"Swap them, or write a plain value to fix it."
        )
    if kind == "randint" and not LIMITS[name].whole:
        raise ParameterError("takes fractions, but randint gives whole numbers. Use uniform or loguniform.")
    if kind == "randint":
        return RandInt(int(low), int(high))
    if LIMITS[name].whole:
        raise ParameterError(f"counts whole things, but `{kind}` gives fractions. Use randint or choice.")
    if kind == "loguniform" and low <= 0:
        raise ParameterError(f"starts at {low:g}, but loguniform must start above 0. Raise it, or use uniform.")
    return (Uniform if kind == "uniform" else LogUniform)(float(low), float(high))


def checked(name: str, value: Any) -> Number:
    """`value` as the type of the hyperparameter `name`.

    Raises:
        ParameterError: `value` is not valid.
    """
    limits = LIMITS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if not is_number or (limits.whole and not isinstance(value, int)) or not limits.allow(value):
        raise ParameterError(f"is {shorten(value)}, but must be {limits}.")
    return int(value) if limits.whole else float(value)


def shorten(value: Any, limit: int = 60) -> str:
    """Printable `repr` on one line, cut to `limit` characters."""
    try:
        text = repr(value) if str(value).isprintable() else ascii(value)
    except ValueError:  # Python refuses to convert integers of over 4,300 digits
        return "a number of thousands of digits"
    return shortened(text, limit)
