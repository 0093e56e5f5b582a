"""How many trials share a GPU: measured, by training a few steps of 1, 2, 4, 8 … of them at once."""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from search.processes.guarded_folder import guarded_folder
from spaces.errors import RunError, first_line

# A share that is this close to the best one's throughput is as good, and smaller.
TOLERANCE = 0.05
# Twice as many trials that are faster together by less than this are the last ones tried.
WORTHWHILE_GAIN = 0.10
# What stays free: the driver's own needs, and batches of other sizes than the measured ones.
USABLE_MEMORY = 0.9

PREPARATION_S = 300.0
PATIENCE_S = 60.0

MakeTraining = Callable[[], Callable[[], int]]


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a number of trials does on one GPU at once.

    Attributes:
        n_trials: how many.
        images_per_s: trained on by all of them together.
        peak_bytes: of the GPU's memory in use at most, by whatever else runs there too; 0 on a CPU.
        memory_bytes: that the GPU has; 0 on a CPU.
    """

    n_trials: int
    images_per_s: float
    peak_bytes: int
    memory_bytes: int


class DoesNotFitError(RunError):
    """So many trials cannot train at once; most often memory ran out."""


def choose_share(measure: Callable[[int], Sharing], max_share: int) -> tuple[int, list[Sharing]]:
    """Measure ever larger shares as long as that is worthwhile, and choose one.

    Args:
        measure: trains so many trials at once; see `measure_sharing`.
        max_share: at least 1: cores, trials, or what else limits how many run at once.

    Returns:
        How many trials should share a GPU, and what was measured, smallest first.

    Raises:
        DoesNotFitError: not even one trial trains.
    """
    measured: list[Sharing] = []
    n_trials: int | None = 1
    while n_trials is not None:
        try:
            measured.append(measure(n_trials))
        except DoesNotFitError:
            if not measured:
                raise
            break
        n_trials = next_share(measured, max_share)
    return best_share(measured), measured


def best_share(measured: Sequence[Sharing], tolerance: float = TOLERANCE) -> int:
    """The smallest number of trials whose throughput is within `tolerance` (a fraction) of the best one's.

    Raises:
        ValueError: nothing was measured.
    """
    best_images_per_s = max(sharing.images_per_s for sharing in measured)
    good = [sharing.n_trials for sharing in measured if sharing.images_per_s >= (1 - tolerance) * best_images_per_s]
    return min(good)


def next_share(measured: Sequence[Sharing], max_share: int) -> int | None:
    """How many trials to measure after `measured`, smallest first and not empty; None: more are not worthwhile.

    Twice as many, at most `max_share`, unless they would not fit or the last doubling gained too little.
    """
    last = measured[-1]
    n_trials = min(2 * last.n_trials, max_share)
    if n_trials <= last.n_trials:
        return None
    if len(measured) > 1 and last.images_per_s < (1 + WORTHWHILE_GAIN) * measured[-2].images_per_s:
        return None
    # In proportion, although what else is on the GPU does not grow: rather one trial too few than out of memory.
    needed_bytes = last.peak_bytes * n_trials / last.n_trials
    if last.memory_bytes and needed_bytes > USABLE_MEMORY * last.memory_bytes:
        return None
    return n_trials


def measure_sharing(
    n_trials: int,
    make_training: MakeTraining,
    device: str,
    window_s: float = 3.0,
    preparation_s: float = PREPARATION_S,
) -> Sharing:
    """Train `n_trials` at once on `device`, each in a process of its own, and see what they do together.

    Whatever goes wrong, no process is left when this returns, or is killed.

    Args:
        n_trials: how many.
        make_training: builds a trial in its process; each call of what it returns trains some steps and returns the
            number of their images. Picklable: a function of a module, or a `functools.partial` of one.
        device: `cpu`, `cuda` or `cuda:N`, which `make_training` uses as well.
        window_s: seconds that are measured, after all are ready.
        preparation_s: seconds in which all must be ready.

    Raises:
        DoesNotFitError: a process failed, was killed or was not ready in time.
    """
    workers: list[_Worker] = []
    with guarded_folder(), contextlib.ExitStack() as stack:
        stack.callback(_end, workers)
        for _ in range(n_trials):
            workers.append(_start(make_training, device, window_s))
        _receive_from_all(workers, preparation_s)
        for worker in workers:
            worker.send_start()
        rates = _receive_from_all(workers, window_s + PATIENCE_S)
    return _together(rates)


@dataclass(frozen=True, slots=True)
class _Rate:
    """One trial's part. Bytes: reserved by its allocator now and at most; and on the whole GPU, used and there."""

    images_per_s: float
    reserved_bytes: int
    peak_reserved_bytes: int
    gpu_used_bytes: int
    gpu_bytes: int


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a trial cannot train."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Worker:
    """A trial's process, and this side of the pipe to it: a pipe ends with its process, as no lock or queue does."""

    process: BaseProcess
    pipe: Connection

    def receive(self, timeout_s: float) -> Any:
        try:
            if not self.pipe.poll(max(timeout_s, 0)):
                raise DoesNotFitError("A trial was not ready in time.")
            message = self.pipe.recv()
        except (EOFError, OSError):
            raise DoesNotFitError("A trial's process was killed; most often memory ran out.") from None
        if isinstance(message, _Failed):
            raise DoesNotFitError(f"A trial could not train on its share of the device: {message.reason}")
        return message

    def send_start(self) -> None:
        try:
            self.pipe.send(None)
        except OSError:
            raise DoesNotFitError("A trial's process was killed; most often memory ran out.") from None


