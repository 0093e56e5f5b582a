"""Ray Tune's searcher, scheduler, stopper and callback: thin views of one `SearchState`."""

import errno
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search.execution.failures import RetryCount, reason_in_words, tells_of_full_disk
from search.execution.ray_internals import forget_metrics
from search.experiment.events import EpochDone, Event, ReplicateEpochDone
from search.experiment.history import History
from search.policy.state import Assignment, SearchState
from trainable.metric import ACCURACY

# The newest may be incomplete when the process ends.
CHECKPOINTS_KEPT = 2
# End of the file to which Ray appends each failure of a trial.
MAX_TRACE_CHARACTERS = 20_000

_TRIAL_FIELDS = tuple(name for name in EpochDone.__dataclass_fields__ if name not in ("trial", "at"))
_RUN_FIELDS = tuple(name for name in ReplicateEpochDone.__dataclass_fields__ if name not in ("run", "at"))

T = TypeVar("T")


class SearchObserver(Protocol):
    """Follows a session."""

    def on_event(self, event: Event, history: History) -> None:
        """Called after each event; `history` includes it."""

    def on_idle(self) -> None:
        """Called at each turn of Ray's loop."""

    def requests(self) -> Sequence[Event]:
        """What the user has asked for since the last call; see `SearchState.steer`."""

    def on_end(self, history: History) -> None:
        """Called after the last event, before Ray's processes are ended."""

    def note(self, text: str) -> None:
        """Called with one line about something that is not an event, such as a lost worker."""

    def close(self) -> None:
        """Called, possibly in another thread, before the process is ended: releases the terminal."""


class _ByReference:
    """A deep copy is the same object, and a pickle is empty.

    Ray copies these objects, and pickles them for `Tuner.restore`, which is never used: a search is resumed from its
    journal.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ByReference":
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (object, ())


class Shared(_ByReference):
    """The state of a running search, which lives in the driver only.

    Args:
        to_ray_config: makes the configuration that a worker gets for an assignment.
        what_fails_all: called after a failure; returns the error with which every other trial would fail too, or None.
    """

    def __init__(
        self,
        state: SearchState,
        to_ray_config: Callable[[Assignment], dict[str, Any]],
        what_fails_all: Callable[[], Exception | None] = lambda: None,
    ) -> None:
        self.state = state
        self.to_ray_config = to_ray_config
        self.what_fails_all = what_fails_all
        self.retries = RetryCount()
        self.assignments: dict[str, Assignment] = {}
        self.failure: Exception | None = None

    def kept(self, action: Callable[[], T], otherwise: T) -> T:
        """Run an action on the state; its exception, such as that of a full disk, ends the search later.

        Ray would hide the exception in traces.

        Returns:
            The result of the action; `otherwise` where it failed, or an earlier action did.
        """
        if self.failure is not None:
            return otherwise
        try:
            return action()
        except Exception as error:
            self.failure = error
            return otherwise


class StateSearcher(Searcher):
    """Dispatches the state's next assignment to Ray when one of `trials_at_once` slots is free.

    Ray requests a trial in advance; a proposal made then would miss the results of the trials that are about to end.
    """

    def __init__(self, shared: Shared, trials_at_once: int) -> None:
        super().__init__(metric=ACCURACY.column, mode="max")
        self._shared = shared
        self._trials_at_once = trials_at_once

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        state = self._shared.state
        if self._shared.failure is not None or state.n_running >= self._trials_at_once:
            return None
        assignment = self._shared.kept(state.next_assignment, None)
        if assignment is None:
            return None if state.n_running else Searcher.FINISHED
        self._shared.assignments[trial_id] = assignment
        return self._shared.to_ray_config(assignment)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the scheduler reports results to the state, and the callback reports errors."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()


class StateScheduler(FIFOScheduler):
    """Ends a trial when the state does. The state applies ASHA's rule, because Ray's scheduler hides its rungs."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shared = shared

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        assignment = self._shared.assignments[trial.trial_id]
        continues = self._shared.kept(lambda: self._record(assignment, result), True)
        return TrialScheduler.CONTINUE if continues else TrialScheduler.STOP

    def _record(self, assignment: Assignment, result: dict[str, Any]) -> bool:
        state, at = self._shared.state, time.time()
        if assignment.kind == "run":
            fields = {name: result[name] for name in _RUN_FIELDS}
            return state.record_run(ReplicateEpochDone(run=assignment.number, at=at, **fields))
        fields = {name: result[name] for name in _TRIAL_FIELDS}
        return state.record(EpochDone(trial=assignment.number, at=at, **fields))


