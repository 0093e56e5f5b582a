"""Several full training runs of one configuration, side by side in processes of their own."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import Empty
from typing import Any

from spaces import Dataset, Hyperparameters, InputError
from spaces.errors import RunError
from trainable.allocator import ALLOCATOR_ENVIRONMENT
from trainable.compute import Compute
from trainable.environment import environment_with
from trainable.seeding import Purpose, RunSeed

POLL_S = 0.2
# What a process that failed has said of it is on its way for so long at most.
LAST_WORDS_S = 1.0


@dataclass(frozen=True, slots=True)
class FullRun:
    """One run on training and validation images together.

    Attributes:
        decoded_folder: the cached training images.
        dataset: how they are cut.
        hyperparameters: the configuration.
        experiment_seed, number: name the run's random streams, which no trial shares.
        epochs: how many.
        compute: what to compute with.
        threads: on a CPU.
        checkpoint: folder to save the trained run in.
    """

    decoded_folder: Path
    dataset: Dataset
    hyperparameters: Hyperparameters
    experiment_seed: int
    number: int
    epochs: int
    compute: Compute
    threads: int
    checkpoint: Path

    @property
    def seed(self) -> RunSeed:
        return RunSeed(self.experiment_seed, self.number, Purpose.RETRAINING)


@dataclass(frozen=True, slots=True)
class Progress:
    """An epoch of a run is done."""

    number: int
    epoch: int
    train_loss: float
    train_accuracy: float
    seconds: float


class DivergedError(RunError):
    """A run's loss left the finite numbers."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a run's process ends without a checkpoint."""

    error: Exception


def train_all(runs: list[FullRun], n_workers: int, on_progress: Callable[[Progress], None]) -> None:
    """Train all runs, `n_workers` at once, each in a process of its own; each leaves its checkpoint.

    Whatever goes wrong, also Ctrl-C, no process is left when this returns; see `guarded_folder` for `kill -9`.

    Args:
        runs: what to train.
        n_workers: processes.
        on_progress: called in this process after each epoch of each run.

    Raises:
        DivergedError: a run diverged.
        RunError: a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    waiting = [context.Process(target=_train_in_process, args=(run, queue), daemon=True) for run in runs]
    started: list[SpawnProcess] = []
    try:
        while waiting or any(process.is_alive() for process in started):
            while waiting and sum(process.is_alive() for process in started) < n_workers:
                started.append(waiting.pop(0))
                with environment_with(ALLOCATOR_ENVIRONMENT):
                    started[-1].start()
            _take_in(queue, on_progress, POLL_S)
            if any(process.exitcode for process in started):
                _take_in(queue, on_progress, LAST_WORDS_S)
                raise RunError("A training process was killed; most often memory ran out. Nothing was tested.")
        while _take_in(queue, on_progress, POLL_S):
            pass
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()
        queue.close()


def _take_in(queue: Any, on_progress: Callable[[Progress], None], for_s: float) -> bool:
    """Pass on what comes in so many seconds, however much that is; whether anything came."""
    until_s = time.monotonic() + for_s
    came = False
    while (left_s := until_s - time.monotonic()) > 0:
        try:
            message = queue.get(timeout=left_s)
        except Empty:
            break
        came = True
        if isinstance(message, _Failed):
            raise message.error
        on_progress(message)
    return came


def _train_in_process(run: FullRun, queue: Any) -> None:
    # A terminal sends Ctrl-C to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _train(run, queue)
    except (RunError, InputError, OSError) as error:
        queue.put(_Failed(error))
        queue.close()
        queue.join_thread()
        sys.exit(1)


def _train(run: FullRun, queue: Any) -> None:
    import torch

    from trainable.datasets import open_training_data
    from trainable.fit_evaluate import EpochResult, FitEvaluate

    torch.set_num_threads(run.threads)
    data = open_training_data(run.decoded_folder, run.dataset)
    fit = FitEvaluate(data.everything, None, run.hyperparameters, run.seed, run.compute)

    def report(result: EpochResult) -> None:
        queue.put(Progress(run.number, result.epoch, result.train_loss, result.train_accuracy, result.train_s))
        if result.diverged:
            raise DivergedError(
                f"Retraining {run.number} diverged in epoch {result.epoch}: its loss is not finite. Nothing was "
                f"tested. The configuration is at the edge of what trains; retrain another: --trial ID"
            )
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise RunError("The command that wanted this run is gone.")

    fit.epoch_training(run.epochs, report)
    fit.save(run.checkpoint)