def _start(make_training: MakeTraining, device: str, window_s: float) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_train_in_process, args=(make_training, device, window_s, theirs), daemon=True)
    process.start()
    # Or the pipe would not end with the process.
    theirs.close()
    return _Worker(process, ours)


def _receive_from_all(workers: Sequence[_Worker], timeout_s: float) -> list[Any]:
    deadline_s = time.monotonic() + timeout_s
    return [worker.receive(deadline_s - time.monotonic()) for worker in workers]


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(timeout=PATIENCE_S)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _together(rates: Sequence[_Rate]) -> Sharing:
    reserved_bytes = sum(rate.reserved_bytes for rate in rates)
    # Contexts, libraries and whoever else is there: what no allocator of ours knows of.
    other_bytes = max(0, max(rate.gpu_used_bytes for rate in rates) - reserved_bytes)
    return Sharing(
        n_trials=len(rates),
        images_per_s=sum(rate.images_per_s for rate in rates),
        peak_bytes=other_bytes + sum(rate.peak_reserved_bytes for rate in rates),
        memory_bytes=max(rate.gpu_bytes for rate in rates),
    )


def _train_in_process(make_training: MakeTraining, device: str, window_s: float, pipe: Connection) -> None:
    # A terminal sends Ctrl-C to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _train(make_training, device, window_s, pipe)
    except (EOFError, BrokenPipeError):
        return  # the process that wanted to know is gone
    except Exception as error:
        pipe.send(_Failed(first_line(error)))


def _train(make_training: MakeTraining, device: str, window_s: float, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    train = make_training()
    train()  # warms up
    wait_for(device)
    pipe.send(None)
    pipe.recv()
    images_per_s = _images_per_s(train, device, window_s)
    pipe.send(_Rate(images_per_s, *_memory_bytes(device)))
    # Memory is kept until all have looked at how much is in use.
    pipe.recv()


def _images_per_s(train: Callable[[], int], device: str, window_s: float) -> float:
    started_s = time.perf_counter()
    n_images, elapsed_s = 0, 0.0
    while elapsed_s < window_s:
        n_images += train()
        wait_for(device)
        elapsed_s = time.perf_counter() - started_s
    return n_images / elapsed_s


def wait_for(device: str) -> None:
    """Wait until a GPU has done what it was given; a CPU is not waited for."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _memory_bytes(device: str) -> tuple[int, int, int, int]:
    import torch

    if torch.device(device).type != "cuda":
        return 0, 0, 0, 0
    free_bytes, gpu_bytes = torch.cuda.mem_get_info(device)
    reserved_bytes = torch.cuda.memory_reserved(device)
    return reserved_bytes, torch.cuda.max_memory_reserved(device), gpu_bytes - free_bytes, gpu_bytes
