"""Runs one session of a search on Ray, and leaves the experiment's folder complete."""

import contextlib
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ray import tune
from ray.tune.logger import JsonLoggerCallback

from search.execution.cluster import LocalCluster
from search.execution.failures import first_full, is_full_disk
from search.execution.joined_cluster import JoinedCluster
from search.execution.plan import ResourcePlan
from search.execution.ray_adapters import (
    EndWhen,
    Housekeeping,
    Shared,
    StateScheduler,
    StateSearcher,
    trial_folder_name,
)
from search.execution.ray_internals import use_ready_workers
from search.execution.retries import MAX_RETRIES, RetryCount
from search.execution.stop_signal import StopSignal
from search.experiment.command_lines import resume_line
from search.experiment.events import Event
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Session, timestamp
from search.experiment.wall_clock import wall_clock
from search.policy.confirmation import seconds_to_confirm
from search.policy.state import Assignment, SearchState, ended_names, is_done
from spaces.errors import InputError, RunError
from spaces.printable import shell_word
from spaces.schema import Space
from trainable.data.cache import open_decoded
from trainable.data.datasets import TrainingData
from trainable.ray_trainable import TrialConfig, TrialTrainable, ship
from trainable.seeding import Purpose

SearchEnd = Literal["finished", "interrupted", "time budget used"]


class SearchObserver(Protocol):
    """Follows a session."""

    def on_event(self, event: Event, history: History) -> None:
        """Called after each event; `history` includes it."""

    def on_idle(self) -> None:
        """Called at each turn of Ray's loop."""

    def on_end(self, history: History) -> None:
        """Called after the last event, before Ray's processes are ended."""

    def note(self, text: str) -> None:
        """Called with one line about something that is not an event, such as a lost worker."""

    def close(self) -> None:
        """Called, possibly in another thread, before the process is ended: releases the terminal."""


@dataclass(frozen=True)
class Launch:
    """One session of a search.

    Attributes:
        experiment: held exclusively by the caller.
        space: of this session.
        data: prepared on this machine.
        resource_plan: where trials run.
        cluster: running; ended with the session. None where no trial is left.
        stop_signal: listening.
        started_s: time of the command, by the monotonic clock.
        time_left_s: of the time budget at `started_s`; None without a budget.
    """

    experiment: Experiment
    space: Space
    data: TrainingData
    resource_plan: ResourcePlan
    cluster: LocalCluster | JoinedCluster | None
    stop_signal: StopSignal
    started_s: float
    time_left_s: float | None

    @property
    def started_at(self) -> float:
        """Time of the command, in seconds since 1970 (UTC)."""
        return time.time() - (time.monotonic() - self.started_s)


def run_session(launch: Launch, observer: SearchObserver) -> SearchEnd:
    """Search until all trials have ended, the time is up, or Ctrl-C is pressed.

    Args:
        launch: the session.
        observer: follows the session.

    Returns:
        Why the session ended. The folder's files are up to date, also after an exception.

    Raises:
        RunError: the disk is full, the folder was removed, or the first trials all failed for one reason; the search
            can be resumed.
    """
    with _disk_in_one_line(launch.experiment):
        return _run_session(launch, observer)


def _run_session(launch: Launch, observer: SearchObserver) -> SearchEnd:
    experiment = launch.experiment
    deadline_s = math.inf if launch.time_left_s is None else launch.started_s + launch.time_left_s
    trials_until_s = deadline_s - seconds_to_confirm(launch.space)

    def state_so_far(fails_alone: bool) -> SearchState:
        journal = experiment.journal()
        chance = experiment.manifest.data.chance
        return SearchState(
            launch.space,
            experiment.history(),
            journal,
            observer.on_event,
            fails_alone=fails_alone,
            chance=chance,
            is_late=lambda: time.monotonic() >= trials_until_s,
        )

    state = state_so_far(fails_alone=False)
    retries = RetryCount()
    session = _open_session(experiment, launch)
    launch.stop_signal.leave_last_words(lambda: _last_words(launch, observer))
    if launch.cluster:
        launch.cluster.log_to(experiment.ray_folder / f"driver_{session}.err")

    def reached() -> bool:
        return bool(launch.stop_signal.requested or launch.stop_signal.lost) or time.monotonic() >= deadline_s

    end: SearchEnd = "interrupted"
    try:
        if launch.cluster:
            for attempt in itertools.count(1):
                name = f"session_{session}" if attempt == 1 else f"session_{session}_{attempt}"
                if reached():
                    break
                with launch.stop_signal.inside_ray():
                    all_done = _tune(launch, state, observer, reached, name, retries)
                state.close()
                if all_done:
                    break
                # Ray gave up trials that can be trained; the next round resumes them.
                state = state_so_far(state.fails_alone)
            if not launch.stop_signal.lost:
                launch.cluster.end()
        if is_done(state.history, launch.space):
            end = "finished"
        elif not launch.stop_signal.requested and time.monotonic() >= trials_until_s:
            end = "time budget used"
    finally:
        # First, because it frees space.
        for name in ended_names(state.history):
            experiment.drop_checkpoints(name)
        experiment.drop_ray_snapshots()
        observer.on_end(state.history)
        _close_session(launch, state.history, end)
        # Last, because it may not return where Ray's processes are gone.
        if launch.cluster:
            launch.cluster.end()
        launch.stop_signal.end()
    return end


