"""Runs one session of a search on Ray, and leaves the experiment's folder complete."""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.logger import JsonLoggerCallback
from threadpoolctl import threadpool_limits

from search.execution.cluster import Cluster
from search.execution.failures import MAX_RETRIES, first_full, is_full_disk
from search.execution.plan import ResourcePlan
from search.execution.ray_adapters import (
    EndWhen,
    Housekeeping,
    SearchObserver,
    Shared,
    StateScheduler,
    StateSearcher,
)
from search.execution.ray_internals import count_no_callbacks, use_ready_workers
from search.execution.stop_signal import StopSignal
from search.experiment.command_lines import resume_line
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

SearchEnd = Literal["finished", "interrupted", "time budget used", "failed"]


@dataclass(frozen=True)
class SearchSession:
    """One session of a search.

    Attributes:
        experiment: held exclusively by the caller.
        cluster: running; ended with the session. None where no trial is left.
        stop_signal: listening.
        started_s: time of the command, by the monotonic clock.
        time_left_s: of the time budget at `started_s`; None without a budget.
    """

    experiment: Experiment
    space: Space
    data: TrainingData
    resource_plan: ResourcePlan
    cluster: Cluster | None
    stop_signal: StopSignal
    started_s: float
    time_left_s: float | None
    observer: SearchObserver

    def run(self) -> SearchEnd:
        """Search until all trials have ended, the time is up, or Ctrl-C is pressed.

        Returns:
            Why the session ended. The folder's files are up to date, also after an exception.

        Raises:
            RunError: the disk is full, the folder was removed, the cluster was lost, or the first trials all failed for
                one reason; the search can be resumed.
        """
        # The trials use the cores: with threads of its own, a proposal would take twice as long.
        with _disk_in_one_line(self.experiment), threadpool_limits(1, user_api="blas"):
            return self._run()

    def _run(self) -> SearchEnd:
        history = self.experiment.history()
        state = SearchState(
            self.space,
            history,
            self.experiment.journal(),
            self.observer.on_event,
            is_late=lambda: time.monotonic() >= self._trials_until_s,
        )
        number = self._open()
        self.stop_signal.leave_last_words(self._last_words)
        end: SearchEnd = "interrupted"
        try:
            if self.cluster:
                self.cluster.log_to(self.experiment.ray_folder / f"driver_{number}.err")
                if not self._must_end():
                    with self.stop_signal.inside_ray():
                        self._train(state, f"session_{number}")
                    state.close()
                self.cluster.end()
            if is_done(state.history, self.space):
                end = "finished"
            elif not self.stop_signal.requested and time.monotonic() >= self._trials_until_s:
                end = "time budget used"
        finally:
            # First, because it frees space.
            for name in ended_names(state.history):
                self.experiment.drop_checkpoints(name)
            self.experiment.drop_ray_snapshots()
            self.observer.on_end(state.history)
            self._close(state.history, end)
            # Last, because it may not return where Ray's processes are gone.
            if self.cluster:
                self.cluster.end()
            self.stop_signal.end()
        return end

    @property
    def _deadline_s(self) -> float:
        return math.inf if self.time_left_s is None else self.started_s + self.time_left_s

    @property
    def _trials_until_s(self) -> float:
        return self._deadline_s - seconds_to_confirm(self.space)

    def _must_end(self) -> bool:
        return bool(self.stop_signal.requested or self.stop_signal.lost) or time.monotonic() >= self._deadline_s

    def _train(self, state: SearchState, name: str) -> None:
        """Train what is left, until everything has ended or the session must end."""
        shared = Shared(state, self._ray_config, self.damaged_images)
        use_ready_workers()
        count_no_callbacks()
        tuner = tune.Tuner(
            tune.with_resources(self._trainable(), self.resource_plan.resources_per_trial),
            tune_config=tune.TuneConfig(
                search_alg=StateSearcher(shared, self.resource_plan.trials_at_once),
                scheduler=StateScheduler(shared),
                num_samples=-1,  # until the searcher has finished
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.config["name"]),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=self.experiment.ray_storage,
                stop=EndWhen(lambda: self._must_end() or shared.failure is not None),
                verbose=0,
                callbacks=[
                    Housekeeping(shared, self.observer, self.experiment.drop_checkpoints),
                    JsonLoggerCallback(),  # type: ignore[no-untyped-call]
                ],
                failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=False),
            ),
        )
        tuner.fit()
        if shared.failure is not None:
            raise shared.failure

    def _trainable(self) -> type[tune.Trainable]:
        if self.cluster is None or self.cluster.shares_disk:
            return TrialTrainable
        with_images: type[tune.Trainable] = tune.with_parameters(TrialTrainable, shipped=ship(self.data.decoded))
        return with_images

    def _ray_config(self, assignment: Assignment) -> dict[str, Any]:
        resume_from: Path | str | None = None
        if assignment.n_epochs_known:
            resume_from = self.experiment.newest_checkpoint(assignment.name, assignment.n_epochs_known)
        return TrialConfig(
            name=assignment.folder,
            trial=assignment.trial,
            purpose=Purpose.CONFIRMATION if assignment.kind == "run" else Purpose.TRIAL,
            seed_number=assignment.seed_number,
            hyperparameters=assignment.config,
            decoded_folder=self.data.decoded.folder,
            dataset=self.space.dataset,
            experiment_seed=self.space.search.seed,
            compute=self.resource_plan.compute,
            class_weights=self.space.training.class_weights,
            pooling=self.space.training.pooling,
            resume_from=None if resume_from is None else str(resume_from),
        ).model_dump(mode="json")

    def damaged_images(self) -> RunError | None:
        """The error for decoded images that were removed or truncated: a worker that reads such a memory map dies."""
        if self.cluster is None or not self.cluster.shares_disk:
            return None
        try:
            open_decoded(self.data.decoded.folder)
        except InputError as error:
            again = resume_line(self.experiment)
            return RunError(f"{error} What was trained is safe. Then resume with: {again}")
        return None

    def _open(self) -> int:
        """Add the session to the manifest; returns its number."""
        manifest = self.experiment.manifest.with_session(Session(started_at=timestamp(self._started_at)), new=True)
        self.experiment.write_manifest(manifest)
        return free_session(self.experiment.ray_folder, len(manifest.sessions))

    def _close(self, history: History, end: SearchEnd) -> None:
        manifest = self.experiment.manifest
        seconds = time.monotonic() - self.started_s
        shares = wall_clock(history, self._started_at, seconds, self.resource_plan.trials_at_once)
        ended = {
            "ended_at": timestamp(),
            "seconds": round(seconds, 3),
            "end": end,
            "overhead_share": round(shares.overhead, 4),
            "idle_share": round(shares.idle, 4),
        }
        session = manifest.sessions[-1].model_copy(update=ended)
        self.experiment.write_manifest(manifest.with_session(session, new=False))

    def _last_words(self) -> str:
        """Close the session in the manifest, release the terminal, and name the command that resumes."""
        history = self.experiment.history()
        self._close(history, "finished" if is_done(history, self.space) else "interrupted")
        self.observer.close()
        address = self.cluster.address if self.cluster else None
        more = f" --address {shell_word(address)}" if address else ""
        return f"nothing is lost. Resume with: {resume_line(self.experiment, more)}"

    @property
    def _started_at(self) -> float:
        """Time of the command, in seconds since 1970 (UTC)."""
        return time.time() - (time.monotonic() - self.started_s)


def free_session(ray_folder: Path, number: int) -> int:
    """`number`, or the next one without a folder: Ray must find no files of others in its folder."""
    while os.path.lexists(ray_folder / f"session_{number}"):
        number += 1
    return number


@contextlib.contextmanager
def _disk_in_one_line(experiment: Experiment) -> Iterator[None]:
    """Report a full disk or a removed folder in one line; Ray reports them as other errors, such as EOFError."""
    try:
        yield
    except Exception as error:
        folder, full = experiment.folder, None
        if not (folder / "journal.jsonl").exists():
            problem = "its journal was removed while the search ran. Restore the folder"
        elif (full := first_full(folder, Path(tempfile.gettempdir()))) or is_full_disk(error):
            problem = "no space left on the disk; what was trained is safe. Make room"
        else:
            raise
        again = resume_line(experiment)
        raise RunError(f"{full or folder}: {problem}, then resume with: {again}") from error
