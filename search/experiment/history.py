"""What is known of an experiment's trials: the history that the events of its journal add up to."""

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
        """Add one event.

        Raises:
            ValueError: the event contradicts the history.
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
            case ReplicateStarted() | ReplicateEpochDone() | ReplicateEnded():
                self._apply_to_replicates(event)
        self.n_events += 1

    def _apply_to_replicates(self, event: ReplicateStarted | ReplicateEpochDone | ReplicateEnded) -> None:
        match event:
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
    if not fits(seed, int) or seed > LARGEST or not fits(fraction, float) or not 0 <= fraction <= 1:
        raise ValueError(f"its search has seed {shorten(seed)} and audit_fraction {shorten(fraction)}")
    return seed, fraction
