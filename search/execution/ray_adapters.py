"""Ray Tune's searcher, scheduler, stopper and callback, all of them thin views of one `SearchState`.

Ray copies and pickles what it is given; these share the state by reference all the same, as the state
lives in the driver only.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.analysis.ranking import METRIC
from search.execution.failures import reason_in_words, tells_of_full_disk
from search.execution.ray_internals import forget_metrics
from search.execution.retries import RetryCount
from search.experiment.events import EpochDone, ReplicateEpochDone
from search.policy.state import Assignment, SearchState

MODE = "max"
# The newest may be half-written when everything ends.
CHECKPOINTS_KEPT = 2
# Ray appends each failure of a trial to one file.
MAX_TRACE_CHARACTERS = 20_000

_TRIAL_FIELDS = tuple(name for name in EpochDone.__dataclass_fields__ if name not in ("trial", "at"))
_RUN_FIELDS = tuple(name for name in ReplicateEpochDone.__dataclass_fields__ if name not in ("run", "at"))

T = TypeVar("T")


class Shared:
    """Holds the state of a running search; a deep copy is the same object, and a pickle is empty.

    Args:
        state: of the search.
        to_ray_config: what a worker is told of an assignment.
        retries: counts failures over the rounds of a session.
        what_fails_all: asked when a trial broke off: the error that every other trial would fail with too, or None.
    """

    def __init__(
        self,
        state: SearchState,
        to_ray_config: Callable[[Assignment], dict[str, Any]],
        retries: RetryCount | None = None,
        what_fails_all: Callable[[], Exception | None] = lambda: None,
    ) -> None:
        self.what_fails_all = what_fails_all
        self.state = state
        self.to_ray_config = to_ray_config
        self.retries = retries or RetryCount()
        self.assignments: dict[str, Assignment] = {}
        # Names of what Ray gave up although nothing says that it cannot be trained: it goes on in another round.
        self.given_up: set[str] = set()
        # Names of trials that wait at a rung from now on, whose checkpoint is being written.
        self.saving: set[str] = set()
        self.failure: Exception | None = None

    def waits(self, assignment: Assignment) -> bool:
        """Whether it is a trial that waits at a rung."""
        return assignment.kind == "trial" and self.state.is_paused(assignment.number)

    def kept(self, action: Callable[[], T], otherwise: T) -> T:
        """Do something to the state; keep what it raises for the end, as Ray would bury it in traces.

        A full disk is the case in mind: the search must end, and the caller must say why.
        """
        if self.failure is not None:
            return otherwise
        try:
            return action()
        except Exception as error:
            self.failure = error
            return otherwise

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Ray pickles its tuner for `Tuner.restore`, which is never used: the journal is the truth.
        return (object, ())


class StateSearcher(Searcher):
    """Gives Ray the state's next assignment when there is a place for it.

    Ray asks one trial ahead; a proposal made then would not know of the trials that are about to end.

    Args:
        shared: the state.
        trials_at_once: places.
    """

    def __init__(self, shared: Shared, trials_at_once: int) -> None:
        super().__init__(metric=METRIC, mode=MODE)
        self._shared = shared
        self._trials_at_once = trials_at_once

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        state = self._shared.state
        n_running = state.n_running - len(self._shared.given_up)
        if self._shared.failure is not None or n_running >= self._trials_at_once:
            return None
        if self._shared.saving:
            return None  # the next may be one of them, and is to go on from that checkpoint
        assignment = self._shared.kept(state.next_assignment, None)
        if assignment is None:
            # What was given up will not end in this round, whatever waits for it.
            stuck = self._shared.given_up and n_running == 0
            return None if state.awaits_more and not stuck else Searcher.FINISHED
        self._shared.assignments[trial_id] = assignment
        return self._shared.to_ray_config(assignment)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler has told the state already, and the callback tells it of errors."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("A search is resumed from its journal, never from Ray's snapshot.")


class StateScheduler(FIFOScheduler):
    """Ends a trial when the state says so. The state applies ASHA's rule; Ray's own keeps its rungs to itself.

    A trial that waits at a rung ends for Ray, and its worker is free; promoted, it is a new one for Ray.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shared = shared

    def on_trial_add(self, tune_controller: Any, trial: RayTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        # One that Ray gave up while it was waiting for a worker has used up some of its tries.
        name = self._shared.assignments[trial.trial_id].name
        self._shared.retries.begins(name)
        trial.max_failures = self._shared.retries.of(name)

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        assignment = self._shared.assignments[trial.trial_id]
        goes_on = self._shared.kept(lambda: self._record(assignment, result), True)
        if self._shared.waits(assignment):
            self._shared.saving.add(assignment.name)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def _record(self, assignment: Assignment, result: dict[str, Any]) -> bool:
        state, at = self._shared.state, time.time()
        if assignment.kind == "run":
            fields = {name: result[name] for name in _RUN_FIELDS}
            return state.record_run(ReplicateEpochDone(run=assignment.number, at=at, **fields))
        fields = {name: result[name] for name in _TRIAL_FIELDS}
        return state.record(EpochDone(trial=assignment.number, at=at, **fields))


class EndWhen(tune.Stopper):
    """Ends the whole search when `reached` says so; unfinished trials stay unfinished."""

    def __init__(self, reached: Callable[[], bool]) -> None:
        self._reached = reached

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._reached()

    def __deepcopy__(self, memo: dict[int, Any]) -> "EndWhen":
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (object, ())


class Housekeeping(tune.Callback):
    """Tells the state of failures, drops the checkpoints of trials that ended, and lets the display refresh.

    Args:
        shared: the state.
        on_retry: called with what lost its worker and is tried again, and the reason.
        on_idle: called at each turn of Ray's loop.
        drop_checkpoints: removes those of an assignment, by its name, but so many of the newest.
    """

    def __init__(
        self,
        shared: Shared,
        on_retry: Callable[[str, str], None],
        on_idle: Callable[[], None],
        drop_checkpoints: Callable[[str, int], None],
    ) -> None:
        self._shared = shared
        self._on_retry = on_retry
        self._on_idle = on_idle
        self._drop_checkpoints = drop_checkpoints

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        self._on_idle()

    def on_trial_recover(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        assignment, trace = self._assignment(trial), failure_trace(trial)
        if not self._ends_search(trace):
            goes_on = self._shared.retries.goes_on(assignment.name, trace)
            trial.max_failures = self._shared.retries.of(assignment.name) if goes_on else 0
            if goes_on:
                self._on_retry(assignment.title, reason_in_words(trace))

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        assignment, trace, state = self._assignment(trial), failure_trace(trial), self._shared.state
        if self._ends_search(trace):
            return
        if self._shared.waits(assignment):
            # Its result is known; promoted, it goes on from an older checkpoint.
            self._shared.saving.discard(assignment.name)
            return
        if self._shared.retries.goes_on(assignment.name, trace):
            self._shared.given_up.add(assignment.name)
            self._on_retry(assignment.title, reason_in_words(trace))
            return
        fail = state.fail_run if assignment.kind == "run" else state.fail
        self._shared.kept(lambda: fail(assignment.number, reason_in_words(trace)), None)
        if state.has_ended(assignment):
            self._drop_checkpoints(assignment.name, 0)

    def on_checkpoint(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, checkpoint: tune.Checkpoint, **info: Any
    ) -> None:
        # Not left to Ray's `num_to_keep`: it writes and copies the state of all trials every so many checkpoints of
        # one, which takes the longer the more trials there were.
        self._drop_checkpoints(self._assignment(trial).name, CHECKPOINTS_KEPT)

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        assignment = self._assignment(trial)
        if self._shared.waits(assignment):
            self._shared.saving.discard(assignment.name)
            self._drop_checkpoints(assignment.name, 1)
        elif self._shared.state.has_ended(assignment):
            self._drop_checkpoints(assignment.name, 0)
        forget_metrics(trial)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (tune.Callback, ())

    def _ends_search(self, trace: str) -> bool:
        # Trial after trial would fail for it; as it is, all go on when it is mended.
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if tells_of_full_disk(trace) else None
        cause = full or self._shared.what_fails_all()
        self._shared.failure = self._shared.failure or cause
        return cause is not None

    def _assignment(self, trial: RayTrial) -> Assignment:
        return self._shared.assignments[trial.trial_id]


def failure_trace(trial: RayTrial) -> str:
    """What a worker raised last, as Ray wrote it down; empty where it wrote nothing."""
    file = trial.error_file
    text = Path(file).read_text(errors="replace")[-MAX_TRACE_CHARACTERS:] if file and Path(file).is_file() else ""
    return text.rpartition("Failure # ")[2]


def trial_folder_name(trial: RayTrial) -> str:
    """The assignment's folder."""
    return str(trial.config["name"])
