"""Experiments at a URL: what is copied, what is fetched, and who may write. `file://` stands for an object store."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search import diagnose, leaderboard
from search.experiment import remote_results
from search.experiment.events import TrialStarted
from search.experiment.folder import Experiment, create_experiment
from search.experiment.manifest import Data, Device, TestSetUse, new_manifest
from search.experiment.remote_results import RemoteExperiment, open_remote_experiment, working_folder
from spaces import Space
from spaces.errors import RunError
from tests.support.simulation import result

Machine = Callable[[str], None]


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket" / "results"


@pytest.fixture
def url(bucket: Path) -> str:
    return f"file://{bucket}"


@pytest.fixture(autouse=True)
def on_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Work as the machine of that name, with a cache of its own; first as `first`."""

    def become(name: str) -> None:
        monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / name))

    become("first")
    monkeypatch.setattr(remote_results, "COPY_EVERY_S", 0.02)
    monkeypatch.setattr(remote_results, "LAST_TRIES", 1)
    return become


def create(url: str, space: Space) -> RemoteExperiment:
    device = Device(device="cpu", name="CPU", trials_at_once=2)
    data = Data(n_train=320, n_validation=80, class_names=["0", "1"], mean=[0.3], std=[0.3], content_sha256="0" * 64)
    create_experiment(working_folder(url), "mine", space, new_manifest(space, "mine", device, data))
    return RemoteExperiment(url, "mine")


def train(experiment: Experiment, space: Space, *epochs: tuple[int, int]) -> None:
    for trial, epoch in epochs:
        if epoch == 1:
            suggested = space.searched_values(space.baseline)
            experiment.journal().append(TrialStarted(trial, suggested, space.baseline, trial == 0, 0.0))
        experiment.journal().append(result(trial, epoch, 0.5))


@pytest.fixture
def experiment(url: str, tiny_space: Space) -> RemoteExperiment:
    """An experiment with one epoch, which the first machine copied to the URL."""
    made = create(url, tiny_space)
    with made.exclusive():
        train(made, tiny_space, (0, 1))
    return made


@contextlib.contextmanager
def failing_writes(error: Exception) -> Iterator[None]:
    """Let each write to the URL raise `error`."""

    def write(self: RemoteExperiment, relative: str, content: bytes) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteExperiment, "_write", write)
        yield


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("scheme", ["file://", "fsspec+file://"])
def test_files_are_at_the_url_soon_and_all_of_them_at_the_end_and_another_machine_resumes(
    scheme: str, bucket: Path, on_machine: Machine, tiny_space: Space
) -> None:
    url = f"{scheme}{bucket}"
    experiment = create(url, tiny_space)
    with experiment.exclusive():
        train(experiment, tiny_space, (0, 1))
        journal = bucket / "mine" / "journal.jsonl"
        until(lambda: journal.exists() and b"epoch_done" in journal.read_bytes())
        for name in ("final/metrics.json", "ray/driver.err", ".hidden", "final/.hidden"):
            (experiment.folder / name).parent.mkdir(exist_ok=True)
            (experiment.folder / name).write_text("{}")
    names = {path.relative_to(bucket).as_posix() for path in bucket.rglob("*") if path.is_file()}
    state_files = {"experiment.yaml", "manifest.json", "journal.jsonl"}
    assert names == {f"mine/{name}" for name in (*state_files, "final/metrics.json")}
    assert (bucket / "mine" / "journal.jsonl").read_bytes() == (experiment.folder / "journal.jsonl").read_bytes()

    on_machine("second")
    (bucket / "mine" / ".hidden").write_text("x")
    again = open_remote_experiment(url, "mine")
    assert again.folder != experiment.folder
    assert again.history().n_epochs == 1
    files = {path.relative_to(again.folder).as_posix() for path in again.folder.rglob("*") if path.is_file()}
    assert files == {*state_files, "final/metrics.json", ".synced.json"}
    with again.exclusive():
        train(again, tiny_space, (0, 2))
    on_machine("first")
    assert open_remote_experiment(url, None).history().n_epochs == 2, "the first machine's copy is brought up to date"


def test_what_a_killed_process_had_not_copied_is_copied_when_its_machine_resumes(
    experiment: RemoteExperiment, url: str, bucket: Path, tiny_space: Space
) -> None:
    train(experiment, tiny_space, (0, 2))  # never copied
    again = open_remote_experiment(url, "mine")
    assert again.history().n_epochs == 2
    with again.exclusive():
        pass
    assert (bucket / "mine" / "journal.jsonl").read_bytes().count(b"epoch_done") == 2


def test_a_search_that_never_copied_anything_is_found_on_its_machine(url: str, tiny_space: Space) -> None:
    create(url, tiny_space)
    assert open_remote_experiment(url, "mine").space.as_dict() == tiny_space.as_dict()


def test_where_both_machines_trained_the_url_is_right(
    experiment: RemoteExperiment, url: str, on_machine: Machine, tiny_space: Space
) -> None:
    train(experiment, tiny_space, (0, 2))  # never copied
    on_machine("second")
    other = open_remote_experiment(url, "mine")
    with other.exclusive():
        train(other, tiny_space, (1, 1), (1, 2))
    on_machine("first")
    history = open_remote_experiment(url, "mine").history()
    assert (history.trials[0].n_epochs, history.trials[1].n_epochs) == (1, 2)


