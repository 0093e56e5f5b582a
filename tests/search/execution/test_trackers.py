"""What MLflow, wandb and TensorBoard are told of a search, and what becomes of it when they do not answer."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.logger import LoggerCallback

from search import run as run_command
from search.execution.trackers import Tracker, trackers
from search.experiment.folder import Experiment
from spaces import InputError, Space, load_space
from spaces.errors import RunError
from spaces.schema import MLflow, Track
from tests.conftest import TINY, set_options
from tests.support.foreign import make_experiment


def ray_trial(name: str, tmp_path: Path, lr: float = 0.1) -> Any:
    """As much of Ray's trial as is looked at."""
    config = {
        "name": name,
        "hyperparameters": {"lr": lr, "momentum": 0.9},
        "resume_from": None,
        "decoded_folder": "/home/somebody/cache",
    }
    folder = tmp_path / name
    return SimpleNamespace(
        config=config,
        local_path=str(folder),
        experiment_dir_name="session_1",
        init_local_path=lambda: folder.mkdir(exist_ok=True),
    )


def epoch_result(epoch: int, accuracy: float) -> dict[str, Any]:
    ray_s = {"trial_id": "ab12", "node_ip": "10.0.0.1", "config": {"decoded_folder": "/home/somebody/cache"}}
    losses = {"train_loss": 0.5, "train_accuracy": accuracy, "validation_loss": 0.6, "validation_accuracy": accuracy}
    return {"epoch": epoch, "lr": 0.1, "train_s": 1.0, "validation_s": 0.1, **losses, **ray_s}


