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
from search.experiment.remote_files import RemoteResults, working_folder
from search.experiment.remote_results import RemoteExperiment, open_remote_experiment
from spaces import Space
from spaces.errors import RunError
from tests.support.simulation import result

Machine = Callable[[str], None]


@pytest.fixture(params=["file://", "fsspec+file://"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}{tmp_path}/bucket/results"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket" / "results"


@pytest.fixture
def on_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Work as the machine of that name: with a cache of its own, and by its own host name."""

    def become(name: str) -> None:
        monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / name))
        monkeypatch.setattr("platform.node", lambda: name)

    become("first")
    return become


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_results, "COPY_EVERY_S", 0.02)
    monkeypatch.setattr(remote_results, "LAST_TRIES", 1)


def create(url: str, space: Space) -> RemoteExperiment:
    device = Device(device="cpu", name="CPU", trials_at_once=2)
    data = Data(n_train=320, n_validation=80, class_names=["0", "1"], mean=[0.3], std=[0.3], content_sha256="0" * 64)
    create_experiment(working_folder(url), "mine", space, new_manifest(space, "mine", device, data))
    return RemoteExperiment(RemoteResults(url), "mine")


def train(experiment: Experiment, space: Space, *epochs: tuple[int, int]) -> None:
    for trial, epoch in epochs:
        if epoch == 1:
            suggested = space.baseline_suggestion()
            experiment.journal().append(TrialStarted(trial, suggested, space.baseline, trial == 0, 0.0))
        experiment.journal().append(result(trial, epoch, 0.5))


@contextlib.contextmanager
def killed_while_writing(experiment: RemoteExperiment) -> Iterator[None]:
    """Write as a process does that is killed later: nothing is copied at the end."""
    with contextlib.suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_results._Copier, "stop", lambda self: (self._stopping.set(), self._thread.join()))
        with experiment.exclusive():
            yield
            raise KeyboardInterrupt


def trained_elsewhere(url: str, on_machine: Machine, space: Space) -> Experiment:
    """An experiment with one epoch. This process is on another machine after that."""
    experiment = create(url, space)
    with experiment.exclusive():
        train(experiment, space, (0, 1))
    on_machine("second")
    return experiment


@contextlib.contextmanager
def failing_writes(error: Exception) -> Iterator[None]:
    """Let each write to the URL raise `error`."""

    def write(self: RemoteResults, path: str, content: bytes) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteResults, "write", write)
        yield


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_are_at_the_url_soon_and_all_of_them_at_the_end(
    url: str, bucket: Path, on_machine: Machine, tiny_space: Space
) -> None:
    experiment = create(url, tiny_space)
    with experiment.exclusive():
        train(experiment, tiny_space, (0, 1))
        journal = bucket / "mine" / "journal.jsonl"
        until(lambda: journal.exists() and journal.read_bytes().count(b"epoch_done") == 1)
        assert (bucket / "mine" / "experiment.yaml").exists()
        train(experiment, tiny_space, (0, 2))
        (experiment.folder / "final").mkdir()
        (experiment.folder / "final" / "metrics.json").write_text("{}")
        (experiment.folder / "ray" / "session_1").mkdir(parents=True)
        (experiment.folder / "ray" / "session_1" / "log").write_text("Ray's own")
    names = {path.relative_to(bucket).as_posix() for path in bucket.rglob("*") if path.is_file()}
    assert names == {
        f"mine/{name}" for name in ("experiment.yaml", "manifest.json", "journal.jsonl", "final/metrics.json")
    }
    assert (bucket / "mine" / "journal.jsonl").read_bytes() == (experiment.folder / "journal.jsonl").read_bytes()


def test_another_machine_goes_on_with_what_is_at_the_url(url: str, on_machine: Machine, tiny_space: Space) -> None:
    experiment = trained_elsewhere(url, on_machine, tiny_space)
    again = open_remote_experiment(url, "mine")
    assert again.folder != experiment.folder
    assert again.history().n_epochs == 1
    with again.exclusive():
        train(again, tiny_space, (0, 2))
    on_machine("first")
    assert open_remote_experiment(url, None).history().n_epochs == 2, "the first machine's copy is brought up to date"


def test_a_diagnosis_is_of_what_is_at_the_url(
    url: str, on_machine: Machine, tiny_space: Space, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_elsewhere(url, on_machine, tiny_space)
    assert diagnose.main(["mine", "--results", url]) == 0
    assert capsys.readouterr().out.startswith("mine: 0 of 8 trials ended, 1 epochs")


def test_what_a_killed_process_had_not_copied_is_not_lost_on_its_machine(
    url: str, bucket: Path, on_machine: Machine, tiny_space: Space
) -> None:
    experiment = create(url, tiny_space)
    with killed_while_writing(experiment):
        train(experiment, tiny_space, (0, 1))
        until(lambda: (bucket / "mine" / "journal.jsonl").exists())
    train(experiment, tiny_space, (0, 2))
    again = open_remote_experiment(url, "mine")
    assert again.history().n_epochs == 2
    with again.exclusive():
        pass
    assert (bucket / "mine" / "journal.jsonl").read_bytes().count(b"epoch_done") == 2


def test_where_both_went_on_the_url_is_right(url: str, on_machine: Machine, tiny_space: Space) -> None:
    experiment = create(url, tiny_space)
    with experiment.exclusive():
        train(experiment, tiny_space, (0, 1))
    train(experiment, tiny_space, (0, 2))  # never copied
    on_machine("second")
    other = open_remote_experiment(url, "mine")
    with other.exclusive():
        train(other, tiny_space, (1, 1), (1, 2))
    on_machine("first")
    history = open_remote_experiment(url, "mine").history()
    assert (history.trials[0].n_epochs, history.trials[1].n_epochs) == (1, 2)


def test_the_host_that_wrote_last_is_named_unless_its_session_ended(
    url: str,
    on_machine: Machine,
    tiny_space: Space,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time", lambda: 60.0)  # the events are of second 0
    experiment = create(url, tiny_space)
    with killed_while_writing(experiment):
        train(experiment, tiny_space, (0, 1))
        experiment.write_manifest(experiment.manifest)
    assert not experiment.is_live(), "no process of the machine that wrote last holds the folder"
    on_machine("second")
    other = open_remote_experiment(url, "mine")
    assert other.is_live()
    other.must_be_free()  # no lock enforces one writer
    monkeypatch.setattr("time.time", lambda: 60.0 + remote_results.SILENT_S)
    assert not other.is_live(), "the machine that wrote last has been silent for long"
    with other.exclusive():
        assert "mine: first wrote last, and did not record the end of its session." in capsys.readouterr().err
        other.write_manifest(other.manifest.model_copy(update={"state": "completed"}))
    on_machine("third")
    with open_remote_experiment(url, "mine").exclusive():
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("no route to host"), "no route to host"), (KeyError("etag"), "KeyError: 'etag'")]
)
def test_a_url_that_fails_is_said_once_and_tried_again(
    url: str,
    bucket: Path,
    on_machine: Machine,
    tiny_space: Space,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    experiment = create(url, tiny_space)
    with experiment.exclusive():
        until(lambda: (bucket / "mine" / "manifest.json").exists())
        with failing_writes(error):
            train(experiment, tiny_space, (0, 1))
            until(lambda: experiment._copier is not None and experiment._copier.trouble is not None)
            time.sleep(0.2)
    assert capfd.readouterr().err.count(f"results cannot be copied there at the moment ({reason})") == 1
    assert (bucket / "mine" / "journal.jsonl").read_bytes().count(b"epoch_done") == 1


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("no route to host"), "no route to host"), (KeyError("etag"), "KeyError: 'etag'")]
)
def test_a_url_that_fails_to_the_end_is_an_error_that_says_where_the_results_are(
    url: str, bucket: Path, on_machine: Machine, tiny_space: Space, error: Exception, reason: str
) -> None:
    experiment = create(url, tiny_space)

    def search() -> None:
        with contextlib.ExitStack() as stack, experiment.exclusive():
            until(lambda: (bucket / "mine" / "manifest.json").exists())
            stack.enter_context(failing_writes(error))
            train(experiment, tiny_space, (0, 1))

    with pytest.raises(RunError, match=f"{re.escape(reason)}.*They are complete in") as raised:
        search()
    assert str(experiment.folder) in str(raised.value)


def test_what_others_must_read_first_is_an_error_where_it_cannot_be_copied(
    url: str, bucket: Path, on_machine: Machine, tiny_space: Space
) -> None:
    experiment = create(url, tiny_space)
    with experiment.exclusive():
        until(lambda: (bucket / "mine" / "manifest.json").exists())
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
    url: str, bucket: Path, on_machine: Machine, tiny_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = {b"one": 1, b"two": 2, b"three": 3, b"damaged": None}
    monkeypatch.setattr(
        "trainable.checkpoint.checkpoint_epoch", lambda folder: epochs[(folder / "state.json").read_bytes()]
    )
    experiment = create(url, tiny_space)
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
        experiment.drop_checkpoints("trial_0000")
    assert not list(bucket.glob("mine/ray/session_*/trial_0000/checkpoint_*"))
    assert len(list(bucket.glob("mine/ray/session_*/trial_0001/checkpoint_*"))) == 1


def test_commands_take_a_url_and_name_what_is_there(
    url: str, on_machine: Machine, tiny_space: Space, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_elsewhere(url, on_machine, tiny_space)
    assert leaderboard.main(["--results", url]) == 0
    assert "mine: 0 of 8 trials ended" in capsys.readouterr().out
    assert leaderboard.main(["other", "--results", url]) == 2
    assert capsys.readouterr().err == (f"`other` is not an experiment: {url} has mine. Give one of their names.\n")
    assert leaderboard.main(["--results", "nonsense://bucket"]) == 2
    assert capsys.readouterr().err.startswith("nonsense://bucket: cannot be opened (")


def test_names_that_lead_out_of_the_folder_are_passed_over(
    url: str, bucket: Path, on_machine: Machine, tiny_space: Space
) -> None:
    experiment = create(url, tiny_space)
    with experiment.exclusive():
        pass
    (bucket / "mine" / ".hidden").write_text("x")
    (bucket / "mine" / "final").mkdir()
    (bucket / "mine" / "final" / ".hidden").write_text("x")
    on_machine("second")
    folder = open_remote_experiment(url, "mine").folder
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        "experiment.yaml",
        "manifest.json",
        "journal.jsonl",
        ".synced.json",
    }
