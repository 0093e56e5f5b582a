"""The state of a running search and every decision in it, in pure Python.

Ray's part is in `search.execution.ray_adapters`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from search.experiment.audits import is_audit
from search.experiment.events import (
    ConfigurationAdded,
    EndStatus,
    EpochDone,
    EpochRedone,
    Event,
    FinishRequested,
    ReplicateEnded,
    ReplicateEpochDone,
    ReplicateStarted,
    ReplicateStatus,
    TrialEnded,
    TrialStarted,
)
from search.experiment.history import History, Replicate, Trial
from search.experiment.journal import Journal
from search.policy import budget
from search.policy.asha import StoppingRule, replay
from search.policy.confirmation import next_run
from search.policy.study import Proposer
from spaces.errors import RunError
from spaces.parameters import Hyperparameters
from spaces.schema import Space

Observer = Callable[[Event, History], None]

# If so many first trials of a session fail for the same reason, all others would fail too.
ALIKE_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Assignment:
    """Work for one worker: a trial or a replicate.

    Attributes:
        kind: `trial` or `run` (a replicate).
        number: number of the trial or replicate.
        trial: number of the trial whose configuration `config` is trained.
        seed_number: selects the random streams, together with `kind`: number of the trial, or block of the replicate.
        n_epochs_known: number of epochs whose results are in the journal; positive after a resume.
        n_before: number of earlier dispatches in this session, each ended by the loss of its worker.
    """

    kind: Literal["trial", "run"]
    number: int
    trial: int
    seed_number: int
    config: Hyperparameters
    n_epochs_known: int
    n_before: int = 0

    @property
    def name(self) -> str:
        """Name in files, and start of the name of its checkpoint folders: `trial_0007`."""
        return folder_name(self.kind, self.number)

    @property
    def folder(self) -> str:
        """Checkpoint folder of this dispatch: `trial_0007`, then `trial_0007_2`; Ray would overwrite the first."""
        return f"{self.name}_{self.n_before + 1}" if self.n_before else self.name

    @property
    def title(self) -> str:
        """Name in messages: `trial 7`, `replicate 3`."""
        return f"trial {self.number}" if self.kind == "trial" else f"replicate {self.number}"


def folder_name(kind: Literal["trial", "run"], number: int) -> str:
    """Name of a trial or replicate in files: `trial_0007`, `run_0003`."""
    return f"{kind}_{number:04d}"


def ended_names(history: History) -> list[str]:
    """Folder names of all trials and replicates that have ended."""
    trials = [folder_name("trial", number) for number, trial in history.trials.items() if trial.end]
    return trials + [folder_name("run", number) for number, run in history.replicates.items() if run.end]


def is_done(history: History, space: Space) -> bool:
    """Whether no trial and no replicate is left to train."""
    if history.unfinished or history.unfinished_replicates or budget.n_to_start(history, space):
        return False
    return next_run(history, space) is None


class SearchState:
    """Proposes trials, records results, and decides which trials continue; each event is journaled at once.

    A state that is made from the history of an interrupted search makes the decisions that the search would have
    made: the study, the rungs and the unfinished trials are derived from the history.

    Args:
        space: the searched space.
        history: of all sessions; each new event is added to it. Its `SpaceSet` names the metric.
        journal: receives each event; None keeps events in memory only.
        observe: called after each event, with the history that includes it.
        now: the clock, in seconds since 1970 (UTC).
        fails_alone: whether a trial of this session has trained an epoch. Until then, the cause of a failure may
            affect all trials.
        is_late: returns whether the rest of the time budget is reserved for replicates. From then on no trial is
            started, if a trial can be replicated.
    """

    def __init__(
        self,
        space: Space,
        history: History,
        journal: Journal | None = None,
        observe: Observer | None = None,
        now: Callable[[], float] = time.time,
        fails_alone: bool = False,
        is_late: Callable[[], bool] = lambda: False,
    ) -> None:
        self.space = space
        self.history = history
        self._journal = journal
        self._observe = observe
        self._now = now
        self._is_late = is_late
        self._rule = StoppingRule(space, history)
        reasons_to_stop = replay(self._rule, history)
        self._proposer = Proposer(space, history)
        self._running: set[int] = set()
        self._runs_running: set[int] = set()
        for trial in history.unfinished:
            # The search was interrupted between a result and its consequence.
            if trial.last:
                self._end_if_due(trial, trial.last, reasons_to_stop.get(trial.number))
        for run in history.unfinished_replicates:
            if run.last:
                self._end_run_if_due(run, run.last)
        self._to_resume = list(history.unfinished)
        self._runs_to_resume = list(history.unfinished_replicates)
        self._dispatched: list[int] = []
        self._runs_dispatched: list[int] = []
        self.fails_alone = fails_alone
        self._unexplained: dict[int, str] = {}

    @property
    def n_left(self) -> int:
        """Number of trials that `next_assignment` will still dispatch."""
        return len(self._to_resume) + self._n_to_propose

    @property
    def n_running(self) -> int:
        """Number of dispatched trials and replicates that have not ended."""
        return len(self._runs_running) + self._n_trials_running

    @property
    def _n_trials_running(self) -> int:
        return len(self._running - self._unexplained.keys())

    @property
    def _n_to_propose(self) -> int:
        return budget.n_to_start(self.history, self.space)

    def next_assignment(self) -> Assignment | None:
        """Dispatch the next trial or replicate.

        Unfinished trials come first, then new proposals, then replicates of the best trials.

        Returns:
            None if nothing can be dispatched now; a running trial or replicate may change that.
        """
        if self._to_resume:
            return self._dispatch(self._to_resume.pop(0))
        is_late = self._is_late() and bool(self.history.replicates or next_run(self.history, self.space))
        if self._n_to_propose and not is_late:
            return self._dispatch(self._propose())
        if self._no_more_can_tell:
            self._accept_failures()
        if self._n_trials_running or self._unexplained:
            return None
        return self._next_run()

    def _propose(self) -> Trial:
        number = len(self.history.trials)
        given, proposed_by = budget.given_next(self.history, self.space) or (None, self._proposer.source(number))
        suggested = self._proposer.propose(number, given)
        config = self.space.complete(suggested)
        baseline = proposed_by == "baseline"
        audit = not baseline and is_audit(number, self.space.search.seed, self.space.search.audit_fraction)
        self._record(TrialStarted(number, suggested, config, baseline, self._now(), audit, proposed_by))
        return self.history.trials[number]

    def steer(self, request: Event) -> None:
        """Do what the user asks for while the search runs (`search.steer`): what came too late changes nothing.

        Args:
            request: `TrialEnded` stops a trial, whose worker is free after the epoch that it trains;
                `ConfigurationAdded` adds the next trial; `FinishRequested` starts no more trials.
        """
        match request:
            case TrialEnded(trial=number, reason=reason):
                trial = self.history.trials.get(number)
                if trial and trial.end is None:
                    self._to_resume = [other for other in self._to_resume if other is not trial]
                    self._unexplained.pop(number, None)
                    self._end(trial, "stopped", reason)
            case ConfigurationAdded(config=config):
                if not budget.is_tried(config, self.history):
                    self._record(request)
            case FinishRequested():
                self._record(request)

    def _dispatch(self, trial: Trial) -> Assignment:
        n_before = self._dispatched.count(trial.number)
        self._dispatched.append(trial.number)
        self._running.add(trial.number)
        return Assignment("trial", trial.number, trial.number, trial.number, trial.config, trial.n_epochs, n_before)

    def put_back(self, assignment: Assignment) -> None:
        """Let `next_assignment` dispatch an assignment again, whose worker was lost."""
        if assignment.kind == "run":
            self._runs_running.discard(assignment.number)
            self._runs_to_resume.append(self.history.replicates[assignment.number])
        else:
            self._running.discard(assignment.number)
            if not self.has_ended(assignment):  # the user may have stopped it
                self._to_resume.append(self.history.trials[assignment.number])

    def has_ended(self, assignment: Assignment) -> bool:
        """Whether the trial or replicate of an assignment has ended."""
        of_its_kind = self.history.replicates if assignment.kind == "run" else self.history.trials
        return of_its_kind[assignment.number].end is not None

    def _next_run(self) -> Assignment | None:
        if self._runs_to_resume:
            run = self._runs_to_resume.pop(0)
        else:
            chosen = next_run(self.history, self.space)
            if chosen is None:
                return None
            number = len(self.history.replicates)
            self._record(ReplicateStarted(number, *chosen, at=self._now()))
            run = self.history.replicates[number]
        n_before = self._runs_dispatched.count(run.number)
        self._runs_dispatched.append(run.number)
        self._runs_running.add(run.number)
        config = self.history.trials[run.trial].config
        return Assignment("run", run.number, run.trial, run.block, config, run.n_epochs, n_before)

    def record(self, result: EpochDone) -> bool:
        """Record the result of an epoch of a trial.

        A result of an epoch that was recorded before changes no decision. Such results come after a resume from an
        older checkpoint.

        Returns:
            Whether the trial continues on its worker.
        """
        trial = self.history.trials[result.trial]
        if trial.end is None and result.epoch <= trial.n_epochs:
            self._record(EpochRedone(result.trial, result.epoch, self._now()))
        elif trial.end is None:
            self._record(result)
            self._accept_failures()
            if not result.diverged:
                self._proposer.report(trial.number, result.epoch, trial.metric.value(trial.metric.score(result)))
            self._end_if_due(trial, result, self._rule.apply(trial, result))
        return trial.end is None

    def record_run(self, result: ReplicateEpochDone) -> bool:
        """Record the result of an epoch of a replicate; like `record`."""
        run = self.history.replicates[result.run]
        if run.end is None and result.epoch > run.n_epochs:
            self._record(result)
            self._end_run_if_due(run, result)
        return run.end is None

    def fail_run(self, number: int, reason: str) -> None:
        """Record that a replicate failed for `reason`, unless it has ended."""
        if self.history.replicates[number].end is None:
            self._end_run(number, "failed", reason)

    def fail(self, number: int, reason: str) -> None:
        """Record that a trial failed for `reason`, unless it has ended.

        Raises:
            RunError: no trial has trained an epoch in this session, and the first trials failed for the same reason.
        """
        if self.history.trials[number].end is not None:
            return
        self._unexplained[number] = reason
        first = list(dict.fromkeys(self._dispatched))[:ALIKE_FAILURES]
        if self.fails_alone:
            self._accept_failures()
        elif len(first) == ALIKE_FAILURES and self._unexplained.keys() >= set(first):
            self._refuse_alike_failures()

    def close(self) -> None:
        """Record the failures that were held back until now; called at the end of a session.

        Raises:
            RunError: all trials of the session failed for the same reason.
        """
        if self._no_more_can_tell:
            self._accept_failures()
        elif self._unexplained:
            self._refuse_alike_failures()

    @property
    def _no_more_can_tell(self) -> bool:
        """Whether trials failed, but too few to conclude that all would fail, and earlier sessions trained others."""
        # Such failures are recorded: otherwise each session would start with the same trials, and never end.
        others = (trial for trial in self.history.counting if trial.number not in self._unexplained)
        too_few = len(set(self._dispatched)) < ALIKE_FAILURES and not self.n_left and not self._n_trials_running
        return bool(self._unexplained) and too_few and any(trial.epochs for trial in others)

    def _refuse_alike_failures(self) -> None:
        # The trials stay unfinished, so that a resume tries them again after the cause is removed.
        reasons = list(self._unexplained.values())
        if len({_gist(reason) for reason in reasons}) == 1:
            which = "the only trial" if len(reasons) == 1 else f"the first {len(reasons)} trials"
            alike = "" if len(reasons) == 1 else " in the same way"
            raise RunError(f"{which} failed{alike}: {reasons[0].rstrip('.')}. Mend that, then resume with --resume.")
        self._accept_failures()

    def _accept_failures(self) -> None:
        self.fails_alone = True
        for number, reason in self._unexplained.items():
            self._end(self.history.trials[number], "failed", reason)
        self._unexplained.clear()

    def _end_if_due(self, trial: Trial, result: EpochDone, reason_to_stop: str | None) -> None:
        if result.diverged:
            self._end(trial, "diverged", f"the loss was not finite in epoch {result.epoch}")
        elif result.epoch >= self.space.training.max_epochs:
            self._end(trial, "completed", "")
        elif reason_to_stop:
            self._end(trial, "stopped", reason_to_stop)

    def _end_run_if_due(self, run: Replicate, result: ReplicateEpochDone) -> None:
        if result.diverged:
            self._end_run(run.number, "diverged", f"the loss was not finite in epoch {result.epoch}")
        elif result.epoch >= self.space.training.max_epochs:
            self._end_run(run.number, "completed", "")

    def _end_run(self, number: int, status: ReplicateStatus, reason: str) -> None:
        self._record(ReplicateEnded(number, status, reason, at=self._now()))
        self._runs_running.discard(number)

    def _end(self, trial: Trial, status: EndStatus, reason: str) -> None:
        self._record(TrialEnded(trial.number, status, reason, at=self._now()))
        self._running.discard(trial.number)
        self._proposer.end(trial)

    def _record(self, event: Event) -> None:
        # The history refuses an event that contradicts it, and the journal must not contain such an event.
        self.history.apply(event)
        if self._journal:
            self._journal.append(event)
        if self._observe:
            self._observe(event, self.history)


def _gist(reason: str) -> str:
    """A reason without numbers and addresses, which differ between processes."""
    return re.sub(r"0x[0-9a-fA-F]+|[0-9a-f]{16,}|\d+", "#", reason)
