"""Several full training runs of one configuration, side by side in processes of their own."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

from spaces import Dataset, Hyperparameters
from trainable.seeding import Purpose, RunSeed

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class FullRun:
    """One run on training and validation images together.

    Attributes:
        decoded_folder: the cached training images.
        dataset: how they are cut.
        hyperparameters: the configuration.
        experiment_seed, number: name the run's random streams, which no trial shares.
        epochs: how many.
        device: `cpu` or `cuda`.
        threads: on a CPU.
        checkpoint: folder to save the trained run in.
    """

    decoded_folder: Path
    dataset: Dataset
    hyperparameters: Hyperparameters
    experiment_seed: int
    number: int
    epochs: int
    device: str
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


class DivergedError(RuntimeError):
    """A run's loss left the finite numbers."""


_queue: "Queue[Progress] | None" = None


def train_all(runs: list[FullRun], n_workers: int, on_progress: Callable[[Progress], None]) -> None:
    """Train all runs, `n_workers` at once; each leaves its checkpoint.

    Args:
        runs: what to train.
        n_workers: processes.
        on_progress: called in this process after each epoch of each run.

    Raises:
        DivergedError: a run diverged.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    # Workers read this when they import torch; each run then sets its own number of threads.
    os.environ.setdefault("OMP_NUM_THREADS", str(runs[0].threads))
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_receive_queue, initargs=(queue,))
    try:
        futures = [pool.submit(_train, run) for run in runs]
        _follow(futures, queue, on_progress)
    except BrokenProcessPool:
        raise MemoryError("a training process was killed; most often memory ran out") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        queue.close()


def _follow(futures: list[Future[None]], queue: Any, on_progress: Callable[[Progress], None]) -> None:
    while True:
        all_done = all(future.done() for future in futures)
        try:
            while True:
                on_progress(queue.get(timeout=POLL_S))
        except Empty:
            pass
        for future in futures:
            if future.done():
                future.result()
        if all_done:
            return


def _receive_queue(queue: Any) -> None:
    global _queue
    _queue = queue


def _train(run: FullRun) -> None:
    import torch

    from trainable.datasets import open_training_data
    from trainable.fit_evaluate import EpochResult, FitEvaluate

    torch.set_num_threads(run.threads)
    data = open_training_data(run.decoded_folder, run.dataset)
    fit = FitEvaluate(data.everything, None, run.hyperparameters, run.seed, run.device)

    def report(result: EpochResult) -> None:
        assert _queue is not None
        _queue.put(Progress(run.number, result.epoch, result.train_loss, result.train_accuracy, result.train_s))
        if result.diverged:
            raise DivergedError(
                f"retraining {run.number} diverged in epoch {result.epoch}: its loss is not finite. "
                f"The configuration is at the edge of what trains; retrain another: --trial ID"
            )

    fit.epoch_training(run.epochs, report)
    fit.save(run.checkpoint)
