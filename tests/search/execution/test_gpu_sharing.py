import multiprocessing
import os
import signal
import time
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from search.analysis.plan_cost import plan_cost
from search.execution import plan
from search.execution.gpu_sharing import (
    DoesNotFitError,
    MakeTraining,
    Sharing,
    _Rate,
    _together,
    best_share,
    choose_share,
    measure_sharing,
)
from search.processes import guardian
from search.terminal.plan_text import plan_text
from spaces import Dataset, Hyperparameters, Space
from spaces.errors import RunError
from trainable.compute import Compute
from trainable.data.datasets import prepare_training_data

GB = 10**9


def shares(*images_per_s: float) -> list[Sharing]:
    """Of 1, 2, 4 … trials."""
    return [Sharing(2**k, rate, 0, 0) for k, rate in enumerate(images_per_s)]


class Gpu:
    """A GPU on which each trial takes `trial_bytes`, and n of them train at `rates[n]` images per second."""

    def __init__(self, rates: dict[int, float], trial_bytes: int = 0, memory_bytes: int = 0, most: int = 99) -> None:
        self.rates, self.trial_bytes, self.memory_bytes, self.most = rates, trial_bytes, memory_bytes, most
        self.tried: list[int] = []

    def __call__(self, n_trials: int) -> Sharing:
        self.tried.append(n_trials)
        if n_trials > self.most:
            raise DoesNotFitError("out of memory")
        return Sharing(n_trials, self.rates[n_trials], n_trials * self.trial_bytes, self.memory_bytes)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (shares(100), 1),
        (shares(100, 104), 1),
        (shares(100, 106), 2),
        (shares(100, 180, 200, 205), 4),
        (shares(100, 90, 80), 1),
        (shares(100, 190, 195, 201), 4),
    ],
)
def test_the_smallest_share_within_5_percent_of_the_best_throughput_is_chosen(
    measured: list[Sharing], expected: int
) -> None:
    assert best_share(measured) == expected
    assert best_share(measured[::-1]) == expected


def test_a_tolerance_of_0_takes_the_fastest() -> None:
    assert best_share(shares(100, 101, 102), tolerance=0) == 4


def test_doubling_goes_on_while_it_gains_10_percent() -> None:
    gpu = Gpu({1: 100, 2: 190, 4: 300, 8: 320, 16: 1000})
    share, measured = choose_share(gpu, max_share=64)
    assert gpu.tried == [1, 2, 4, 8]
    assert share == 8
    assert [sharing.n_trials for sharing in measured] == gpu.tried


def test_no_more_than_the_largest_share_is_tried_and_that_one_is() -> None:
    gpu = Gpu({1: 100, 2: 200, 4: 400, 6: 600})
    assert choose_share(gpu, max_share=6)[0] == 6
    assert gpu.tried == [1, 2, 4, 6]
    assert choose_share(Gpu({1: 100}), max_share=1)[0] == 1


def test_a_share_that_would_fill_the_memory_is_not_tried() -> None:
    gpu = Gpu({n: 100 * n for n in (1, 2, 4, 8)}, trial_bytes=2 * GB, memory_bytes=16 * GB)
    assert choose_share(gpu, max_share=64)[0] == 4
    assert gpu.tried == [1, 2, 4]


def test_a_share_that_does_not_fit_ends_the_search_with_what_does() -> None:
    gpu = Gpu({n: 100 * n for n in (1, 2, 4)}, most=2)
    assert choose_share(gpu, max_share=64)[0] == 2
    assert gpu.tried == [1, 2, 4]


def test_a_single_trial_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(RunError, match="out of memory"):
        choose_share(Gpu({}, most=0), max_share=4)


def test_peak_memory_is_what_allocators_took_at_most_and_everything_else_in_use() -> None:
    rates = [_Rate(10.0, 2 * GB, 3 * GB, 9 * GB, 80 * GB), _Rate(12.0, 2 * GB, 2 * GB, 10 * GB, 80 * GB)]
    assert _together(rates) == Sharing(2, 22.0, 11 * GB, 80 * GB)


def sleepy_step(step_s: float, n_images: int) -> Callable[[], int]:
    assert guardian.MARK in os.environ, "it would outlive a command that is killed"

    def step() -> int:
        time.sleep(step_s)
        return n_images

    return step


def training_step() -> Callable[[], int]:
    layer = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)

    def step() -> int:
        optimizer.zero_grad()
        layer(torch.ones(32, 8)).square().mean().backward()
        optimizer.step()
        return 32

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
    if fate == "hangs":
        time.sleep(600)
    return dying_step()


def dying_step() -> Callable[[], int]:
    started_s = time.monotonic()

    def step() -> int:
        time.sleep(0.001)
        if time.monotonic() - started_s > 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        return 10

    return step


