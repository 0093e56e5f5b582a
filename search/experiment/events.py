"""The events of a journal, and their form as JSON. `search.experiment.history` adds them up.

`at` is the time of an event in seconds since 1970 (UTC). Trials and replicates (`run`) are numbered from 0, epochs and
blocks from 1. Values are checked when an event is made, because a journal may be damaged or foreign.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from spaces.parameters import Hyperparameters, Number
from spaces.removed import with_current_keys

EndStatus = Literal["completed", "stopped", "failed", "diverged"]

ReplicateStatus = Literal["completed", "failed", "diverged"]

# `try_first` of the space; `search.steer NAME add`; `search.memory`; `prior`: drawn at random from the ranges; `tpe`:
# by Optuna's TPE in its turn with the model of `search.sampler: curves`; else the sampler.
ProposedBy = Literal["baseline", "try_first", "steer", "memory", "prior", "sampler", "tpe"]

# Upper bounds, because larger values overflow in sums and dates: 1e11 s since 1970 is in the year 5138.
_LARGEST = 10**11
_LARGEST_LOSS = 1e39  # losses are 32-bit floats
_DEEPEST_SPACE = 4  # levels: section, parameter, kind of range, bounds of the range


def _possible_loss(loss: float) -> float:
    if math.isfinite(loss) and abs(loss) > _LARGEST_LOSS:
        raise ValueError("it is larger than any 32-bit float")
    return loss


def _current_space(space: dict[str, Any]) -> dict[str, Any]:
    if not _is_nested_under(_DEEPEST_SPACE, space):
        raise ValueError("it is nested deeper than any space")
    return with_current_keys(space, defaults_only=True)


def _is_nested_under(depth: int, value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not inner or (depth > 0 and all(_is_nested_under(depth - 1, part) for part in inner))


Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Amount = Annotated[float, Field(ge=0, le=_LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
# JSON has no NaN: a loss that is not finite is written as null.
Loss = Annotated[
    float,
    Field(allow_inf_nan=True),
    AfterValidator(_possible_loss),
    BeforeValidator(lambda loss: math.nan if loss is None else loss),
]
_CHECKED = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


@dataclass(frozen=True, slots=True, config=_CHECKED)
class SpaceSet:
    """The searched space was set; the first event of a journal, and one more for each change of the space."""

    space: Annotated[dict[str, dict[str, Any] | list[Any]], AfterValidator(_current_space)]  # from `Space.as_dict`
    excluded: list[Count]  # earlier trials that lie outside the space
    at: Amount


@dataclass(frozen=True, slots=True, config=_CHECKED)
class TrialStarted:
    """A configuration was proposed."""

    trial: Count
    suggested: Mapping[str, Number]  # the searched parameters, from the sampler
    config: Hyperparameters
    baseline: bool  # whether the configuration is the hand-picked one
    at: Amount
    audit: bool | None = None  # whether no rung stops the trial; None in journals of version 0.1
    proposed_by: ProposedBy | None = None  # None in journals of version 0.1


class _Trained:
    """What epochs of trials and of replicates have in common."""

    __slots__ = ()

    train_loss: Loss
    train_s: Amount
    validation_s: Amount
    at: Amount

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.train_loss)

    @property
    def seconds(self) -> float:
        return self.train_s + self.validation_s


@dataclass(frozen=True, slots=True, config=_CHECKED)
class EpochDone(_Trained):
    """A trial finished an epoch. Losses are means over images, and NaN if training diverged."""

    trial: Count
    epoch: Count
    lr: Amount
    train_loss: Loss
    train_accuracy: Share
    validation_loss: Loss
    validation_accuracy: Share
    train_s: Amount
    validation_s: Amount
    at: Amount
    validation_balanced_accuracy: Share | None = None  # None in journals of version 0.1, like macro F1
    validation_macro_f1: Share | None = None


@dataclass(frozen=True, slots=True, config=_CHECKED)
class EpochRedone:
    """An epoch was trained again, because training resumed from an older checkpoint; the first result stays."""

    trial: Count
    epoch: Count
    at: Amount


@dataclass(frozen=True, slots=True, config=_CHECKED)
class TrialPromoted:
    """A trial that waited at the rung of an epoch continues; in journals of an earlier version only."""

    trial: Count
    epoch: Count
    at: Amount


@dataclass(frozen=True, slots=True, config=_CHECKED)
class TrialEnded:
    """A trial ended: `completed` all epochs, `stopped` by ASHA, `diverged` (its loss is not finite), or `failed`."""

    trial: Count
    status: EndStatus
    reason: str  # for messages; empty for completed trials
    at: Amount


@dataclass(frozen=True, slots=True, config=_CHECKED)
class ConfigurationAdded:
    """The user added a configuration, which is the next trial (`search.steer NAME add`)."""

    config: Hyperparameters
    at: Amount


@dataclass(frozen=True, slots=True, config=_CHECKED)
class MemoryRecalled:
    """Configurations that did well in earlier searches are the next trials (`search.memory`)."""

    sources: list[str]  # names of the earlier searches
    configs: list[Hyperparameters]
    at: Amount


@dataclass(frozen=True, slots=True, config=_CHECKED)
class FinishRequested:
    """The user asked for no more trials, until the space is set again (`search.steer NAME finish`)."""

    at: Amount


@dataclass(frozen=True, slots=True, config=_CHECKED)
class ReplicateStarted:
    """The configuration of a trial is trained again with other random streams, which a block of replicates shares."""

    run: Count
    trial: Count
    block: Count
    at: Amount


@dataclass(frozen=True, slots=True, config=_CHECKED)
class ReplicateEpochDone(_Trained):
    """A replicate finished an epoch; as `EpochDone`."""

    run: Count
    epoch: Count
    train_loss: Loss
    validation_loss: Loss
    validation_accuracy: Share
    train_s: Amount
    validation_s: Amount
    at: Amount
    validation_balanced_accuracy: Share | None = None
    validation_macro_f1: Share | None = None


@dataclass(frozen=True, slots=True, config=_CHECKED)
class ReplicateEnded:
    """A replicate ended; as `TrialEnded`."""

    run: Count
    status: ReplicateStatus
    reason: str
    at: Amount


Event = (
    SpaceSet
    | TrialStarted
    | EpochDone
    | EpochRedone
    | TrialPromoted
    | TrialEnded
    | ConfigurationAdded
    | MemoryRecalled
    | FinishRequested
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
    "configuration_added": ConfigurationAdded,
    "memory_recalled": MemoryRecalled,
    "finish_requested": FinishRequested,
    "run_started": ReplicateStarted,
    "run_epoch_done": ReplicateEpochDone,
    "run_ended": ReplicateEnded,
}
_EVENT_NAMES = {event_type: name for name, event_type in _EVENT_TYPES.items()}


def event_as_dict(event: Event) -> dict[str, Any]:
    """An event as a JSON object; losses that are not finite become null."""
    content = asdict(event)
    for key in ("train_loss", "validation_loss"):
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
    if event_type is SpaceSet and "set_aside" in values:
        values["excluded"] = values.pop("set_aside")  # its name in version 0.1
    if event_type in (TrialStarted, ConfigurationAdded):
        values["config"] = Hyperparameters.from_mapping(values["config"])
    if event_type is MemoryRecalled:
        values["configs"] = [Hyperparameters.from_mapping(config) for config in values["configs"]]
    return event_type(**values)