class Listener(LoggerCallback):
    """Writes down what it is told, and fails when it is asked to."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.is_broken = False

    def log_trial_start(self, trial: Any) -> None:
        self.hear("start", str(trial), trial.config)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.hear("result", str(trial), result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.hear("end", str(trial), failed)

    def hear(self, *told: Any) -> None:
        if self.is_broken:
            raise ConnectionError("no route to host\nand a trace")
        self.heard.append(told)


def test_a_tracker_is_told_hyperparameters_and_results_and_nothing_of_this_machine(tmp_path: Path) -> None:
    listener, trouble = Listener(), []
    tracker = Tracker("X", listener, "mine", trouble.append)
    trial = ray_trial("trial_0007", tmp_path)
    tracker.on_trial_start(0, [], trial)
    tracker.on_trial_result(0, [], trial, epoch_result(4, 0.5))
    tracker.on_trial_complete(0, [], trial)
    start, told, end = listener.heard
    assert start == ("start", "trial_0007", {"lr": 0.1, "momentum": 0.9})
    assert told[2]["training_iteration"] == 4
    assert told[2]["validation_accuracy"] == 0.5
    assert "somebody" not in str(listener.heard)
    assert "10.0.0.1" not in str(listener.heard)
    assert end == ("end", "trial_0007", False)
    assert trouble == []


def test_a_trial_that_is_tried_again_is_the_same_to_a_tracker(tmp_path: Path) -> None:
    starts = []
    tracker = Tracker("X", Listener(), "mine", print, starts.append)
    tracker.on_trial_start(0, [], ray_trial("trial_0001", tmp_path))
    tracker.on_trial_start(0, [], ray_trial("trial_0001", tmp_path))
    assert len(starts) == 1


def test_a_trial_that_was_promoted_is_looked_up_again_by_its_name(tmp_path: Path) -> None:
    listener, starts = Listener(), []
    tracker = Tracker("X", listener, "mine", print, lambda trial: starts.append(trial.name))
    for folder in ("trial_0001", "trial_0001_2"):
        trial = ray_trial(folder, tmp_path)
        tracker.on_trial_start(0, [], trial)
        tracker.on_trial_complete(0, [], trial)
    assert starts == ["trial_0001"] * 2
    assert [told[1] for told in listener.heard] == ["trial_0001"] * 4


def test_a_tracker_that_fails_is_told_nothing_more_and_ends_nothing(tmp_path: Path) -> None:
    listener, trouble = Listener(), []
    tracker = Tracker("X", listener, "mine", trouble.append)
    trial = ray_trial("trial_0001", tmp_path)
    tracker.on_trial_start(0, [], trial)
    listener.is_broken = True
    tracker.on_trial_result(0, [], trial, epoch_result(1, 0.5))
    listener.is_broken = False
    tracker.on_trial_result(0, [], trial, epoch_result(2, 0.5))
    assert len(listener.heard) == 1
    assert trouble == ["X is told nothing more (no route to host); the search goes on"]


def test_what_fails_before_it_starts_is_no_trouble(tmp_path: Path) -> None:
    listener, trouble = Listener(), []
    Tracker("X", listener, "mine", trouble.append).on_trial_error(0, [], ray_trial("trial_0001", tmp_path))
    assert listener.heard == trouble == []


def test_ray_may_pickle_a_tracker(tmp_path: Path) -> None:
    tracker = Tracker("X", Listener(), "mine", lambda line: None)
    cloudpickle.loads(cloudpickle.dumps(tracker))


def test_tensorboard_gets_an_event_file_a_trial(tiny_space: Space, tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "results", "mine", tiny_space)
    (tracker,) = trackers(Track(), experiment, pytest.fail)
    trial = ray_trial("trial_0001", tmp_path)
    tracker.on_trial_start(0, [], trial)
    for epoch in (1, 2):
        tracker.on_trial_result(0, [], trial, epoch_result(epoch, 0.5))
    tracker.on_trial_complete(0, [], trial)
    (file,) = (tmp_path / "trial_0001").glob("events.out.tfevents.*")
    content = file.read_bytes()
    assert content.count(b"ray/tune/validation_accuracy") >= 2
    assert b"momentum" in content, "hyperparameters, for the page that compares them"
    assert trackers(Track(tensorboard=False), experiment, pytest.fail) == []


@pytest.fixture
def mlflow_uri(tmp_path: Path) -> str:
    pytest.importorskip("mlflow", reason="MLflow is not installed (extra `mlflow`)")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def runs_at(uri: str, experiment: str = "mine") -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return sorted(client.search_runs([found.experiment_id]), key=lambda run: run.info.run_name)


def test_mlflow_gets_a_run_a_trial_which_a_resumed_search_goes_on_with(
    mlflow_uri: str, tiny_space: Space, tmp_path: Path
) -> None:
    import mlflow

    experiment = make_experiment(tmp_path / "results", "mine", tiny_space)
    other = make_experiment(tmp_path / "results", "other", tiny_space)
    track = Track(tensorboard=False, mlflow=MLflow(tracking_uri=mlflow_uri, experiment_name="all"))
    for session, (folder, epochs) in enumerate([(experiment, (1, 2)), (other, (1,)), (experiment, (3,))]):
        (tracker,) = trackers(track, folder, pytest.fail)
        trial = ray_trial("trial_0001", tmp_path)
        trial.config["resume_from"] = "checkpoint" if session == 2 else None
        tracker.on_trial_start(0, [], trial)
        for epoch in epochs:
            tracker.on_trial_result(0, [], trial, epoch_result(epoch, epoch / 10))
        if session == 2:
            tracker.on_trial_complete(0, [], trial)
    first, second = sorted(runs_at(mlflow_uri, "all"), key=lambda run: run.data.tags["experiment"])
    assert (first.data.tags["experiment"], second.data.tags["experiment"]) == ("mine", "other")
    assert first.info.run_name == second.info.run_name == "trial_0001"
    assert first.info.status == "FINISHED"
    assert first.data.params == {"lr": "0.1", "momentum": "0.9"}
    client = mlflow.MlflowClient(mlflow_uri)
    curve = client.get_metric_history(first.info.run_id, "validation_accuracy")
    assert [(point.step, point.value) for point in curve] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert len(client.get_metric_history(second.info.run_id, "validation_accuracy")) == 1


def test_an_mlflow_that_does_not_answer_is_one_line(tiny_space: Space, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed (extra `mlflow`)")
    experiment = make_experiment(tmp_path / "results", "mine", tiny_space)
    (tmp_path / "file").touch()
    track = Track(mlflow=MLflow(tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db"))
    with pytest.raises(RunError, match="MLflow cannot be told of the search at sqlite:") as refused:
        trackers(track, experiment, pytest.fail)
    assert "\n" not in str(refused.value)


def test_a_tracker_that_is_not_installed_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_command.main(set_options("track.wandb={project: x}")) == 2
    assert capsys.readouterr().err == (
        "`track.wandb` is set, but wandb is not installed. Install it: python -m pip install wandb\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{tracking_uri: 3}", "`track.mlflow.tracking_uri` is 3, but must be text."),
        ("{}", "`track.mlflow.tracking_uri` is missing, but must be given."),
        ("{tracking_uri: 'http://me:secret@host'}", "must be http://HOST:PORT, https://HOST or sqlite:///PATH"),
        ("{tracking_uri: 'mysql+evil://host/x'}", "must be http://HOST:PORT, https://HOST or sqlite:///PATH"),
        ("{tracking_uri: ./mlruns}", "must be http://HOST:PORT, https://HOST or sqlite:///PATH"),
        ("{tracking_url: x}", "Did you mean `tracking_uri`?"),
        ("yes", "`track.mlflow` is True, but must be a section of its own"),
    ],
)
def test_bad_settings_are_named_with_their_rule(value: str, expected: str) -> None:
    with pytest.raises(InputError) as refused:
        load_space("quickstart", [f"track.mlflow={value}"])
    assert any(expected in line for line in refused.value.lines), refused.value.lines


def test_a_relative_sqlite_file_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = load_space("quickstart", ["track.mlflow={tracking_uri: sqlite:///mlflow.db}"])
    once = run_command._with_absolute_paths(space)
    monkeypatch.chdir("/")
    assert once.track.mlflow is not None
    assert once.track.mlflow.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert run_command._with_absolute_paths(once) == once


@pytest.mark.long
@pytest.mark.cluster
def test_a_search_is_told_to_tensorboard_and_mlflow(
    run: Callable[..., subprocess.CompletedProcess[str]], mlflow_uri: str, tmp_path: Path
) -> None:
    overrides = (*TINY, "search.trials=3", "confirm.top=1", "confirm.budget=10", "confirm.seeds=2")
    tracked = f"track.mlflow={{tracking_uri: '{mlflow_uri}'}}"
    searched = run("search.run", *set_options(*overrides, tracked), "--name", "mine", cwd=tmp_path)
    assert searched.returncode == 0, searched.stderr
    experiment = Experiment(tmp_path / "results" / "mine")
    history = experiment.history()
    runs = runs_at(mlflow_uri)
    names = [f"run_{n:04d}" for n in history.replicates] + [f"trial_{n:04d}" for n in history.trials]
    assert [each.info.run_name for each in runs] == names
    by_name = {each.info.run_name: each for each in runs}
    for number, trial in history.trials.items():
        told = by_name[f"trial_{number:04d}"]
        assert told.info.status == "FINISHED"
        assert trial.last is not None
        assert told.data.metrics["validation_accuracy"] == pytest.approx(trial.last.validation_accuracy)
        assert float(told.data.params["lr"]) == pytest.approx(trial.config.lr)
        assert list(experiment.ray_folder.glob(f"session_1/trial_{number:04d}/events.out.tfevents.*"))
    experiment.must_be_plain()
