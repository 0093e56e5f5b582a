"""What is known of an experiment's trials: the events of its journal, and the history they add up to."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from search.experiment.audits import is_audit
from spaces.parameters import Hyperparameters, Number, shorten
from spaces.removed import with_current_keys

Status = Literal["completed", "stopped", "failed", "diverged", "running"]
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
_LARGEST = 1e11
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
        elif key in values and not (_fits(values[key], float) and abs(values[key]) <= _LARGEST_LOSS):
            raise ValueError(f"{key} is {shorten(values[key])}")
    if event_type is TrialStarted:
        values["config"] = Hyperparameters.from_mapping(values["config"])
    for key, value in values.items():
        largest = 1 if key in _ACCURACIES else _LARGEST
        no_amount = isinstance(value, int | float) and key not in _LOSSES and not 0 <= value <= largest
        if no_amount or not _fits(value, hints[key]):
            raise ValueError(f"{key} is {shorten(value)}")
    if event_type is SpaceSet:
        values["space"] = with_current_keys(values["space"], defaults_only=True)
    return event_type(**values)


def _fits(value: Any, hint: Any) -> bool:
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
        return isinstance(value, list) and all(_fits(number, int) for number in value)
    if get_origin(hint) is Mapping:
        return isinstance(value, dict) and all(_fits(number, float) for number in value.values())
    return isinstance(value, hint)


def _is_nested_under(depth: int, value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not inner or (depth > 0 and all(_is_nested_under(depth - 1, part) for part in inner))


@dataclass
class Trial:
    """One trial as far as it is known.

    Attributes:
        number: from 0.
        suggested, config, baseline: as in `TrialStarted`.
        started_at: seconds since 1970 (UTC).
        epochs: results in order; the first is epoch 1.
        end: how it ended; None while it can go on.
        excluded: whether it lies outside the space as it was changed later, and counts no more.
        explored: whether chance lets it go to the end whatever a rung says (`search.audit_fraction`).
        promotions: from the rungs that it waited at.
    """

    number: int
    suggested: Mapping[str, Number]
    config: Hyperparameters
    baseline: bool
    started_at: float
    epochs: list[EpochDone] = field(default_factory=list)
    end: TrialEnded | None = None
    excluded: bool = False
    audit: bool = False
    promotions: list[TrialPromoted] = field(default_factory=list)

    @property
    def promoted_at(self) -> int:
        """The epoch of the highest rung that it was promoted from; 0 for none."""
        return self.promotions[-1].epoch if self.promotions else 0

    @property
    def status(self) -> Status:
        return self.end.status if self.end else "running"

    @property
    def n_epochs(self) -> int:
        return len(self.epochs)

    @property
    def last(self) -> EpochDone | None:
        return self.epochs[-1] if self.epochs else None

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass
class Replicate:
    """One replicate as far as it is known; attributes as in `ReplicateStarted` and `Trial`."""

    number: int
    trial: int
    block: int
    started_at: float
    epochs: list[ReplicateEpochDone] = field(default_factory=list)
    end: ReplicateEnded | None = None

    @property
    def n_epochs(self) -> int:
        return len(self.epochs)

    @property
    def last(self) -> ReplicateEpochDone | None:
        return self.epochs[-1] if self.epochs else None


class History:
    """All trials of an experiment, grown event by event.

    Attributes:
        trials: by number, ascending.
        results_in_order: all epochs of all trials, as they arrived.
        space: that proposals come from now, as `Space.as_dict` gives it; None before it is known.
        runs: replicates of the best trials, by number, ascending.
        n_redone: epochs that were trained again, after a worker or the search broke off.
        n_events: that it was made of.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.trials: dict[int, Trial] = {}
        self.results_in_order: list[EpochDone] = []
        self.space: dict[str, Any] | None = None
        self._audit_rule = (0, 0.0)
        self.replicates: dict[int, Replicate] = {}
        self.n_redone = 0
        self.n_events = 0
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in one event.

        Raises:
            ValueError: it contradicts what is known.
        """
        match event:
            case SpaceSet():
                if not set(event.excluded) <= set(self.trials):
                    raise ValueError(f"it excludes {event.excluded} of {len(self.trials)} trials")
                self._audit_rule = _audit_rule(event.space)
                self.space = event.space
                for trial in self.trials.values():
                    trial.excluded = trial.number in event.excluded
            case TrialStarted():
                if event.trial != len(self.trials):
                    raise ValueError(f"trial {event.trial} starts after {len(self.trials)} trials")
                self.trials[event.trial] = Trial(
                    event.trial,
                    event.suggested,
                    event.config,
                    event.baseline,
                    event.at,
                    # By the space as it was then: a later change of it exempts and stops nobody in hindsight.
                    audit=self._is_audit(event),
                )
            case EpochDone():
                trial = self._running(event.trial)
                if event.epoch != trial.n_epochs + 1:
                    raise ValueError(f"trial {event.trial} has epoch {event.epoch} after {trial.n_epochs}")
                trial.epochs.append(event)
                self.results_in_order.append(event)
            case EpochRedone():
                if event.epoch > self._running(event.trial).n_epochs:
                    raise ValueError(f"trial {event.trial} has trained epoch {event.epoch} again, which is not known")
                self.n_redone += 1
            case TrialPromoted():
                trial = self._running(event.trial)
                if event.epoch != trial.n_epochs or event.epoch <= trial.promoted_at:
                    raise ValueError(
                        f"trial {event.trial} is promoted from epoch {event.epoch}, where it does not wait"
                    )
                trial.promotions.append(event)
            case TrialEnded():
                trial = self._running(event.trial)
                if event.status == "completed" and not trial.epochs:
                    raise ValueError(f"trial {event.trial} completes without an epoch")
                trial.end = event
            case ReplicateStarted():
                if event.run != len(self.replicates) or event.trial not in self.trials:
                    raise ValueError(f"run {event.run} of trial {event.trial} starts after {len(self.replicates)} runs")
                self.replicates[event.run] = Replicate(event.run, event.trial, event.block, event.at)
            case ReplicateEpochDone():
                run = self._going_on(event.run)
                if event.epoch != run.n_epochs + 1:
                    raise ValueError(f"run {event.run} has epoch {event.epoch} after {run.n_epochs}")
                run.epochs.append(event)
            case ReplicateEnded():
                run = self._going_on(event.run)
                if event.status == "completed" and not run.epochs:
                    raise ValueError(f"run {event.run} completes without an epoch")
                run.end = event
        self.n_events += 1

    @property
    def counting(self) -> list[Trial]:
        """Trials that lie in the space as it is now."""
        return [trial for trial in self.trials.values() if not trial.excluded]

    @property
    def unfinished(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.end is None]

    @property
    def event_times(self) -> Iterator[float]:
        """When everything happened, in no order; seconds since 1970 (UTC)."""
        for trial in self.trials.values():
            yield trial.started_at
            yield from (epoch.at for epoch in trial.epochs)
            yield from (promotion.at for promotion in trial.promotions)
            if trial.end:
                yield trial.end.at
        for run in self.replicates.values():
            yield run.started_at
            yield from (epoch.at for epoch in run.epochs)
            if run.end:
                yield run.end.at

    @property
    def n_ended(self) -> int:
        """Of those that count."""
        return sum(trial.end is not None for trial in self.counting)

    @property
    def n_epochs(self) -> int:
        return len(self.results_in_order)

    @property
    def unfinished_replicates(self) -> list[Replicate]:
        return [run for run in self.replicates.values() if run.end is None]

    def _is_audit(self, event: TrialStarted) -> bool:
        if event.audit is not None:
            return event.audit
        return not event.baseline and is_audit(event.trial, *self._audit_rule)

    def _going_on(self, number: int) -> Replicate:
        run = self.replicates.get(number)
        if run is None or run.end is not None:
            raise ValueError(f"run {number} was never started, or has ended already")
        return run

    def _running(self, number: int) -> Trial:
        trial = self.trials.get(number)
        if trial is None:
            raise ValueError(f"trial {number} was never started")
        if trial.end is not None:
            raise ValueError(f"trial {number} has ended already")
        return trial


def _audit_rule(space: Mapping[str, Any]) -> tuple[int, float]:
    """Seed and `search.audit_fraction`, which journals from before there was such a thing do not have."""
    search = space.get("search", {})
    if not isinstance(search, dict):
        raise ValueError(f"its search is {shorten(search)}")
    seed, fraction = search.get("seed", 0), search.get("audit_fraction", 0.0)
    if not _fits(seed, int) or seed > _LARGEST or not _fits(fraction, float) or not 0 <= fraction <= 1:
        raise ValueError(f"its search has seed {shorten(seed)} and audit_fraction {shorten(fraction)}")
    return seed, fraction
