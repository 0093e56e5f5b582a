"""The events of a journal, and their form as JSON. `search.experiment.history` adds them up."""

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
    """The searched space was set; the first event of a journal, and one more for each change of the space.

    Attributes:
        space: the space, as returned by `Space.as_dict`.
        excluded: numbers of earlier trials that lie outside the space.
        at: time of the event, seconds since 1970 (UTC).
    """

    space: dict[str, Any]
    excluded: list[int]
    at: float


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """A configuration was proposed.

    Attributes:
        trial: number of the trial, from 0; also the number of its Optuna trial.
        suggested: values of the searched parameters from the sampler.
        config: values of all hyperparameters.
        baseline: whether the configuration is the hand-picked one.
        at: time of the event, seconds since 1970 (UTC).
        audit: whether no rung stops the trial (`search.audit_fraction`); None in journals of version 0.1.
    """

    trial: int
    suggested: Mapping[str, Number]
    config: Hyperparameters
    baseline: bool
    at: float
    audit: bool | None = None


class _Trained:
    """Attributes that epochs of trials and of replicates have in common."""

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

    Attributes:
        trial: number of the trial.
        epoch: number of the epoch, from 1.
        lr: learning rate of the epoch.
        train_loss, validation_loss: mean over images; NaN if training diverged.
        train_accuracy, validation_accuracy: 0 to 1.
        train_s, validation_s: wall-clock time of training and of validation.
        at: time when the result was recorded, seconds since 1970 (UTC).
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
    """An epoch was trained again, because training resumed from an older checkpoint; the first result stays."""

    trial: int
    epoch: int
    at: float


@dataclass(frozen=True, slots=True)
class TrialPromoted:
    """A trial that waited at a rung continues (`search.asha: promote`).

    Attributes:
        trial: number of the trial.
        epoch: epoch of the rung.
        at: time of the event, seconds since 1970 (UTC).
    """

    trial: int
    epoch: int
    at: float


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial ended.

    Attributes:
        trial: number of the trial.
        status: `completed` all epochs, `stopped` by ASHA, `diverged` (its loss is not finite), or `failed`.
        reason: cause of the end, for messages; empty for completed trials.
        at: time of the event, seconds since 1970 (UTC).
    """

    trial: int
    status: EndStatus
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class ReplicateStarted:
    """A replicate was started: the configuration of a trial is trained again with other random streams.

    Attributes:
        run: number of the replicate, from 0.
        trial: number of the trial.
        block: number of the block, from 1; the replicates of a block share their random streams.
        at: time of the event, seconds since 1970 (UTC).
    """

    run: int
    trial: int
    block: int
    at: float


@dataclass(frozen=True, slots=True)
class ReplicateEpochDone(_Trained):
    """A replicate finished an epoch; attributes as in `EpochDone`."""

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
    """A replicate ended; attributes as in `TrialEnded`."""

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
# Resolved once: for each event, resolving the hints would take most of the time of reading a journal.
_EVENT_HINTS = {event_type: get_type_hints(event_type) for event_type in _EVENT_TYPES.values()}
_LOSSES = ("train_loss", "validation_loss")
_ACCURACIES = ("train_accuracy", "validation_accuracy")
# Upper bounds of values in a journal, because larger ones overflow in sums and dates: 1e11 s since 1970 is in the
# year 5138. Losses are 32-bit floats.
LARGEST = 1e11
_LARGEST_LOSS = 1e39
_DEEPEST_SPACE = 4  # levels: section, parameter, kind of range, bounds of the range


def event_as_dict(event: Event) -> dict[str, Any]:
    """An event as a JSON object; losses that are not finite become null."""
    content = asdict(event)
    for key in _LOSSES:
        if key in content and not math.isfinite(content[key]):
            content[key] = None
    return {"event": _EVENT_NAMES[type(event)], **content}


def event_from_dict(content: Mapping[str, Any]) -> Event:
    """The inverse of `event_as_dict`.

    Raises:
        ValueError, KeyError, TypeError: `content` is not an event.
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
