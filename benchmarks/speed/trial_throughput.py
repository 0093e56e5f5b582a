"""Training images per second of the whole machine: `python -m benchmarks.speed.trial_throughput`.

Compares the textbook loop with the project's trials, and these with variants that leave one measure out. Variants take
turns. Each measurement starts new processes, warms them up, and counts images only while all of them are busy.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from threading import BrokenBarrierError
from typing import Any, Literal

from benchmarks.speed.images import (
    VALIDATION_FRACTION,
    Images,
    add_images_argument,
    folder_settings,
    settings_of,
)
from benchmarks.speed.report import busy_warning, cores_busy, machine, number_text, print_json, progress, table_text
from benchmarks.stats import factors, medians
from search.processes.helper_pool import count_cores
from spaces import Hyperparameters, InputError, load_space
from spaces.command import CommandParser, run_command
from spaces.errors import RunError
from trainable.compute import Compute, choose_precision
from trainable.data.datasets import TrainingData
from trainable.environment import ALLOCATOR_ENVIRONMENT

TEXTBOOK = "textbook"
RECIPE = "full recipe"
N_IMAGES = 2560  # 2,048 for training
N_WARM_UP_STEPS = 5
LONGEST_START_S = 180.0  # imports, images and warm-up of all processes

Runs = dict[str, list[float]]


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


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.speed.trial_throughput",
        description="Images per second of the textbook loop and of the project's trials, all cores busy.",
        epilog="example: python -m benchmarks.speed.trial_throughput --rounds 3 --seconds 20",
    )
    add_images_argument(parser, "random pixels of CIFAR-10's shape, which take as long")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant (default: 3)")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement (default: 15)")
    return run_command(parser, _run, arguments)


def variants(n_cores: int, recipe: Compute) -> dict[str, Setup]:
    """Setups by name, in the order of the table.

    Args:
        n_cores: number of trials at once, with one thread each.
        recipe: the project's default choices; a variant that equals them is left out.
    """
    full = Setup("ours", n_cores, 1, recipe)
    textbook = Setup("textbook", 1, None, recipe, keep_memory=False)
    listed = {
        TEXTBOOK: textbook,
        "textbook, one trial a core": replace(textbook, n_processes=n_cores, n_threads=1),
        "one trial alone, 1 thread": replace(full, n_processes=1),
        RECIPE: full,
        "fp32": replace(full, compute=replace(recipe, precision="fp32")),
        "no channels_last": replace(full, compute=replace(recipe, channels_last=False)),
        "torch's own layers": replace(full, compute=replace(recipe, fused=False)),
        "no allocator settings": replace(full, keep_memory=False),
    }
    return {name: setup for name, setup in listed.items() if name == RECIPE or setup != full}


def table(listed: Mapping[str, Setup], runs: Runs) -> str:
    """One line per measured variant, with images per second and their factors."""
    middle = medians(runs)
    of_textbook, of_recipe = factors(middle, TEXTBOOK), factors(middle, RECIPE)
    rows = [
        (
            name,
            f"{setup.n_processes} x {setup.n_threads or 'default'}",
            number_text(middle[name]),
            number_text(of_textbook.get(name), 2, "x"),
            number_text(of_recipe.get(name), 2, "x"),
            " ".join(number_text(value) for value in runs[name]),
        )
        for name, setup in listed.items()
        if name in middle
    ]
    return table_text(("variant", "trials x threads", "images/s", "textbook", "full recipe", "runs"), rows)


def images_per_s(works: Sequence[Work]) -> float:
    """Images per second of all processes together, between the last start and the first end.

    A step that is partly in this window counts in part.
    """
    start_s = max(work.started_s for work in works)
    end_s = min(work.ended_s[-1] for work in works)
    n_images = 0.0
    for work in works:
        for began_s, ended_s in zip([work.started_s, *work.ended_s], work.ended_s, strict=False):
            inside_s = max(0.0, min(ended_s, end_s) - max(began_s, start_s))
            n_images += work.images_per_step * inside_s / (ended_s - began_s)
    return n_images / (end_s - start_s)


def measure(setup: Setup, images: Images, hyperparameters: Hyperparameters, seconds: float) -> float:
    """Images per second of `setup.n_processes` processes, warmed up, over at least `seconds`.

    Raises:
        RunError: a process failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(setup.n_processes)
    with _environment(setup), ProcessPoolExecutor(setup.n_processes, context, _share, (barrier,)) as pool:
        works = [pool.submit(_work, setup, images, hyperparameters, seconds) for _ in range(setup.n_processes)]
        errors = [error for work in works if (error := work.exception())]
        for error in errors:
            if not isinstance(error, BrokenBarrierError):  # which another process caused
                raise RunError(f"A measured process failed: {type(error).__name__}: {error}") from error
        return images_per_s([work.result() for work in works])


