"""Chooses how many trials share a GPU, by training a few steps of 1, 2, 4, 8 … trials at once."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from search.processes.guarded_folder import guarded_folder
from search.processes.helper_pool import Helper, HelperLostError, HelperPool
from spaces.errors import RunError

# The smallest share within this fraction of the best throughput is chosen.
TOLERANCE = 0.05
# Measuring stops after a doubling of trials that gains less than this fraction.
WORTHWHILE_GAIN = 0.10
# Fraction of memory to use; the rest is for the driver and for other batch sizes than the measured one.
USABLE_MEMORY = 0.9

PREPARATION_S = 300.0
PATIENCE_S = 60.0

MakeTraining = Callable[[], Callable[[], int]]


@dataclass(frozen=True, slots=True)
class Sharing:
    """Measurement of a number of trials that train on one GPU at once.

    Attributes:
        n_trials: number of trials.
        images_per_s: of all trials together.
        peak_bytes: maximum of the GPU's memory in use, other processes included; 0 on a CPU.
        memory_bytes: memory of the GPU; 0 on a CPU.
    """

    n_trials: int
    images_per_s: float
    peak_bytes: int
    memory_bytes: int


class DoesNotFitError(RunError):
    """This number of trials cannot train at once, most often because memory ran out."""


def choose_share(measure: Callable[[int], Sharing], max_share: int) -> tuple[int, list[Sharing]]:
    """Measure growing shares while that is worthwhile, and choose one.

    Args:
        measure: trains a number of trials at once; see `measure_sharing`.
        max_share: at least 1; the limit by cores, by trials and the like.

    Returns:
        The number of trials that should share a GPU, and the measurements, smallest share first.

    Raises:
        DoesNotFitError: a single trial cannot train.
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
    """The smallest number of trials whose throughput is within `tolerance` (a fraction) of the best.

    Raises:
        ValueError: nothing was measured.
    """
    best_images_per_s = max(sharing.images_per_s for sharing in measured)
    good = [sharing.n_trials for sharing in measured if sharing.images_per_s >= (1 - tolerance) * best_images_per_s]
    return min(good)


def next_share(measured: Sequence[Sharing], max_share: int) -> int | None:
    """The number of trials to measure next: twice the last, at most `max_share`.

    Args:
        measured: not empty, smallest share first.
        max_share: at least 1.

    Returns:
        None where more trials would not fit, or the last doubling gained too little.
    """
    last = measured[-1]
    n_trials = min(2 * last.n_trials, max_share)
    if n_trials <= last.n_trials:
        return None
    if len(measured) > 1 and last.images_per_s < (1 + WORTHWHILE_GAIN) * measured[-2].images_per_s:
        return None
    # Proportional, although the memory of other processes does not grow: rather one trial too few than out of memory.
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
    """Train `n_trials` at once on `device`, each in a process of its own, and measure their throughput together.

    No process is left when this returns, raises or is killed.

    Args:
        n_trials: number of trials.
        make_training: builds a trial in its process and returns a function; each call of that function trains some
            steps and returns the number of their images. Picklable: a function of a module, or a
            `functools.partial` of one.
        device: `cpu`, `cuda` or `cuda:N`, which `make_training` uses as well.
        window_s: seconds to measure, after all trials are ready.
        preparation_s: seconds in which all trials must be ready.

    Raises:
        DoesNotFitError: a process failed, was killed or was not ready in time.
    """
    with guarded_folder(), HelperPool() as pool:
        helpers = [pool.start(partial(_train, make_training, device, window_s)) for _ in range(n_trials)]
        _receive_from_all(helpers, preparation_s)
        with _errors_of_trials():
            for helper in helpers:
                helper.send(None)
        rates = _receive_from_all(helpers, window_s + PATIENCE_S)
    return _together(rates)


@dataclass(frozen=True, slots=True)
class _Rate:
    """Measurement of one trial. Bytes: reserved by its allocator now and at most; used and present on the whole GPU."""

    images_per_s: float
    reserved_bytes: int
    peak_reserved_bytes: int
    gpu_used_bytes: int
    gpu_bytes: int


def _receive_from_all(helpers: Sequence[Helper], timeout_s: float) -> list[Any]:
    deadline_s = time.monotonic() + timeout_s
    with _errors_of_trials():
        return [helper.receive(deadline_s - time.monotonic()) for helper in helpers]


@contextlib.contextmanager
def _errors_of_trials() -> Iterator[None]:
    try:
        yield
    except HelperLostError:
        raise DoesNotFitError("A trial's process was killed; most often memory ran out.") from None
    except TimeoutError:
        raise DoesNotFitError("A trial was not ready in time.") from None
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DoesNotFitError(f"A trial could not train on its share of the device: {first_line}") from None


def _together(rates: Sequence[_Rate]) -> Sharing:
    reserved_bytes = sum(rate.reserved_bytes for rate in rates)
    # Memory outside our allocators: contexts, libraries, other processes.
    other_bytes = max(0, max(rate.gpu_used_bytes for rate in rates) - reserved_bytes)
    return Sharing(
        n_trials=len(rates),
        images_per_s=sum(rate.images_per_s for rate in rates),
        peak_bytes=other_bytes + sum(rate.peak_reserved_bytes for rate in rates),
        memory_bytes=max(rate.gpu_bytes for rate in rates),
    )


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
    # Keep the memory until every trial has measured the memory in use.
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
    """Wait until a GPU has finished its queued work; returns at once for a CPU."""
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
