"""The trials and replicates of an experiment, from the events of its journal."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from search.experiment.audits import is_audit
from search.experiment.events import (
    LARGEST,
    EpochDone,
    EpochRedone,
    Event,
    ReplicateEnded,
    ReplicateEpochDone,
    ReplicateStarted,
    SpaceSet,
    TrialEnded,
    TrialPromoted,
    TrialStarted,
    fits,
)
from spaces.parameters import Hyperparameters, Number, shorten

Status = Literal["completed", "stopped", "failed", "diverged", "running"]


@dataclass
class Trial:
    """One trial and its results.

    Attributes:
        number: number of the trial, from 0.
        suggested, config, baseline: as in `TrialStarted`.
        started_at: time of the start, seconds since 1970 (UTC).
        epochs: results in order of epochs, from epoch 1.
        end: event of its end; None before.
        excluded: whether the trial lies outside the present space.
        audit: whether no rung stops the trial (`search.audit_fraction`).
        promotions: promotions from rungs at which the trial waited, in order.
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
        """Epoch of the highest rung that the trial was promoted from; 0 without a promotion."""
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
    """One replicate and its results; attributes as in `ReplicateStarted` and `Trial`."""

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
    """All trials and replicates of an experiment; `apply` adds an event.

    Attributes:
        trials: trials by number, ascending.
        results_in_order: epochs of all trials, in the order in which they were recorded.
        space: the present space, as returned by `Space.as_dict`; None before the first `SpaceSet`.
        replicates: replicates of the best trials by number, ascending.
        n_redone: number of epochs that were trained again, after a worker or the search was interrupted.
        n_events: number of applied events.
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
        """Add one event.

        Raises:
            ValueError: the event contradicts earlier ones.
        """
        match event:
            case SpaceSet():
                self._set_space(event)
            case TrialStarted():
                self._start_trial(event)
            case ReplicateStarted():
                if event.run != len(self.replicates) or event.trial not in self.trials:
                    raise ValueError(f"run {event.run} of trial {event.trial} starts after {len(self.replicates)} runs")
                self.replicates[event.run] = Replicate(event.run, event.trial, event.block, event.at)
            case ReplicateEpochDone() | ReplicateEnded():
                self._apply_to_replicate(event, self._unfinished_replicate(event.run))
            case _:
                self._apply_to_trial(event, self._unfinished_trial(event.trial))
        self.n_events += 1

    def _set_space(self, event: SpaceSet) -> None:
        if not set(event.excluded) <= set(self.trials):
            raise ValueError(f"it excludes {event.excluded} of {len(self.trials)} trials")
        self._audit_rule = _audit_rule(event.space)
        self.space = event.space
        for trial in self.trials.values():
            trial.excluded = trial.number in event.excluded

    def _start_trial(self, event: TrialStarted) -> None:
        if event.trial != len(self.trials):
            raise ValueError(f"trial {event.trial} starts after {len(self.trials)} trials")
        # From the space at the start of the trial: later changes of the space do not apply to it.
        audit = self._is_audit(event)
        self.trials[event.trial] = Trial(
            event.trial, event.suggested, event.config, event.baseline, event.at, audit=audit
        )

    def _apply_to_trial(self, event: EpochDone | EpochRedone | TrialPromoted | TrialEnded, trial: Trial) -> None:
        match event:
            case EpochDone():
                if event.epoch != trial.n_epochs + 1:
                    raise ValueError(f"trial {event.trial} has epoch {event.epoch} after {trial.n_epochs}")
                trial.epochs.append(event)
                self.results_in_order.append(event)
            case EpochRedone():
                if event.epoch > trial.n_epochs:
                    raise ValueError(f"trial {event.trial} has trained epoch {event.epoch} again, which is not known")
                self.n_redone += 1
            case TrialPromoted():
                if event.epoch != trial.n_epochs or event.epoch <= trial.promoted_at:
                    raise ValueError(
                        f"trial {event.trial} is promoted from epoch {event.epoch}, where it does not wait"
                    )
                trial.promotions.append(event)
            case TrialEnded():
                if event.status == "completed" and not trial.epochs:
                    raise ValueError(f"trial {event.trial} completes without an epoch")
                trial.end = event

    def _apply_to_replicate(self, event: ReplicateEpochDone | ReplicateEnded, run: Replicate) -> None:
        if isinstance(event, ReplicateEnded):
            if event.status == "completed" and not run.epochs:
                raise ValueError(f"run {event.run} completes without an epoch")
            run.end = event
            return
        if event.epoch != run.n_epochs + 1:
            raise ValueError(f"run {event.run} has epoch {event.epoch} after {run.n_epochs}")
        run.epochs.append(event)

    @property
    def counting(self) -> list[Trial]:
        """Trials that are not excluded."""
        return [trial for trial in self.trials.values() if not trial.excluded]

    @property
    def unfinished(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.end is None]

    @property
    def event_times(self) -> Iterator[float]:
        """Times of all events of trials and replicates, unordered; seconds since 1970 (UTC)."""
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
        """Number of trials that have ended, without excluded ones."""
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

    def _unfinished_replicate(self, number: int) -> Replicate:
        run = self.replicates.get(number)
        if run is None or run.end is not None:
            raise ValueError(f"run {number} was never started, or has ended already")
        return run

    def _unfinished_trial(self, number: int) -> Trial:
        trial = self.trials.get(number)
        if trial is None:
            raise ValueError(f"trial {number} was never started")
        if trial.end is not None:
            raise ValueError(f"trial {number} has ended already")
        return trial


def _audit_rule(space: Mapping[str, Any]) -> tuple[int, float]:
    """Seed and `search.audit_fraction` of a space; 0 for those that an old journal does not have."""
    search = space.get("search", {})
    if not isinstance(search, dict):
        raise ValueError(f"its search is {shorten(search)}")
    seed, fraction = search.get("seed", 0), search.get("audit_fraction", 0.0)
    if not fits(seed, int) or seed > LARGEST or not fits(fraction, float) or not 0 <= fraction <= 1:
        raise ValueError(f"its search has seed {shorten(seed)} and audit_fraction {shorten(fraction)}")
    return seed, fraction
