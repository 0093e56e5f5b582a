"""Training images per second of several processes, in the time window in which all of them are busy."""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from queue import Empty
from threading import BrokenBarrierError
from typing import Any, Literal

from benchmarks.speed.images import Images
from spaces import Hyperparameters
from spaces.errors import RunError
from trainable.compute import Compute
from trainable.data.datasets import TrainingData
from trainable.environment import ALLOCATOR_ENVIRONMENT

N_WARM_UP_STEPS = 5
# Longest time for imports, images and warm-up of all processes.
LONGEST_START_S = 180.0


@dataclass(frozen=True, slots=True)
class Setup:
    """Setup of one variant.

    Attributes:
        loop: the project's training loop or the textbook's.
        n_processes: number of processes at the same time, each with its own trial.
        n_threads: torch threads of each process; None for torch's default.
        compute: choices of the project's loop.
        keep_memory: whether processes start with `ALLOCATOR_ENVIRONMENT`.
    """

    loop: Literal["ours", "textbook"]
    n_processes: int
    n_threads: int | None
    compute: Compute
    keep_memory: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """Time stamps of one process, on the machine's monotonic clock.

    Attributes:
        started_s: time at which all processes were warm.
        ended_s: end of each training step.
        images_per_step: mean number of images of a step.
    """

    started_s: float
    ended_s: Sequence[float]
    images_per_step: float


def images_per_s(works: Sequence[Work]) -> float:
    """Images per second of all processes together, between the last start and the first end.

    A step that is partly in this window counts in part.
    """
    start_s = max(work.started_s for work in works)
    end_s = min(work.ended_s[-1] for work in works)
    return sum(_steps_between(work, start_s, end_s) * work.images_per_step for work in works) / (end_s - start_s)


def measure(setup: Setup, images: Images, hyperparameters: Hyperparameters, seconds: float) -> float:
    """Images per second of `setup.n_processes` processes, warmed up, over at least `seconds`.

    Raises:
        RunError: a process failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(setup.n_processes)
    queue = context.Queue()
    arguments = (setup, images, hyperparameters, seconds, barrier, queue)
    processes: list[SpawnProcess] = []
    # Files that the textbook's loader processes leave behind are removed with the folder.
    temporary = tempfile.TemporaryDirectory(prefix="dws-benchmark-")
    try:
        with _environment(setup, temporary.name):
            for _ in range(setup.n_processes):
                # Daemons could not start the textbook's loader processes.
                processes.append(context.Process(target=_work, args=arguments))
                processes[-1].start()
        return images_per_s([_next(queue, processes) for _ in processes])
    finally:
        barrier.abort()
        for process in processes:
            process.join(timeout=10)
            process.kill()
        temporary.cleanup()


class _TimeUpError(Exception):
    """Ends a training epoch after any step."""


class _StepClock:
    """Records the end of each step, after a warm-up and a barrier with the other processes, until the time is up."""

    def __init__(self, n_warm_up: int, seconds: float, barrier: Any) -> None:
        self._n_left = n_warm_up
        self._seconds = seconds
        self._barrier = barrier
        self.started_s = 0.0
        self.ended_s: list[float] = []

    def __call__(self) -> None:
        if self._n_left > 0:
            self._n_left -= 1
            if self._n_left == 0:
                self._barrier.wait(LONGEST_START_S)
                self.started_s = time.monotonic()
            return
        self.ended_s.append(time.monotonic())
        if self.ended_s[-1] >= self.started_s + self._seconds:
            raise _TimeUpError


def _steps_between(work: Work, start_s: float, end_s: float) -> float:
    total, began_s = 0.0, work.started_s
    for ended_s in work.ended_s:
        inside_s = min(ended_s, end_s) - max(began_s, start_s)
        total += max(0.0, inside_s) / (ended_s - began_s)
        began_s = ended_s
    return total


def _next(queue: Any, processes: Sequence[SpawnProcess]) -> Work:
    while True:
        try:
            message = queue.get(timeout=1.0)
        except Empty:
            if any(process.exitcode for process in processes) or not any(map(SpawnProcess.is_alive, processes)):
                raise RunError("A measured process was killed or did not start; most often memory ran out.") from None
            continue
        if isinstance(message, str):
            raise RunError(f"A measured process failed:\n{message}")
        assert isinstance(message, Work)
        return message


def _work(
    setup: Setup, images: Images, hyperparameters: Hyperparameters, seconds: float, barrier: Any, queue: Any
) -> None:
    import torch

    try:
        if setup.n_threads is not None:
            torch.set_num_threads(setup.n_threads)
        clock = _StepClock(N_WARM_UP_STEPS, seconds, barrier)
        data = images.open()
        train_epoch, n_steps = _loop(setup, data, hyperparameters, clock)
        try:
            while True:
                train_epoch()
        except _TimeUpError:
            queue.put(Work(clock.started_s, clock.ended_s, len(data.train) / n_steps))
    except BrokenBarrierError:
        sys.exit(1)  # another process failed and reports the reason
    except Exception:
        queue.put(traceback.format_exc())
        barrier.abort()


def _loop(
    setup: Setup, data: TrainingData, hyperparameters: Hyperparameters, clock: _StepClock
) -> tuple[Callable[[], object], int]:
    """A function that trains for one epoch, and the number of its steps."""
    if setup.loop == "textbook":
        from benchmarks.speed.textbook import TextbookImages, TextbookTraining

        training = TextbookTraining(TextbookImages.of(data), hyperparameters)
        return lambda: training.train_epoch(clock), len(training.train_loader)
    from trainable.fit_evaluate import FitEvaluate
    from trainable.seeding import RunSeed

    run = FitEvaluate(data.train, data.validation, hyperparameters, RunSeed(0, os.getpid()), setup.compute)
    return lambda: run.train(clock), run.steps_per_epoch


@contextmanager
def _environment(setup: Setup, temporary: str) -> Iterator[None]:
    """Set the environment of processes that start in the block; they read some variables at their start only."""
    before = dict(os.environ)
    unset = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", *ALLOCATOR_ENVIRONMENT}
    for name in unset:
        os.environ.pop(name, None)
    os.environ.update(_variables(setup), TMPDIR=temporary)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _variables(setup: Setup) -> Mapping[str, str]:
    threads = {} if setup.n_threads is None else {"OMP_NUM_THREADS": str(setup.n_threads)}
    return {**threads, **(ALLOCATOR_ENVIRONMENT if setup.keep_memory else {})}
