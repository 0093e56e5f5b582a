"""How many trials share a GPU. Without torch, because helper processes import this file."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from search.execution.gpu_sharing import DoesNotFitError, Sharing, choose_share, measure_sharing
from search.processes import guardian

GROWING = {n: 100.0 * n for n in (1, 2, 4, 6, 8)}


@pytest.mark.parametrize(
    ("images_per_s", "max_share", "trial_fraction", "most", "tried", "chosen"),
    [
        ({1: 100, 2: 104}, 64, 0, 99, [1, 2], 1),
        ({1: 100, 2: 106}, 64, 0, 99, [1, 2], 2),
        ({1: 100, 2: 90}, 64, 0, 99, [1, 2], 1),
        ({1: 100, 2: 180, 4: 200, 8: 205}, 64, 0, 99, [1, 2, 4, 8], 4),
        ({1: 100, 2: 190, 4: 300, 8: 320, 16: 1000}, 64, 0, 99, [1, 2, 4, 8], 8),
        (GROWING, 6, 0, 99, [1, 2, 4, 6], 6),
        (GROWING, 1, 0, 99, [1], 1),
        (GROWING, 64, 0.125, 99, [1, 2, 4], 4),  # 8 would fill the memory
        (GROWING, 64, 0, 2, [1, 2, 4], 2),  # 4 ran out of memory
    ],
)
def test_the_smallest_share_within_5_percent_of_the_best_is_chosen_while_doubling_gains_10_percent(
    images_per_s: dict[int, float], max_share: int, trial_fraction: float, most: int, tried: list[int], chosen: int
) -> None:
    asked = []

    def measure(n_trials: int) -> Sharing:
        asked.append(n_trials)
        if n_trials > most:
            raise DoesNotFitError("out of memory")
        return Sharing(n_trials, images_per_s[n_trials], trial_fraction * n_trials)

    share, measured = choose_share(measure, max_share)
    assert (share, asked) == (chosen, tried)
    assert [sharing.n_trials for sharing in measured] == [n for n in tried if n <= most]


def test_a_single_trial_that_does_not_fit_is_an_error() -> None:
    def measure(n_trials: int) -> Sharing:
        raise DoesNotFitError("out of memory")

    with pytest.raises(DoesNotFitError, match="out of memory"):
        choose_share(measure, max_share=4)


def sleepy_step(step_s: float, n_images: int) -> Callable[[], int]:
    assert guardian.MARK in os.environ, "it would outlive a command that is killed"

    def step() -> int:
        time.sleep(step_s)
        return n_images

    return step


def step_of_one_that(fate: str, claims: Path) -> Callable[[], int]:
    """The first process to make a claim meets its fate, the others train."""
    try:
        claims.mkdir()
    except FileExistsError:
        return sleepy_step(0.001, 10)
    if fate == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "fails":
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB.")
    time.sleep(600)
    raise AssertionError


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def test_two_processes_train_at_once_and_their_rates_add_up() -> None:
    found = measure_sharing(2, partial(sleepy_step, 0.01, 10), "cpu", window_s=0.3)
    # 100 steps per second each, less what a sleep oversleeps: more than one process can do.
    assert 1000 < found.images_per_s <= 2000
    assert (found.n_trials, found.memory_fraction) == (2, 0)


@pytest.mark.parametrize(
    ("fate", "message"),
    [
        ("is killed", "2 trials cannot train at once on cpu: .*most often memory ran out"),
        ("fails", "2 trials cannot train at once on cpu: CUDA out of memory.$"),
        ("hangs", "sent nothing within"),
    ],
)
def test_a_process_that_does_not_make_it_means_that_so_many_do_not_fit(fate: str, message: str, tmp_path: Path) -> None:
    preparation_s = 2 if fate == "hangs" else 120
    make_training = partial(step_of_one_that, fate, tmp_path / "claimed")
    with pytest.raises(DoesNotFitError, match=message):
        measure_sharing(2, make_training, "cpu", window_s=2, preparation_s=preparation_s)


def test_an_interrupt_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.execution.gpu_sharing._receive_from_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_sharing(1, partial(sleepy_step, 0.01, 10), "cpu")