@contextmanager
def _environment(setup: Setup) -> Iterator[None]:
    """Set the environment of processes that start in the block; they read some variables at their start only."""
    before = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", *ALLOCATOR_ENVIRONMENT):
        os.environ.pop(name, None)
    if setup.n_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(setup.n_threads)
    if setup.keep_memory:
        os.environ.update(ALLOCATOR_ENVIRONMENT)
    try:
        # The textbook's loader processes leave files in their temporary folder.
        with tempfile.TemporaryDirectory(prefix="dws-benchmark-") as temporary:
            os.environ["TMPDIR"] = temporary
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _TimeUpError(Exception):
    """Ends a training epoch after any step."""


class _StepClock:
    """Records the end of each step, after a warm-up and a barrier with the other processes, until the time is up."""

    barrier: Any = None  # of the process; set by `_share`

    def __init__(self, seconds: float) -> None:
        self._n_left = N_WARM_UP_STEPS
        self._seconds = seconds
        self.started_s = 0.0
        self.ended_s: list[float] = []

    def __call__(self) -> None:
        if self._n_left > 0:
            self._n_left -= 1
            if self._n_left == 0:
                self.barrier.wait(LONGEST_START_S)
                self.started_s = time.monotonic()
            return
        self.ended_s.append(time.monotonic())
        if self.ended_s[-1] >= self.started_s + self._seconds:
            raise _TimeUpError


def _share(barrier: Any) -> None:
    _StepClock.barrier = barrier


def _work(setup: Setup, images: Images, hyperparameters: Hyperparameters, seconds: float) -> Work:
    import torch

    try:
        if setup.n_threads is not None:
            torch.set_num_threads(setup.n_threads)
        clock, data = _StepClock(seconds), images.open()
        train_epoch, n_steps = _loop(setup, data, hyperparameters, clock)
        try:
            while True:
                train_epoch()
        except _TimeUpError:
            return Work(clock.started_s, clock.ended_s, len(data.train) / n_steps)
    except Exception:
        _StepClock.barrier.abort()
        raise


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


def _run(options: argparse.Namespace) -> int:
    if options.rounds < 1 or options.seconds <= 0:
        raise InputError("--rounds must be at least 1, and --seconds more than 0.")
    precision, reason = choose_precision("auto", "cpu")
    listed = variants(count_cores(), Compute(precision=precision))
    facts = machine()
    progress(f"{len(listed)} variants, {options.rounds} rounds of {options.seconds:g} s; {precision}: {reason}")
    runs, busy = _measure_all(listed, options)
    print(table(listed, runs))
    middle = medians(runs)
    print_json(
        {
            "benchmark": "trial_throughput",
            "images_per_s": {name: {"median": middle[name], "runs": several} for name, several in runs.items()},
            "ratio": factors(middle, TEXTBOOK).get(RECIPE),
            "cores_busy_before": busy,
            "setups": {name: asdict(setup) for name, setup in listed.items()},
            "settings": {**settings_of(options), "precision": precision, "precision_reason": reason},
            "machine": facts,
        }
    )
    return 0


def _measure_all(listed: Mapping[str, Setup], options: argparse.Namespace) -> tuple[Runs, Runs]:
    """Images per second of all runs by variant, and the number of busy cores before each run."""
    hyperparameters, images = _images(options)
    runs: Runs = {name: [] for name in listed}
    busy: Runs = {name: [] for name in listed}
    for round_number in range(1, options.rounds + 1):
        for name, setup in listed.items():
            busy[name].append(cores_busy())
            runs[name].append(measure(setup, images, hyperparameters, options.seconds))
            remark = busy_warning(busy[name][-1])
            progress(f"round {round_number}: {name}: {runs[name][-1]:,.0f} images/s{remark}")
    return runs, busy


def _images(options: argparse.Namespace) -> tuple[Hyperparameters, Images]:
    if options.images is None:
        space = load_space("cifar10", (f"dataset.validation_fraction={VALIDATION_FRACTION}",))
        return space.baseline, Images(space.dataset, N_IMAGES)
    space = load_space("cifar10", folder_settings(options.images, N_IMAGES))
    images = Images(space.dataset, None)
    images.open()  # decodes the images before any measurement
    return space.baseline, images


if __name__ == "__main__":
    sys.exit(main())