def test_a_session_without_an_end_counts_as_running_until_it_is_silent_for_long(
    experiment: RemoteExperiment,
    url: str,
    on_machine: Machine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_machine("second")
    monkeypatch.setattr("time.time", lambda: 60.0)  # the events are of second 0
    other = open_remote_experiment(url, "mine")
    assert other.is_live()
    other.must_be_free()  # no lock enforces one writer
    with other.exclusive():
        assert "its last session did not record its end" in capsys.readouterr().err
    monkeypatch.setattr("time.time", lambda: 60.0 + remote_results.SILENT_S)
    assert not other.is_live()
    with other.exclusive():
        other.write_manifest(other.manifest.model_copy(update={"state": "completed"}))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("time.time", lambda: 60.0)
    assert not other.is_live()


@pytest.mark.parametrize("error", [OSError("no route to host"), KeyError("etag")])
def test_a_url_that_fails_for_a_while_is_said_once(
    experiment: RemoteExperiment, bucket: Path, tiny_space: Space, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    with experiment.exclusive(), failing_writes(error):
        train(experiment, tiny_space, (0, 2))
        time.sleep(0.2)
    reason = f"({type(error).__name__}: {error})"
    assert capfd.readouterr().err.count(f"results cannot be copied there at the moment {reason}") == 1
    assert (bucket / "mine" / "journal.jsonl").read_bytes().count(b"epoch_done") == 2


@pytest.mark.parametrize("error", [OSError("no route to host"), KeyError("etag")])
def test_a_url_that_fails_to_the_end_is_an_error_that_says_where_the_results_are(
    experiment: RemoteExperiment, tiny_space: Space, error: Exception
) -> None:
    with (
        failing_writes(error),
        pytest.raises(RunError, match=f"{error}.*They are complete in {re.escape(str(experiment.folder))}"),
        experiment.exclusive(),
    ):
        train(experiment, tiny_space, (0, 2))


def test_what_others_must_read_first_is_an_error_where_it_cannot_be_copied(
    experiment: RemoteExperiment, bucket: Path
) -> None:
    with experiment.exclusive():
        before = experiment.manifest
        about_to_open = before.with_use_of_test_set(
            TestSetUse(at="now", trial=0, config={}, epochs=1, seeds=1, reason=None), new=True
        )
        refused = pytest.raises(RunError, match=r"manifest\.json could not be copied there")
        with failing_writes(OSError("no route to host")), refused:
            experiment.publish_manifest(about_to_open)
        assert experiment.manifest == before, "what did not happen needs no reason to happen again"
        experiment.publish_manifest(about_to_open)
        assert len(json.loads((bucket / "mine" / "manifest.json").read_text())["test_openings"]) == 1


def test_the_newest_intact_checkpoint_is_found_and_those_of_ended_trials_go(
    experiment: RemoteExperiment, url: str, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = {b"one": 1, b"two": 2, b"three": 3, b"damaged": None}
    monkeypatch.setattr(
        "trainable.checkpoint.checkpoint_epoch", lambda folder: epochs[(folder / "state.json").read_bytes()]
    )
    for place, content in {
        "session_1/trial_0000/checkpoint_000001": b"two",
        "session_2/trial_0000/checkpoint_000000": b"one",
        "session_2/trial_0000/checkpoint_000001": b"three",
        "session_2/trial_0000/checkpoint_000002": b"damaged",
        "session_2/trial_0001/checkpoint_000000": b"two",
    }.items():
        (bucket / "mine" / "ray" / place).mkdir(parents=True)
        (bucket / "mine" / "ray" / place / "state.json").write_bytes(content)
    with experiment.exclusive():
        newest = experiment.newest_checkpoint("trial_0000", n_epochs_known=2)
        assert newest == f"{url}/mine/ray/session_1/trial_0000/checkpoint_000001"
        assert experiment.newest_checkpoint("trial_0007", n_epochs_known=2) is None
        experiment.drop_checkpoints("trial_0000", but_newest=1)
        until(lambda: len(list(bucket.glob("mine/ray/session_*/trial_0000/checkpoint_*"))) == 2)
        experiment.drop_checkpoints("trial_0000")
    assert not list(bucket.glob("mine/ray/session_*/trial_0000/checkpoint_*"))
    assert len(list(bucket.glob("mine/ray/session_*/trial_0001/checkpoint_*"))) == 1


def test_commands_take_a_url_and_name_what_is_there(
    experiment: RemoteExperiment, url: str, on_machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    on_machine("second")
    assert leaderboard.main(["--results", url]) == 0
    assert "mine: 0 of 8 trials ended" in capsys.readouterr().out
    assert diagnose.main(["mine", "--results", url]) == 0
    assert capsys.readouterr().out.startswith("mine: 0 of 8 trials ended, 1 epochs")
    assert leaderboard.main(["other", "--results", url]) == 2
    assert capsys.readouterr().err == f"`other` is not an experiment: {url} has mine. Give one of their names.\n"
    assert leaderboard.main(["--results", "nonsense://bucket"]) == 2
    assert capsys.readouterr().err.startswith("nonsense://bucket: cannot be opened (")