def _last_words(launch: Launch, observer: SearchObserver) -> str:
    """Close the session in the manifest, release the terminal, and name the command that resumes."""
    experiment = launch.experiment
    history = experiment.history()
    _close_session(launch, history, "finished" if is_done(history, launch.space) else "interrupted")
    observer.close()
    address = launch.cluster.address if launch.cluster else None
    more = f" --address {shell_word(address)}" if address else ""
    return f"nothing is lost. Resume with: {resume_line(experiment, more)}"


@contextlib.contextmanager
def _disk_in_one_line(experiment: Experiment) -> Iterator[None]:
    """Report a full disk or a removed folder in one line; Ray reports them as other errors, such as EOFError."""
    try:
        yield
    except Exception as error:
        if not (experiment.folder / "journal.jsonl").exists():
            raise RunError(
                f"{experiment.folder}: its journal was removed while the search ran. Restore the folder, then resume "
                f"with: {resume_line(experiment)}"
            ) from error
        full = first_full(experiment.folder, Path(tempfile.gettempdir()))
        if full is None and not is_full_disk(error):
            raise
        raise RunError(
            f"{full or experiment.folder}: no space left on the disk; what was trained is safe. Make room, then resume "
            f"with: {resume_line(experiment)}"
        ) from error


def _tune(
    launch: Launch,
    state: SearchState,
    observer: SearchObserver,
    reached: Callable[[], bool],
    name: str,
    retries: RetryCount,
) -> bool:
    """Run the trials that are left; False where Ray gave up trials that another round resumes."""
    shared = Shared(state, lambda assignment: _ray_config(launch, assignment), retries, lambda: damaged_images(launch))

    def on_retry(title: str, reason: str) -> None:
        observer.note(f"{title} lost its worker and is tried again ({reason})")

    use_ready_workers()
    tuner = tune.Tuner(
        tune.with_resources(_trainable(launch), launch.resource_plan.resources_per_trial),
        tune_config=tune.TuneConfig(
            search_alg=StateSearcher(shared, launch.resource_plan.trials_at_once),
            scheduler=StateScheduler(shared),
            num_samples=state.most_assignments,
            reuse_actors=True,
            trial_dirname_creator=trial_folder_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=launch.experiment.ray_storage,
            stop=EndWhen(lambda: reached() or shared.failure is not None),
            verbose=0,
            callbacks=[
                Housekeeping(shared, on_retry, observer.on_idle, launch.experiment.drop_checkpoints),
                JsonLoggerCallback(),  # type: ignore[no-untyped-call]
            ],
            failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=False),
        ),
    )
    tuner.fit()
    if shared.failure is not None:
        raise shared.failure
    return not shared.given_up


def damaged_images(launch: Launch) -> RunError | None:
    """The error for decoded images that were removed or truncated: a worker that reads such a memory map dies."""
    if launch.cluster is None or not launch.cluster.shares_disk:
        return None
    try:
        open_decoded(launch.data.decoded.folder)
    except InputError as error:
        again = resume_line(launch.experiment)
        return RunError(f"{error} What was trained is safe. Then resume with: {again}")
    return None


def _trainable(launch: Launch) -> type[tune.Trainable]:
    if launch.cluster is None or launch.cluster.shares_disk:
        return TrialTrainable
    with_images: type[tune.Trainable] = tune.with_parameters(TrialTrainable, shipped=ship(launch.data.decoded))
    return with_images


def _ray_config(launch: Launch, assignment: Assignment) -> dict[str, Any]:
    resume_from: Path | str | None = None
    if assignment.n_epochs_known:
        resume_from = launch.experiment.newest_checkpoint(assignment.name, assignment.n_epochs_known)
    return TrialConfig(
        name=assignment.folder,
        trial=assignment.trial,
        purpose=Purpose.CONFIRMATION if assignment.kind == "run" else Purpose.TRIAL,
        seed_number=assignment.seed_number,
        hyperparameters=assignment.config,
        decoded_folder=launch.data.decoded.folder,
        dataset=launch.space.dataset,
        experiment_seed=launch.space.search.seed,
        compute=launch.resource_plan.compute,
        resume_from=None if resume_from is None else str(resume_from),
    ).model_dump(mode="json")


def _open_session(experiment: Experiment, launch: Launch) -> int:
    started = Session(started_at=timestamp(launch.started_at))
    manifest = experiment.manifest.with_session(started, new=True)
    experiment.write_manifest(manifest)
    return free_session(experiment.ray_folder, len(manifest.sessions))


def free_session(ray_folder: Path, number: int) -> int:
    """`number`, or the next one without a folder: Ray must find no files of others in its folder."""
    while os.path.lexists(ray_folder / f"session_{number}"):
        number += 1
    return number


def _close_session(launch: Launch, history: History, end: SearchEnd) -> None:
    manifest = launch.experiment.manifest
    seconds = time.monotonic() - launch.started_s
    shares = wall_clock(history, launch.started_at, seconds, launch.resource_plan.trials_at_once)
    ended = {
        "ended_at": timestamp(),
        "seconds": round(seconds, 3),
        "end": end,
        "overhead_share": round(shares.overhead, 4),
        "idle_share": round(shares.idle, 4),
    }
    session = manifest.sessions[-1].model_copy(update=ended)
    launch.experiment.write_manifest(manifest.with_session(session, new=False))
