import argparse
import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from search import run
from search.execution.cluster import LocalCluster
from search.execution.launching import LONGEST_SHARE, Launch, _Throttle, damaged_images
from search.execution.ray_adapters import Housekeeping, Shared
from search.execution.stop_signal import StopSignal
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.policy.state import SearchState
from search.terminal.display import SearchDisplay
from spaces import Space, load_space
from spaces.errors import RunError
from tests.support.foreign import make_experiment
from tests.support.simulation import simulate
from trainable.data.datasets import prepare_training_data


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def times_acted(takes_s: float, every_s: float = 5.0, for_s: int = 2000) -> tuple[int, float]:
    """How often something was done in `for_s` seconds of asking once a second, and for which share of the time."""
    clock, n = Clock(), 0
    throttle = _Throttle(every_s, clock)

    def act() -> None:
        nonlocal n
        n += 1
        clock.now_s += takes_s

    while clock.now_s < 1000 + for_s:
        clock.now_s += 1
        throttle.act_if_due(act)
    return n, n * takes_s / for_s


def test_files_are_written_every_few_seconds_while_that_is_cheap() -> None:
    assert times_acted(0.0)[0] == 400
    assert times_acted(0.01)[0] >= 330


def test_files_that_take_long_are_written_more_seldom() -> None:
    for takes_s in (1.0, 5.0, 20.0):
        n, share = times_acted(takes_s)
        assert n >= 2
        assert share <= LONGEST_SHARE * 1.1


def test_the_newest_checkpoints_of_a_trial_are_those_of_the_latest_session(tmp_path: Path) -> None:
    names = [
        "session_2/trial_0003/checkpoint_000007",
        "session_10/trial_0003/checkpoint_000000",
        "session_10/trial_0003/checkpoint_000001",
        "session_10/trial_0004/checkpoint_000000",
    ]

    def left() -> set[str]:
        return {str(path.relative_to(tmp_path / "ray")) for path in tmp_path.glob("ray/*/*/checkpoint_*")}

    for name in names:
        (tmp_path / "ray" / name).mkdir(parents=True)
        (tmp_path / "ray" / name / "state.json").touch()
    experiment = Experiment(tmp_path)
    experiment.drop_checkpoints("trial_0003", but_newest=4)
    assert left() == set(names)
    experiment.drop_checkpoints("trial_0003", but_newest=2)
    assert left() == set(names[1:])
    experiment.drop_checkpoints("trial_0003")
    assert left() == {names[3]}


def test_a_search_shows_the_time_that_its_budget_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = load_space("quickstart", ["search.trials=1000", "search.time_budget=4m"])
    options = argparse.Namespace(started_s=time.monotonic() - 160, quiet=False, plain=True)
    resource_plan: Any = SimpleNamespace(
        trials_at_once=2, description="2 cores", compute=SimpleNamespace(precision="fp32"), precision_reason="given"
    )
    data: Any = SimpleNamespace(train=SimpleNamespace(epoch_images=1150))

    def pretend(launch: Launch, display: SearchDisplay) -> str:
        simulate(SearchState(space, launch.experiment.history(), observe=display.observe), seed=0, max_results=9)
        return "finished"

    monkeypatch.setattr("search.execution.launching.run_session", pretend)
    with StopSignal() as stop_signal:
        run._search(options, make_experiment(tmp_path, "mine", space), space, data, resource_plan, None, stop_signal)
    left = [int(seconds) for seconds in re.findall(r"about (\d+) seconds left", capsys.readouterr().out)]
    assert left
    assert all(seconds <= 80 for seconds in left)


@pytest.mark.parametrize("damage", ["none", "cut", "removed"])
def test_images_that_are_damaged_while_a_search_runs_end_it_and_fail_no_trial(
    tmp_path: Path, tiny_space: Space, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / "cache"))
    data = prepare_training_data(tiny_space.dataset)
    images = data.decoded.folder / "images.npy"
    if damage == "cut":
        os.truncate(images, images.stat().st_size // 2)
    elif damage == "removed":
        shutil.rmtree(data.decoded.folder)
    experiment = make_experiment(tmp_path, "mine", tiny_space)
    with StopSignal() as stop_signal:
        cluster, resource_plan = LocalCluster(1, 0), cast(Any, None)
        launch = Launch(experiment, tiny_space, data, resource_plan, cluster, stop_signal, 0.0, None)
        state = SearchState(tiny_space, History())
        assignment = state.next_assignment()
        assert assignment is not None
        shared = Shared(state, lambda assignment: {}, what_fails_all=lambda: damaged_images(launch))
        shared.assignments["1"] = assignment
        told: list[str] = []
        housekeeping = Housekeeping(shared, lambda *words: told.extend(words), lambda: None, lambda *dropped: None)
        trial: Any = SimpleNamespace(trial_id="1", error_file=None, max_failures=2)
        for _ in range(3):
            housekeeping.on_trial_recover(0, [], trial)
        housekeeping.on_trial_error(0, [], trial)
    if damage == "none":
        assert shared.failure is None
        assert told
    else:
        assert isinstance(shared.failure, RunError)
        assert str(data.decoded.folder) in str(shared.failure)
        assert "--resume mine" in str(shared.failure)
        assert state.history.trials[0].end is None
        assert told == []
