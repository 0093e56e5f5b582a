"""Images per second of several processes that work at the same time, in a window in which all of them are busy."""

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from queue import Empty
from threading import BrokenBarrierError
from typing import Any, Literal

from benchmarks.speed.images import Images
from spaces import Hyperparameters
from spaces.errors import RunError
from trainable.allocator import ALLOCATOR_ENVIRONMENT
from trainable.compute import Compute

N_WARM_UP_STEPS = 5
N_WARM_UP_EVALUATIONS = 1
# A process imports torch, opens its images and warms up before it works, and waits for the slowest.
LONGEST_START_S = 180.0


@dataclass(frozen=True, slots=True)
class Setup:
    """How one variant works.

    Attributes:
        work: training steps, or evaluations of the validation images.
        loop: the project's, or the textbook's.
        n_processes: at the same time, each a trial of its own.
        n_threads: of torch in each process; None leaves torch's default.
        compute: of the project's loop.
        keep_memory: whether processes start with `ALLOCATOR_ENVIRONMENT`.
        augmented: whether images are augmented; without, it is a bound and not a recipe.
    """

    work: Literal["train", "evaluate"]
    loop: Literal["ours", "textbook"]
    n_processes: int
    n_threads: int | None
    compute: Compute
    keep_memory: bool = True
    augmented: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """What one process did.

    Attributes:
        started_s: when all processes were warm, on the machine's monotonic clock.
        ended_s: when each step (or evaluation) was done.
        images_per_step: how many images each stands for.
    """

    started_s: float
    ended_s: Sequence[float]
    images_per_step: float


def images_per_s(works: Sequence[Work]) -> float:
    """Images per second of all processes together, from the last one's start to the first one's end.

    A step that is only partly in that window counts for that part.
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
    # What the textbook's loader processes leave behind goes with the folder.
    temporary = tempfile.TemporaryDirectory(prefix="dws-benchmark-")
    try:
        with _environment(setup, temporary.name):
            for _ in range(setup.n_processes):
                # Not daemons: those may not start the textbook's loader processes.
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
    """Ends a training epoch in its middle."""


class _StepClock:
    """Warms up, waits for the other processes, and notes when each step ends until the time is up."""

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
        n_warm_up = N_WARM_UP_STEPS if setup.work == "train" else N_WARM_UP_EVALUATIONS
        clock = _StepClock(n_warm_up, seconds, barrier)
        repeat, images_per_step = _loop(setup, images, hyperparameters, clock)
        try:
            while True:
                repeat()
        except _TimeUpError:
            queue.put(Work(clock.started_s, clock.ended_s, images_per_step))
    except BrokenBarrierError:
        sys.exit(1)  # another process failed, and says why
    except Exception:
        queue.put(traceback.format_exc())
        barrier.abort()


def _loop(
    setup: Setup, images: Images, hyperparameters: Hyperparameters, clock: _StepClock
) -> tuple[Callable[[], None], float]:
    """What is done again and again, and how many images one call of the clock stands for."""
    if not setup.augmented:
        hyperparameters = replace(hyperparameters, flip_p=0.0, shift_scale_rotate_p=0.0, coarse_dropout_p=0.0)
    data = images.open()
    build = _our_loop if setup.loop == "ours" else _textbook_loop
    train, evaluate, n_steps = build(setup, data, hyperparameters, clock)
    if setup.work == "train":
        return train, len(data.train) / n_steps

    def evaluate_and_note() -> None:
        evaluate()
        clock()

    return evaluate_and_note, float(len(data.validation))


def _our_loop(setup: Setup, data: Any, hyperparameters: Hyperparameters, clock: _StepClock) -> tuple[Any, Any, int]:
    from trainable.fit_evaluate import FitEvaluate
    from trainable.seeding import RunSeed

    run = FitEvaluate(data.train, data.validation, hyperparameters, RunSeed(0, os.getpid()), setup.compute)
    return lambda: run.train(clock), lambda: run.test(data.validation), run.steps_per_epoch


def _textbook_loop(
    setup: Setup, data: Any, hyperparameters: Hyperparameters, clock: _StepClock
) -> tuple[Any, Any, int]:
    from benchmarks.speed.textbook import TextbookImages, TextbookTraining

    training = TextbookTraining(TextbookImages.of(data), hyperparameters)
    return lambda: training.train_epoch(clock), training.evaluate, len(training.train_loader)


@contextmanager
def _environment(setup: Setup, temporary: str) -> Iterator[None]:
    """What processes that are started now inherit; some of it is read only when a process starts."""
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
