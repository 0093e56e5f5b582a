import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from search.execution.cluster import LocalCluster
from search.execution.launching import SearchSession
from search.execution.ray_adapters import Housekeeping, Shared, StateSearcher
from search.execution.stop_signal import StopSignal
from search.experiment.events import TrialEnded
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.policy.state import SearchState
from search.session.conduct import SessionRequest, conduct
from spaces import Space, load_space
from spaces.errors import RunError
from spaces.schema import Pooling
from tests.support.foreign import make_experiment
from tests.support.simulation import simulate
from trainable.compute import Compute
from trainable.data.datasets import prepare_training_data
from trainable.ray_trainable import TrialTrainable


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
    request = SessionRequest(started_s=time.monotonic() - 160, results=tmp_path, plain=True)
    resource_plan: Any = SimpleNamespace(
        trials_at_once=2, description="2 cores", compute=SimpleNamespace(precision="fp32"), precision_reason="given"
    )
    data: Any = SimpleNamespace(train=SimpleNamespace(epoch_images=1150))

    def pretend(session: SearchSession) -> str:
        history = session.experiment.history()
        simulate(SearchState(space, history, observe=session.observer.on_event), seed=0, max_results=9)
        return "finished"

    monkeypatch.setattr(SearchSession, "run", pretend)
    with StopSignal() as stop_signal:
        conduct(request, make_experiment(tmp_path, "mine", space), space, data, resource_plan, None, stop_signal)
    left = [int(seconds) for seconds in re.findall(r"about (\d+) seconds left", capsys.readouterr().out)]
    assert left
    assert all(seconds <= 80 for seconds in left)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_a_worker_trains_the_network_that_the_space_describes(
    tmp_path: Path, tiny_space: Space, pooling: Pooling
) -> None:
    training = tiny_space.training.model_copy(update={"pooling": pooling, "class_weights": "balanced"})
    space = replace(tiny_space, training=training)
    data, experiment = prepare_training_data(space.dataset), make_experiment(tmp_path, "mine", space)
    with StopSignal() as stop_signal:
        plan: Any = SimpleNamespace(compute=Compute())
        observer: Any = None
        session = SearchSession(experiment, space, data, plan, LocalCluster(1, 0), stop_signal, 0.0, None, observer)
        assignment = SearchState(space, History()).next_assignment()
        assert assignment is not None
        worker = object.__new__(TrialTrainable)  # without an actor
        worker.setup(session._ray_config(assignment))
    run = worker._current
    assert run.network.pooling == pooling
    assert run._class_weights is not None


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
        told: list[str] = []
        observer: Any = SimpleNamespace(note=told.append)
        session = SearchSession(experiment, tiny_space, data, resource_plan, cluster, stop_signal, 0.0, None, observer)
        state = SearchState(tiny_space, History())
        assignment = state.next_assignment()
        assert assignment is not None
        shared = Shared(state, lambda assignment: {}, what_fails_all=session.damaged_images)
        shared.assignments["1"] = assignment
        housekeeping = Housekeeping(shared, observer, lambda *dropped: None)
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


def test_a_trial_that_ray_gives_up_for_a_lost_machine_is_dispatched_again(tmp_path: Path, tiny_space: Space) -> None:
    state = SearchState(tiny_space, History())
    shared = Shared(state, lambda assignment: {"name": assignment.folder})
    searcher = StateSearcher(shared, trials_at_once=1)
    (tmp_path / "error.txt").write_text("Failure # 1 (occurred at)\nThe actor is dead because its node has died.")
    trial: Any = SimpleNamespace(trial_id="first", error_file=str(tmp_path / "error.txt"))
    told: list[str] = []
    housekeeping = Housekeeping(shared, cast(Any, SimpleNamespace(note=told.append)), lambda *dropped: None)

    assert searcher.suggest("first") == {"name": "trial_0000"}
    assert searcher.suggest("second") is None
    housekeeping.on_trial_error(0, [], trial)
    assert searcher.suggest("second") == {"name": "trial_0000_2"}, "Ray would overwrite the first folder"
    assert told == ["trial 0 lost its worker and is tried again (its machine was lost)"]
    assert state.history.trials[0].end is None


def test_a_trial_that_the_user_stopped_is_not_dispatched_again_and_frees_its_slot(
    tmp_path: Path, tiny_space: Space
) -> None:
    state = SearchState(tiny_space, History())
    shared = Shared(state, lambda assignment: {"name": assignment.folder})
    searcher = StateSearcher(shared, trials_at_once=1)
    (tmp_path / "error.txt").write_text("Failure # 1 (occurred at)\nThe actor is dead because its node has died.")
    told: list[str] = []
    housekeeping = Housekeeping(shared, cast(Any, SimpleNamespace(note=told.append)), lambda *dropped: None)

    def stop(number: int) -> None:
        state.steer(TrialEnded(number, "stopped", "by the user", 1.0))

    assert searcher.suggest("first") == {"name": "trial_0000"}
    stop(0)
    housekeeping.on_trial_error(0, [], cast(Any, SimpleNamespace(trial_id="first", error_file=tmp_path / "error.txt")))
    assert searcher.suggest("second") == {"name": "trial_0001"}
    stop(1)
    metrics = SimpleNamespace(metric_analysis={}, metric_n_steps={})
    housekeeping.on_trial_complete(0, [], cast(Any, SimpleNamespace(trial_id="second", run_metadata=metrics)))
    assert searcher.suggest("third") == {"name": "trial_0002"}
    assert told == []