def no_children() -> bool:
    return not multiprocessing.active_children()


def test_two_processes_train_at_once_and_their_rates_add_up() -> None:
    found = measure_sharing(2, partial(sleepy_step, 0.01, 10), "cpu", window_s=0.5)
    # 100 steps per second each, less what a sleep oversleeps: more than one process can do.
    assert 1000 < found.images_per_s <= 2000
    assert (found.n_trials, found.peak_bytes, found.memory_bytes) == (2, 0, 0)
    assert no_children()


def test_one_process_trains_a_step_of_torch() -> None:
    assert measure_sharing(1, training_step, "cpu", window_s=0.2).images_per_s > 100
    assert no_children()


@pytest.mark.parametrize(
    ("fate", "message"),
    [
        ("is killed", "killed; most often memory ran out"),
        ("fails", "CUDA out of memory.$"),
        ("hangs", "not ready in time"),
        ("is killed while training", "killed; most often memory ran out"),
    ],
)
def test_a_process_that_does_not_make_it_means_that_so_many_do_not_fit(fate: str, message: str, tmp_path: Path) -> None:
    preparation_s = 3 if fate == "hangs" else 120
    make_training = partial(step_of_one_that, fate, tmp_path / "claimed")
    with pytest.raises(DoesNotFitError, match=message):
        measure_sharing(2, make_training, "cpu", window_s=2, preparation_s=preparation_s)
    assert no_children()


def test_an_interrupt_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.execution.gpu_sharing._receive_from_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_sharing(1, training_step, "cpu")
    assert no_children()


def test_auto_places_as_many_trials_on_each_gpu_as_paid_off(
    tiny_digits: Dataset, tiny_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(n_trials: int, make_training: MakeTraining, device: str) -> Sharing:
        assert device == "cuda"
        return Sharing(n_trials, {1: 1000.0, 2: 1800.0, 4: 2500.0, 8: 2550.0}[n_trials], 0, 0)

    monkeypatch.setattr(plan, "measure_sharing", measured)
    monkeypatch.setattr(plan, "choose_compute", lambda *_: (Compute("cuda", resident=True), "made up"))
    monkeypatch.setattr(plan, "describe_device", lambda _: "GPU")
    monkeypatch.setattr(plan, "count_cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    data = prepare_training_data(tiny_digits)
    space = replace(tiny_space, search=tiny_space.search.model_copy(update={"trials": 40}))

    resource_plan = plan.plan_resources(space, data)
    assert resource_plan.trials_at_once == 2 * 4
    assert resource_plan.resources_per_trial["gpu"] == 0.25
    assert plan.seconds_per_epoch(space, data, resource_plan) == pytest.approx(
        4 * (len(data.train) + len(data.validation) / 4) / 2500
    )
    n_at_once, n_bytes = resource_plan.trials_at_once, plan.checkpoint_bytes(data)
    cost = plan_cost(space, n_at_once, resource_plan.trials_side_by_side, 1.0, n_bytes)
    together = [(sharing.n_trials, sharing.images_per_s) for sharing in resource_plan.measured]
    text = plan_text(space, data, resource_plan.for_manifest, resource_plan.slots, cost, together)
    assert "8 trials at once" in text
    assert "4 trials on one GPU: 2,500 images/s together" in text
    assert "on 2 GPUs" in text

    fixed = replace(space, resources=space.resources.model_copy(update={"trials_per_gpu": 3}))
    assert plan.plan_resources(fixed, data).trials_at_once == 6


def test_the_baseline_trains_a_number_of_steps_and_counts_their_images(
    tiny_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (stepped.append(1), step(self))[1])
    folder = prepare_training_data(tiny_digits).decoded.folder
    train = plan.baseline_training(folder, tiny_digits, Hyperparameters(batch_size=16), Compute(resident=True))
    assert train() == 16 * plan.STEPS_PER_WAIT
    assert len(stepped) == plan.STEPS_PER_WAIT


def test_the_time_of_an_epoch_is_its_share_of_the_timed_steps(
    tiny_digits: Dataset, tiny_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_s = iter([100.0, 101.0, 103.0, 105.0, 107.0, 108.0])
    clock = types.SimpleNamespace(perf_counter=lambda: next(ends_s))
    monkeypatch.setattr(plan, "_evaluation_s", lambda run, sample: 0.0)
    monkeypatch.setattr(plan, "time", clock)
    data = prepare_training_data(tiny_digits)
    resource_plan = plan.ResourcePlan(Compute(), "made up", "CPU", 2, 0, 2)
    # A step of the median takes two seconds, whatever the first one took.
    expected_s = 2.0 * len(data.train) / tiny_space.baseline.batch_size
    assert plan.seconds_per_epoch(tiny_space, data, resource_plan) == pytest.approx(expected_s)
    assert not list(ends_s)
