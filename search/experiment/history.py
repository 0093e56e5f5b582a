"""The trials and replicates of an experiment, from the events of its journal."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from search.experiment.audits import is_audit
from search.experiment.events import (
    ConfigurationAdded,
    Count,
    EpochDone,
    EpochRedone,
    Event,
    FinishRequested,
    MemoryRecalled,
    ProposedBy,
    ReplicateEnded,
    ReplicateEpochDone,
    ReplicateStarted,
    Share,
    SpaceSet,
    TrialEnded,
    TrialPromoted,
    TrialStarted,
)
from spaces.parameters import Hyperparameters, Number
from spaces.schema import MetricName
from trainable.metric import ACCURACY, METRICS, Metric

Status = Literal["completed", "stopped", "failed", "diverged", "running"]
_Epoch = TypeVar("_Epoch", EpochDone, ReplicateEpochDone)
_End = TypeVar("_End", TrialEnded, ReplicateEnded)


class _Work(Generic[_Epoch, _End]):
    """What trials and replicates have in common."""

    started_at: float  # seconds since 1970 (UTC)
    epochs: list[_Epoch]  # in order, from epoch 1
    end: _End | None  # None before its end
    metric: Metric  # that the search ranks by

    @property
    def status(self) -> Status:
        return self.end.status if self.end else "running"

    @property
    def n_epochs(self) -> int:
        return len(self.epochs)

    @property
    def last(self) -> _Epoch | None:
        return self.epochs[-1] if self.epochs else None

    @property
    def scores(self) -> dict[int, float]:
        """Score after each epoch, by its number; without epochs in which training diverged."""
        return {epoch.epoch: self.metric.score(epoch) for epoch in self.epochs if not epoch.diverged}

    @property
    def last_score(self) -> float | None:
        """Score after the last epoch; None before the first epoch, and where training diverged."""
        return None if self.last is None or self.last.diverged else self.metric.score(self.last)

    @property
    def last_value(self) -> float | None:
        """Value after the last epoch; None where there is no score."""
        return None if self.last_score is None else self.metric.value(self.last_score)

    def add_epoch(self, event: _Epoch, name: str) -> None:
        if not self.metric.is_in(event):
            raise ValueError(f"{name} has no {self.metric.title}, by which the search ranks, in epoch {event.epoch}")
        if event.epoch != self.n_epochs + 1:
            raise ValueError(f"{name} has epoch {event.epoch} after {self.n_epochs}")
        self.epochs.append(event)

    def finish(self, event: _End, name: str) -> None:
        if event.status == "completed" and not self.epochs:
            raise ValueError(f"{name} completes without an epoch")
        self.end = event


_Started = TypeVar("_Started", "Trial", "Replicate")


@dataclass
class Trial(_Work[EpochDone, TrialEnded]):
    """One trial and its results; attributes as in `TrialStarted`."""

    number: int
    suggested: Mapping[str, Number]
    config: Hyperparameters
    baseline: bool
    started_at: float
    epochs: list[EpochDone] = field(default_factory=list)
    end: TrialEnded | None = None
    excluded: bool = False  # lies outside the present space
    audit: bool = False
    proposed_by: ProposedBy | None = None
    promotions: list[TrialPromoted] = field(default_factory=list)  # in journals of an earlier version
    metric: Metric = ACCURACY

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def can_win(self) -> bool:
        """Whether the trial counts, has a result, and neither failed nor diverged."""
        has_result = self.last is not None and not self.last.diverged
        return has_result and not self.excluded and self.status not in ("failed", "diverged")


@dataclass
class Replicate(_Work[ReplicateEpochDone, ReplicateEnded]):
    """One replicate and its results."""

    number: int
    trial: int
    block: int
    started_at: float
    epochs: list[ReplicateEpochDone] = field(default_factory=list)
    end: ReplicateEnded | None = None
    metric: Metric = ACCURACY
    promotions: ClassVar[tuple[TrialPromoted, ...]] = ()


class _SearchSection(BaseModel):
    """The part of `search` in a space that is needed to read its trials: the metric, and which are audit trials.

    The latter is for journals without `TrialStarted.audit`.
    """

    model_config = ConfigDict(strict=True)

    seed: Count = 0
    audit_fraction: Share = 0.0
    metric: MetricName = "accuracy"


class History:
    """All trials and replicates of an experiment; `apply` adds an event.

    Attributes:
        trials: trials by number, ascending.
        results_in_order: epochs of all trials, in the order in which they were recorded.
        space: the present space, as returned by `Space.as_dict`; None before the first `SpaceSet`.
        n_spaces: number of times that the space was set.
        metric: that the present space ranks by; accuracy before the first `SpaceSet`.
        replicates: replicates of the best trials by number, ascending.
        added: configurations that the user added, in order.
        recalled: configurations from earlier searches, in order.
        is_finishing: whether the user asked for no more trials since the space was set.
        n_redone: number of epochs that were trained again, after a worker or the search was interrupted.
        events: all applied events, in order.
        chances: best value of each metric that a run which only guesses reaches (`manifest.Data.chances_by_metric`).
    """

    def __init__(self, events: Iterable[Event] = (), chances: Mapping[str, float] | None = None) -> None:
        self.trials: dict[int, Trial] = {}
        self.results_in_order: list[EpochDone] = []
        self.space: dict[str, Any] | None = None
        self.n_spaces = 0
        self._search_section = _SearchSection()
        self.metric = ACCURACY
        self.replicates: dict[int, Replicate] = {}
        self.added: list[Hyperparameters] = []
        self.recalled: list[Hyperparameters] = []
        self.is_finishing = False
        self.n_redone = 0
        self.events: list[Event] = []
        self.chances = chances or {}
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
            case ConfigurationAdded():
                self.added.append(event.config)
            case MemoryRecalled():
                self.recalled += event.configs
            case FinishRequested():
                self.is_finishing = True
            case ReplicateStarted():
                if event.run != len(self.replicates) or event.trial not in self.trials:
                    raise ValueError(f"run {event.run} of trial {event.trial} starts after {len(self.replicates)} runs")
                run = Replicate(event.run, event.trial, event.block, event.at, metric=self.metric)
                self.replicates[event.run] = run
            case ReplicateEpochDone():
                _unfinished(self.replicates, event.run, "run").add_epoch(event, f"run {event.run}")
            case ReplicateEnded():
                _unfinished(self.replicates, event.run, "run").finish(event, f"run {event.run}")
            case _:
                self._apply_to_trial(event, _unfinished(self.trials, event.trial, "trial"))
        self.events.append(event)

    def _set_space(self, event: SpaceSet) -> None:
        if not set(event.excluded) <= set(self.trials):
            raise ValueError(f"it excludes {event.excluded} of {len(self.trials)} trials")
        self._search_section = _SearchSection.model_validate(event.space.get("search", {}))
        metric = METRICS[self._search_section.metric]
        if n_without := self.n_without(metric):
            raise ValueError(f"it ranks by {metric.title}, which {n_without} earlier epochs do not have")
        self.metric, self.space = metric, event.space
        self.n_spaces += 1
        self.is_finishing = False
        for trial in self.trials.values():
            trial.excluded = trial.number in event.excluded
        for one in self.work:
            one.metric = metric

    def _start_trial(self, event: TrialStarted) -> None:
        if event.trial != len(self.trials):
            raise ValueError(f"trial {event.trial} starts after {len(self.trials)} trials")
        audit = event.audit
        if audit is None:
            # From the space at the start of the trial: later changes of the space do not apply to it.
            rule = self._search_section
            audit = not event.baseline and is_audit(event.trial, rule.seed, rule.audit_fraction)
        proposed_by = "baseline" if event.baseline else event.proposed_by
        self.trials[event.trial] = Trial(
            event.trial,
            event.suggested,
            event.config,
            event.baseline,
            event.at,
            audit=audit,
            proposed_by=proposed_by,
            metric=self.metric,
        )

    def _apply_to_trial(self, event: EpochDone | EpochRedone | TrialPromoted | TrialEnded, trial: Trial) -> None:
        name = f"trial {event.trial}"
        match event:
            case EpochDone():
                trial.add_epoch(event, name)
                self.results_in_order.append(event)
            case EpochRedone():
                if event.epoch > trial.n_epochs:
                    raise ValueError(f"{name} has trained epoch {event.epoch} again, which is not known")
                self.n_redone += 1
            case TrialPromoted():
                trial.promotions.append(event)
            case TrialEnded():
                trial.finish(event, name)

    @property
    def chance(self) -> float | None:
        """The highest score of a run that only guesses; None if unknown."""
        return self.metric.value(self.chances[self.metric.name]) if self.metric.name in self.chances else None

    @property
    def counting(self) -> list[Trial]:
        """Trials that are not excluded."""
        return [trial for trial in self.trials.values() if not trial.excluded]

    def completions(self) -> Iterator[tuple[int, EpochDone]]:
        """Last epochs of completed trials, in order, each with the number of epochs that all trials had until then.

        Excluded trials do not count.
        """
        n_epochs = 0
        for result in self.results_in_order:
            trial = self.trials[result.trial]
            n_epochs += not trial.excluded
            if trial.status == "completed" and not trial.excluded and result.epoch == trial.n_epochs:
                yield n_epochs, result

    @property
    def unfinished(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.end is None]

    @property
    def work(self) -> list[Trial | Replicate]:
        """All trials, then all replicates."""
        return [*self.trials.values(), *self.replicates.values()]

    @property
    def event_times(self) -> Iterator[float]:
        """Times of all events during sessions; seconds since 1970 (UTC). A space may be set between two sessions."""
        return (event.at for event in self.events if not isinstance(event, SpaceSet))

    def n_without(self, metric: Metric) -> int:
        """Number of epochs of trials and replicates that do not have a metric."""
        return sum(not metric.is_in(epoch) for one in self.work for epoch in one.epochs)

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


def _unfinished(started: Mapping[int, _Started], number: int, kind: str) -> _Started:
    if number not in started or started[number].end is not None:
        raise ValueError(f"{kind} {number} was never started, or has ended already")
    return started[number]