class EndWhen(_ByReference, tune.Stopper):
    """Ends the whole search once `reached` returns True; unfinished trials stay unfinished."""

    def __init__(self, reached: Callable[[], bool]) -> None:
        self._reached = reached

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._reached()


class Housekeeping(_ByReference, tune.Callback):
    """Reports failures to the state, drops the checkpoints of ended trials, and tells the observer.

    `drop_checkpoints` gets the name of an assignment and the number of newest checkpoints to keep.
    """

    def __init__(self, shared: Shared, observer: SearchObserver, drop_checkpoints: Callable[[str, int], None]) -> None:
        self._shared = shared
        self._observer = observer
        self._drop_checkpoints = drop_checkpoints

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        for request in self._observer.requests():
            self._shared.kept(partial(self._shared.state.steer, request), None)
        self._observer.on_idle()

    def on_trial_recover(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """Called when Ray retries a trial by itself, up to `max_failures` times."""
        trace = failure_trace(trial)
        if not self._ends_search(trace):
            self._is_retried(self._assignment(trial), trace)

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        assignment, trace, state = self._assignment(trial), failure_trace(trial), self._shared.state
        if self._ends_search(trace):
            return
        if not state.has_ended(assignment) and self._is_retried(assignment, trace):
            # Ray does not retry a trial whose worker was lost before it started, or with a machine.
            state.put_back(assignment)
        else:
            fail = state.fail_run if assignment.kind == "run" else state.fail
            self._shared.kept(lambda: fail(assignment.number, reason_in_words(trace)), None)
            self._drop_if_ended(assignment)

    def on_checkpoint(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, checkpoint: tune.Checkpoint, **info: Any
    ) -> None:
        # Not by Ray's `num_to_keep`, which regularly writes and copies the state of all trials: its cost grows with
        # the number of trials.
        self._drop_checkpoints(self._assignment(trial).name, CHECKPOINTS_KEPT)

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self._drop_if_ended(self._assignment(trial))
        forget_metrics(trial)

    def _drop_if_ended(self, assignment: Assignment) -> None:
        if self._shared.state.has_ended(assignment):
            self._drop_checkpoints(assignment.name, 0)

    def _is_retried(self, assignment: Assignment, trace: str) -> bool:
        is_retried = self._shared.retries.record_failure(assignment.name, trace)
        if is_retried:
            self._observer.note(f"{assignment.title} lost its worker and is tried again ({reason_in_words(trace)})")
        return is_retried

    def _ends_search(self, trace: str) -> bool:
        # Every trial would fail; a resumed search continues all of them once the cause is removed.
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if tells_of_full_disk(trace) else None
        cause = full or self._shared.what_fails_all()
        self._shared.failure = self._shared.failure or cause
        return cause is not None

    def _assignment(self, trial: RayTrial) -> Assignment:
        return self._shared.assignments[trial.trial_id]


def failure_trace(trial: RayTrial) -> str:
    """The last exception of a worker as Ray recorded it; empty without a record."""
    file = trial.error_file
    text = Path(file).read_text(errors="replace")[-MAX_TRACE_CHARACTERS:] if file and Path(file).is_file() else ""
    return text.rpartition("Failure # ")[2]
