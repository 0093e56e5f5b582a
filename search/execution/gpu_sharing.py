"""Chooses how many trials share a GPU, by training a few steps of 1, 2, 4, 8 … trials at once."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from search.processes.guarded_folder import guarded_folder
from search.processes.helper_pool import Helper, HelperPool
from spaces.counted import counted
from spaces.errors import RunError, first_line

# The smallest share within this fraction of the best throughput is chosen.
TOLERANCE = 0.05
# Measuring stops after a doubling of trials that gains less than this fraction.
WORTHWHILE_GAIN = 0.10
# Fraction of memory to use; the rest is for the driver and for other batch sizes than the measured one.
USABLE_MEMORY = 0.9

WINDOW_S = 3.0
PREPARATION_S = 300.0
PATIENCE_S = 60.0

MakeTraining = Callable[[], Callable[[], int]]


@dataclass(frozen=True, slots=True)
class Sharing:
    """Measurement of a number of trials that train on one GPU at once.

    Attributes:
        images_per_s: of all trials together.
        memory_fraction: of the GPU's memory in use, other processes included; 0 on a CPU.
    """

    n_trials: int
    images_per_s: float
    memory_fraction: float = 0.0


class DoesNotFitError(RunError):
    """This number of trials cannot train at once, most often because memory ran out."""


def choose_share(measure: Callable[[int], Sharing], max_share: int) -> tuple[int, list[Sharing]]:
    """Measure growing shares while that is worthwhile; choose the smallest one within `TOLERANCE` of the fastest.

    Args:
        measure: trains a number of trials at once; see `measure_sharing`.
        max_share: at least 1; the limit by cores, by trials and the like.

    Returns:
        The number of trials that should share a GPU, and the measurements, smallest share first.

    Raises:
        DoesNotFitError: a single trial cannot train.
    """
    measured = [measure(1)]
    while (n_trials := _next_share(measured, max_share)) is not None:
        try:
            measured.append(measure(n_trials))
        except DoesNotFitError:
            break
    fast_images_per_s = (1 - TOLERANCE) * max(sharing.images_per_s for sharing in measured)
    return min(sharing.n_trials for sharing in measured if sharing.images_per_s >= fast_images_per_s), measured


def _next_share(measured: Sequence[Sharing], max_share: int) -> int | None:
    """Twice the last share, at most `max_share`; None if it would not fit, or the last doubling gained too little."""
    last = measured[-1]
    n_trials = min(2 * last.n_trials, max_share)
    if n_trials == last.n_trials:
        return None
    if len(measured) > 1 and last.images_per_s < (1 + WORTHWHILE_GAIN) * measured[-2].images_per_s:
        return None
    # Proportional, although the memory of other processes does not grow: rather one trial too few than out of memory.
    return n_trials if last.memory_fraction * n_trials / last.n_trials <= USABLE_MEMORY else None


def measure_sharing(
    n_trials: int,
    make_training: MakeTraining,
    device: str,
    window_s: float = WINDOW_S,
    preparation_s: float = PREPARATION_S,
) -> Sharing:
    """Train `n_trials` at once on `device`, each in a process of its own, and measure their throughput together.

    No process is left when this returns, raises or is killed.

    Args:
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
        try:
            _receive_from_all(helpers, preparation_s)
            for helper in helpers:
                with contextlib.suppress(OSError):  # the process has ended, as `receive` says
                    helper.pipe.send(None)
            measured = _receive_from_all(helpers, window_s + PATIENCE_S)
        except Exception as error:  # whatever a trial raises
            trials = counted(n_trials, "trial")
            raise DoesNotFitError(f"{trials} cannot train at once on {device}: {first_line(error)}") from None
    rates, fractions = zip(*measured, strict=True)
    return Sharing(n_trials, sum(rates), max(fractions))


def _receive_from_all(helpers: Sequence[Helper], timeout_s: float) -> list[Any]:
    deadline_s = time.monotonic() + timeout_s
    return [helper.receive(deadline_s - time.monotonic()) for helper in helpers]


def _train(make_training: MakeTraining, device: str, window_s: float, pipe: Connection) -> None:
    train = make_training()
    train()  # warms up
    wait_for(device)
    pipe.send(None)
    pipe.recv()
    images_per_s = _images_per_s(train, device, window_s)
    pipe.send((images_per_s, _used_fraction(device)))
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
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def _used_fraction(device: str) -> float:
    if device == "cpu":
        return 0.0
    import torch

    free_bytes, gpu_bytes = torch.cuda.mem_get_info(device)
    return 1 - free_bytes / gpu_bytes
