"""What MLflow, wandb and TensorBoard are told of a search, and what becomes of it when they do not answer."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from search import run as run_command
from search.execution.trackers import MLflowTracker, Tracker, trackers
from search.experiment.events import (
    EndStatus,
    EpochDone,
    EpochRedone,
    Event,
    ReplicateEnded,
    ReplicateEpochDone,
    ReplicateStarted,
    TrialEnded,
    TrialPromoted,
    TrialStarted,
)
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.session.conduct import with_absolute_paths
from spaces import InputError, Space, load_space
from spaces.errors import RunError
from spaces.parameters import Hyperparameters
from spaces.schema import MLflow, Track
from tests.conftest import TINY, set_options
from tests.support.foreign import make_experiment

CONFIG = Hyperparameters(lr=0.1, momentum=0.9)
VALUES = CONFIG.as_dict()


def started(number: int = 1) -> list[Event]:
    return [TrialStarted(n, {}, CONFIG, n == 0, 0.0) for n in range(number + 1)]


def epoch_done(epoch: int, accuracy: float, number: int = 1) -> EpochDone:
    return EpochDone(number, epoch, 0.1, 0.5, accuracy, 0.6, accuracy, 1.0, 0.1, 0.0)


def ended(status: EndStatus = "completed", number: int = 1) -> TrialEnded:
    return TrialEnded(number, status, "", 0.0)


def report(tracker: Tracker, history: History, *events: Event) -> None:
    for event in events:
        history.apply(event)
        tracker.on_event(event, history)


class Listener(Tracker):
    """Records its calls, and fails on demand."""

    title = "X"

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(warn)
        self.heard: list[tuple[Any, ...]] = []
        self.is_broken = False

    def open_run(self, name: str, config: Any) -> str:
        self.hear("open", name, config)
        return name

    def log(self, run: str, epoch: int, results: Mapping[str, float]) -> None:
        self.hear("log", run, epoch, results)

    def close_run(self, run: str, failed: bool | None) -> None:
        self.hear("close", run, failed)

    def hear(self, *told: Any) -> None:
        if self.is_broken:
            raise ConnectionError("no route to host\nand a trace")
        self.heard.append(told)


def test_a_tracker_is_told_hyperparameters_and_results_of_trials_and_replicates() -> None:
    listener = Listener(pytest.fail)
    results = {
        "train_loss": 0.5,
        "validation_loss": 0.6,
        "validation_accuracy": 0.5,
        "train_s": 1.0,
        "validation_s": 0.1,
    }
    replicate = [
        ReplicateStarted(0, 1, 1, 0.0),
        ReplicateEpochDone(0, 1, 0.5, 0.6, 0.5, 1.0, 0.1, 0.0),
        ReplicateEnded(0, "completed", "", 0.0),
    ]
    report(listener, History(started(0)), *started()[1:], epoch_done(1, 0.5), ended("failed"), *replicate)
    assert listener.heard == [
        ("open", "trial_0001", VALUES),
        ("log", "trial_0001", 1, {"lr": 0.1, "train_accuracy": 0.5, **results}),
        ("close", "trial_0001", True),
        ("open", "run_0000", VALUES),
        ("log", "run_0000", 1, results),
        ("close", "run_0000", False),
    ]


def test_a_trial_that_is_tried_again_promoted_or_resumed_is_one_run() -> None:
    listener, history = Listener(pytest.fail), History()
    report(listener, history, *started(0), epoch_done(1, 0.5, 0), EpochRedone(0, 1, 0.0), TrialPromoted(0, 1, 0.0))
    report(listener, history, epoch_done(2, 0.6, 0))
    listener.close()
    assert [told[0] for told in listener.heard] == ["open", "log", "log", "close"]
    assert listener.heard[-1] == ("close", "trial_0000", None), "it can be resumed"
    resumed = Listener(pytest.fail)
    report(resumed, history, epoch_done(3, 0.6, 0), ended("stopped", 0))
    assert [told[:2] for told in resumed.heard] == [(what, "trial_0000") for what in ("open", "log", "close")]


def test_a_tracker_that_fails_is_told_nothing_more_and_ends_nothing() -> None:
    trouble: list[str] = []
    listener, history = Listener(trouble.append), History(started(0))
    report(listener, history, *started()[1:])
    listener.is_broken = True
    report(listener, history, epoch_done(1, 0.5))
    listener.is_broken = False
    report(listener, history, epoch_done(2, 0.5))
    listener.close()
    assert len(listener.heard) == 1
    assert trouble == ["X is told nothing more (no route to host); the search goes on"]


def test_tensorboard_gets_an_event_file_a_trial(tiny_space: Space, tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "results", "mine", tiny_space)
    (tracker,) = trackers(Track(), experiment, pytest.fail)
    report(tracker, History(started(0)), *started()[1:], epoch_done(1, 0.5), epoch_done(2, 0.5), ended())
    (file,) = (experiment.ray_folder / "tensorboard" / "trial_0001").glob("events.out.tfevents.*")
    content = file.read_bytes()
    assert content.count(b"ray/tune/validation_accuracy") >= 2
    assert b"momentum" in content, "hyperparameters, for the page that compares them"
    assert trackers(Track(tensorboard=False), experiment, pytest.fail) == []


def runs_at(uri: str, experiment: str = "mine") -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return sorted(client.search_runs([found.experiment_id]), key=lambda run: run.info.run_name)


def test_mlflow_gets_a_run_a_trial_which_a_resumed_search_continues(
    tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (extra `mlflow`)")
    # Files, which spaces do not allow, because a new SQLite database takes MLflow ten seconds.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    settings = MLflow.model_construct(tracking_uri=str(tmp_path / "mlruns"), experiment_name="all")
    history = History()
    for name, events in [
        ("mine", [*started(), epoch_done(1, 0.1), epoch_done(2, 0.2)]),
        ("other", [*started(), epoch_done(1, 0.1)]),
        ("mine", [epoch_done(3, 0.3), ended()]),
    ]:
        tracker = MLflowTracker(settings, name, pytest.fail)
        report(tracker, History() if name == "other" else history, *events)
        tracker.close()
    named = [run for run in runs_at(settings.tracking_uri, "all") if run.info.run_name == "trial_0001"]
    first, second = sorted(named, key=lambda run: run.data.tags["experiment"])
    assert (first.data.tags["experiment"], second.data.tags["experiment"]) == ("mine", "other")
    assert first.info.status == "FINISHED"
    assert first.data.params == {name: str(value) for name, value in VALUES.items()}
    client = mlflow.MlflowClient(settings.tracking_uri)
    curve = client.get_metric_history(first.info.run_id, "validation_accuracy")
    assert [(point.step, point.value) for point in curve] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert len(client.get_metric_history(second.info.run_id, "validation_accuracy")) == 1


def test_an_mlflow_that_does_not_answer_is_one_line(
    tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("no route to host\nand a trace")

    monkeypatch.setattr(MLflowTracker, "__init__", refuse)
    experiment = make_experiment(tmp_path / "results", "mine", tiny_space)
    with pytest.raises(RunError, match=r"^MLflow cannot be told of the search \(no route to host\)\. Mend that"):
        trackers(Track(mlflow=MLflow(tracking_uri="http://127.0.0.1:1")), experiment, pytest.fail)


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
    once = with_absolute_paths(space)
    monkeypatch.chdir("/")
    assert once.track.mlflow is not None
    assert once.track.mlflow.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert with_absolute_paths(once) == once


@pytest.mark.long
@pytest.mark.cluster
def test_a_search_is_told_to_tensorboard_and_mlflow(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed (extra `mlflow`)")
    mlflow_uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
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
        assert list(experiment.ray_folder.glob(f"tensorboard/trial_{number:04d}/events.out.tfevents.*"))
    experiment.must_be_plain()
