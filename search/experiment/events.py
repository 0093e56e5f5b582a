"""What is known of an experiment's trials: the events of its journal, and the history they add up to."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from spaces.parameters import Hyperparameters, Number, shorten
from spaces.removed import with_current_keys

EndStatus = Literal["completed", "stopped", "failed", "diverged"]

ReplicateStatus = Literal["completed", "failed", "diverged"]


@dataclass(frozen=True, slots=True)
class SpaceSet:
    """The space that proposals come from now; the first event, and again where it was changed.

    Attributes:
        space: as `Space.as_dict` gives it.
        excluded: numbers of earlier trials that are not in it, and count no more.
        at: when, in seconds since 1970 (UTC).
    """

    space: dict[str, Any]
    excluded: list[int]
    at: float


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """A configuration was proposed.

    Attributes:
        trial: its number, from 0; the number of its Optuna trial too.
        suggested: the sampler's values of the searched parameters.
        config: the whole configuration.
        baseline: whether it is the hand-picked one.
        at: time, in seconds since 1970 (UTC).
        audit: whether no rung stops it (`search.audit_fraction`). Journals of version 0.1 do not say: None.
    """

    trial: int
    suggested: Mapping[str, Number]
    config: Hyperparameters
    baseline: bool
    at: float
    audit: bool | None = None


class _Trained:
    """What epochs of trials and of replicates have in common."""

    __slots__ = ()

    train_loss: float
    train_s: float
    validation_s: float
    at: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.train_loss)

    @property
    def seconds(self) -> float:
        return self.train_s + self.validation_s


@dataclass(frozen=True, slots=True)
class EpochDone(_Trained):
    """A trial finished an epoch.

    Losses are NaN where training diverged; `train_s` and `validation_s` are seconds, `at` is when the result
    came in, in seconds since 1970 (UTC).
    """

    trial: int
    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    train_s: float
    validation_s: float
    at: float


@dataclass(frozen=True, slots=True)
class EpochRedone:
    """A result came in for an epoch that is known: training went on from an older checkpoint. It changes nothing."""

    trial: int
    epoch: int
    at: float


@dataclass(frozen=True, slots=True)
class TrialPromoted:
    """A trial that waited at a rung goes on (`search.asha: promote`); until then it waits there.

    Attributes:
        trial: its number.
        epoch: of the rung.
        at: when, in seconds since 1970 (UTC).
    """

    trial: int
    epoch: int
    at: float


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial will not go on.

    Attributes:
        status: `completed` all epochs, `stopped` by ASHA, `diverged` (its loss is not finite), or `failed`.
        reason: why, in words; empty for completed trials.
        at: when, in seconds since 1970 (UTC).
    """

    trial: int
    status: EndStatus
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class ReplicateStarted:
    """A trial's configuration is trained again with fresh random streams, to see what it is worth.

    Attributes:
        run: number of the replicate, from 0.
        trial: whose configuration.
        block: from 1; the runs of a block share their random streams.
        at: when, in seconds since 1970 (UTC).
    """

    run: int
    trial: int
    block: int
    at: float


@dataclass(frozen=True, slots=True)
class ReplicateEpochDone(_Trained):
    """A replicate finished an epoch; as `EpochDone`."""

    run: int
    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    train_s: float
    validation_s: float
    at: float


@dataclass(frozen=True, slots=True)
class ReplicateEnded:
    """A replicate will not go on; as `TrialEnded`."""

    run: int
    status: ReplicateStatus
    reason: str
    at: float


Event = (
    SpaceSet
    | TrialStarted
    | EpochDone
    | EpochRedone
    | TrialPromoted
    | TrialEnded
    | ReplicateStarted
    | ReplicateEpochDone
    | ReplicateEnded
)

_EVENT_TYPES: dict[str, type[Event]] = {
    "space_set": SpaceSet,
    "trial_started": TrialStarted,
    "epoch_done": EpochDone,
    "epoch_redone": EpochRedone,
    "trial_promoted": TrialPromoted,
    "trial_ended": TrialEnded,
    "run_started": ReplicateStarted,
    "run_epoch_done": ReplicateEpochDone,
    "run_ended": ReplicateEnded,
}
_EVENT_NAMES = {event_type: name for name, event_type in _EVENT_TYPES.items()}
# Resolved once: a journal has an event for each epoch of each trial, and resolving took longer than all else.
_EVENT_HINTS = {event_type: get_type_hints(event_type) for event_type in _EVENT_TYPES.values()}
_LOSSES = ("train_loss", "validation_loss")
_ACCURACIES = ("train_accuracy", "validation_accuracy")
# No time, learning rate, accuracy or count of ours comes near; what is larger would overflow where it is summed or
# shown. As a time in seconds since 1970 it is the year 5138. A loss is a 32-bit number.
LARGEST = 1e11
_LARGEST_LOSS = 1e39
# Section, parameter, kind of range, its ends.
_DEEPEST_SPACE = 4


def event_as_dict(event: Event) -> dict[str, Any]:
    """JSON-ready; losses that are not finite become null."""
    content = asdict(event)
    for key in _LOSSES:
        if key in content and not math.isfinite(content[key]):
            content[key] = None
    return {"event": _EVENT_NAMES[type(event)], **content}


def event_from_dict(content: Mapping[str, Any]) -> Event:
    """The inverse of `event_as_dict`.

    Raises:
        ValueError, KeyError, TypeError: it is not an event.
    """
    values = dict(content)
    event_type = _EVENT_TYPES[values.pop("event")]
    hints = _EVENT_HINTS[event_type]
    if event_type is SpaceSet and "set_aside" in values:
        values["excluded"] = values.pop("set_aside")  # its name in version 0.1
    if event_type is TrialStarted:
        values.setdefault("audit", None)
    if set(values) != set(hints):
        raise ValueError(f"it has {sorted(values)}")
    for key in _LOSSES:
        if key in values and values[key] is None:
            values[key] = math.nan
        elif key in values and not (fits(values[key], float) and abs(values[key]) <= _LARGEST_LOSS):
            raise ValueError(f"{key} is {shorten(values[key])}")
    if event_type is TrialStarted:
        values["config"] = Hyperparameters.from_mapping(values["config"])
    for key, value in values.items():
        largest = 1 if key in _ACCURACIES else LARGEST
        no_amount = isinstance(value, int | float) and key not in _LOSSES and not 0 <= value <= largest
        if no_amount or not fits(value, hints[key]):
            raise ValueError(f"{key} is {shorten(value)}")
    if event_type is SpaceSet:
        values["space"] = with_current_keys(values["space"], defaults_only=True)
    return event_type(**values)


def fits(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is dict:
        sections = value.values() if isinstance(value, dict) else [None]
        return all(isinstance(section, dict) for section in sections) and _is_nested_under(_DEEPEST_SPACE, value)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(number, int) for number in value)
    if get_origin(hint) is Mapping:
        return isinstance(value, dict) and all(fits(number, float) for number in value.values())
    return isinstance(value, hint)


def _is_nested_under(depth: int, value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not inner or (depth > 0 and all(_is_nested_under(depth - 1, part) for part in inner))
