"""An experiment's folder from elsewhere is data: nothing in it is executed, and nothing outside it is touched."""

import contextlib
import json
import os
import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from search import leaderboard
from search.execution.launching import free_session
from search.experiment.events import TrialEnded
from search.experiment.folder import Experiment
from search.experiment.journal import Journal
from search.experiment.manifest import Session
from spaces import InputError, Space, load_space
from tests.conftest import TINY
from tests.support.foreign import KINDS, Call, assert_refused, bomb, contents, make_experiment, plant, put

JOURNAL, LOCK, MANIFEST, MODEL = "journal.jsonl", ".lock", "manifest.json", "final/model.onnx"
FILES = [
    *((command, name) for command in ("leaderboard", "diagnose", "retrain", "resume") for name in (JOURNAL, LOCK)),
    *((command, MANIFEST) for command in ("diagnose", "retrain", "resume")),
    ("predict", MODEL),
]


@pytest.mark.parametrize(
    ("command", "name", "kind"),
    [*((*file, "FIFO") for file in FILES), *(("leaderboard", JOURNAL, kind) for kind in KINDS if kind != "FIFO")],
)
def test_a_file_that_is_none_is_neither_waited_for_nor_followed(
    command: str, name: str, kind: str, on_folder: Call, foreign: Experiment, tmp_path: Path
) -> None:
    before = contents(tmp_path / "victim")
    put(kind, foreign.folder / name, tmp_path / "victim")
    assert_refused(on_folder(command, foreign.folder), name, "is a ")
    assert contents(tmp_path / "victim") == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_that_is_no_file_is_refused_or_read_from_the_journal(
    kind: str, on_folder: Call, foreign: Experiment, tmp_path: Path
) -> None:
    expected = on_folder("leaderboard", foreign.folder)[1]
    put(kind, foreign.folder / "experiment.yaml", tmp_path / "victim")
    for command in ("retrain", "resume", "repeat"):
        if kind != "folder" or command == "repeat":  # a folder of plain files is damage, and mended
            assert_refused(on_folder(command, foreign.folder), "foreign", "")
    code, output, errors = on_folder("leaderboard", foreign.folder)
    assert (code, output) == (0, expected)
    (line,) = errors.splitlines()
    assert line.endswith("; the space as the search journaled it is used.")
    assert "precious" not in line


def test_copies_of_state_files_in_a_folder_elsewhere_are_not_read(
    on_folder: Call, foreign: Experiment, tmp_path: Path
) -> None:
    (foreign.folder / ".backup").symlink_to(tmp_path / "victim")
    assert_refused(on_folder("leaderboard", foreign.folder), ".backup", "is a symbolic link")
    with pytest.raises(InputError, match="is a symbolic link"):
        foreign.write_manifest(foreign.manifest)
    with pytest.raises(InputError, match="is a symbolic link"):
        foreign.journal()
    assert not (tmp_path / "victim" / "journal.jsonl").exists()


@pytest.mark.parametrize("kind", ["link to a file", "FIFO", "link to a device"])
def test_copies_that_are_no_files_are_not_written_or_waited_for(kind: str, foreign: Experiment, tmp_path: Path) -> None:
    for name in ("journal.jsonl", "manifest.json"):
        put(kind, foreign.folder / ".backup" / name, tmp_path / "victim")
    before = contents(tmp_path / "victim")
    with contextlib.suppress(InputError):
        foreign.journal().append(TrialEnded(1, "stopped", "", 2.0))
    foreign.write_manifest(foreign.manifest)
    assert contents(tmp_path / "victim") == before
    assert (foreign.folder / ".backup" / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["manifest.json", "experiment.yaml"])
def test_one_bad_folder_does_not_spoil_the_others(
    name: str, foreign: Experiment, tiny_space: Space, tmp_path: Path, on_folder: Call
) -> None:
    put("FIFO", foreign.folder / name, tmp_path / "victim")
    make_experiment(tmp_path / "results", "mine", tiny_space)
    assert leaderboard.main(["mine"]) == 0
    assert leaderboard.main([]) == 0, "the newest is looked for among all"


@pytest.mark.parametrize(
    ("command", "name", "expected"),
    [
        ("leaderboard", "journal.jsonl", "is over 2,048 MiB"),
        ("retrain", "manifest.json", "is over 16 MiB"),
        ("resume", "manifest.json", "is over 16 MiB"),
        ("predict", "final/model.onnx", "is over 64 MiB"),
        ("repeat", "experiment.yaml", "is over 64 KiB"),
    ],
)
def test_endless_files_are_not_read(
    command: str, name: str, expected: str, on_folder: Call, foreign: Experiment
) -> None:
    with (foreign.folder / name).open("r+b") as file:
        file.truncate(2**42)
    assert_refused(on_folder(command, foreign.folder), name, expected)


def test_a_journal_of_one_endless_line_is_not_read_to_its_end(on_folder: Call, foreign: Experiment) -> None:
    with (foreign.folder / "journal.jsonl").open("wb") as file:
        file.truncate(2**31)
    assert_refused(on_folder("leaderboard", foreign.folder), "journal.jsonl:1", "it is too long")


@pytest.mark.parametrize("kind", ["link to a folder", "link to nowhere", "FIFO"])
@pytest.mark.parametrize(
    "place", ["ray/session_1/trial_0001/checkpoint_000000", ".final-old", "trials.csv", ".backup/x"]
)
def test_a_folder_with_ways_out_is_not_plain(place: str, kind: str, foreign: Experiment, tmp_path: Path) -> None:
    put(kind, foreign.folder / place, tmp_path / "victim")
    with pytest.raises(InputError, match=f"{re.escape(place)}: is a "):
        foreign.must_be_plain()


@pytest.mark.parametrize("place", ["ray", "final", "study.db", "some/where/else"])
@pytest.mark.parametrize("command", ["retrain", "resume"])
def test_what_would_write_refuses_a_folder_with_ways_out(
    command: str, place: str, on_folder: Call, foreign: Experiment, tmp_path: Path
) -> None:
    put("link to a folder", foreign.folder / place, tmp_path / "victim")
    before = contents(tmp_path / "victim")
    assert_refused(on_folder(command, foreign.folder), place, "is a ")
    assert contents(tmp_path / "victim") == before


def test_predict_refuses_a_final_folder_elsewhere(on_folder: Call, foreign: Experiment, tmp_path: Path) -> None:
    foreign.final_folder.rename(tmp_path / "elsewhere")
    foreign.final_folder.symlink_to(tmp_path / "elsewhere")
    assert_refused(on_folder("predict", foreign.folder), "final", "is a symbolic link")


@pytest.mark.parametrize("place", ["ray", "ray/session_1", "ray/session_1/trial_0001"])
def test_checkpoints_elsewhere_are_never_removed(place: str, foreign: Experiment, tmp_path: Path) -> None:
    own = foreign.ray_folder / "session_3" / "trial_0001" / "checkpoint_000000"
    if place != "ray":
        own.mkdir(parents=True)
    target = tmp_path / "victim" / Path(place).relative_to("ray")
    path = foreign.folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    (tmp_path / "victim" / "session_1" / "precious.pkl").touch()
    before = contents(tmp_path / "victim")
    foreign.drop_checkpoints("trial_0001")
    foreign.drop_ray_snapshots()
    assert contents(tmp_path / "victim") == before
    assert not own.exists()


def test_an_experiment_that_lies_elsewhere_as_a_whole_is_fine(
    on_folder: Call, foreign: Experiment, tmp_path: Path
) -> None:
    foreign.folder.rename(tmp_path / "disk")
    foreign.folder.symlink_to(tmp_path / "disk")
    assert on_folder("leaderboard", foreign.folder)[0] == 0
    assert on_folder("predict", foreign.folder)[0] == 0
    (tmp_path / "disk" / "ray" / "session_1" / "trial_0001" / "checkpoint_000000").mkdir(parents=True)
    foreign.must_be_plain()
    foreign.drop_checkpoints("trial_0001")
    assert not list((tmp_path / "disk").glob("ray/session_*/trial_*/checkpoint_*"))
    with foreign.exclusive():
        assert (tmp_path / "disk" / ".lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_nothing_is_written_through_a_lock_or_journal_that_is_another_file_too(
    link: Callable[[Path, Path], None], foreign: Experiment, tmp_path: Path
) -> None:
    victim = tmp_path / "victim" / "precious.txt"
    victim.write_text("precious, and without a line's end")
    (foreign.folder / "journal.jsonl").unlink()
    for name in ("journal.jsonl", ".lock"):
        link(victim, foreign.folder / name)
    with pytest.raises(InputError, match=r"journal\.jsonl: "):
        Journal(foreign.folder / "journal.jsonl")
    with pytest.raises(InputError, match="lock: "), foreign.exclusive():
        pass
    assert victim.read_text() == "precious, and without a line's end"


def test_ray_gets_a_folder_that_was_not_there(tmp_path: Path) -> None:
    assert free_session(tmp_path, 1) == 1
    (tmp_path / "session_1").mkdir()
    (tmp_path / "session_2").symlink_to("nowhere")
    assert free_session(tmp_path, 1) == 3


def test_the_pickles_of_these_tests_would_go_off(tmp_path: Path) -> None:
    import ray.cloudpickle

    for number, load in enumerate((pickle.load, ray.cloudpickle.load)):
        (tmp_path / "x.pkl").write_bytes(bomb(tmp_path / str(number)))
        with (tmp_path / "x.pkl").open("rb") as file:
            load(file)
        assert (tmp_path / str(number)).is_dir()


# What retraining does, a long test below looks at.
@pytest.mark.parametrize("command", ["leaderboard", "diagnose", "predict", "resume", "repeat"])
def test_no_command_unpickles_or_imports_from_the_folder(
    command: str, on_folder: Call, foreign: Experiment, tmp_path: Path
) -> None:
    plant(foreign.folder, tmp_path / "marker")
    # A repeated search would time steps, which takes long; the folder is read before this is refused.
    refused = ("--set", "search.trials=0") if command == "repeat" else ()
    on_folder(command, foreign.folder, *refused)
    assert not (tmp_path / "marker").exists()


@pytest.mark.cluster
@pytest.mark.long
def test_a_resumed_and_retrained_folder_full_of_pickles_runs_none(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    from trainable.compute import choose_compute
    from trainable.data.datasets import prepare_training_data
    from trainable.fit_evaluate import FitEvaluate
    from trainable.seeding import RunSeed

    space = load_space("quickstart", [*TINY, "search.trials=3"])
    experiment = make_experiment(tmp_path / "results", "foreign", space)
    data = prepare_training_data(space.dataset)
    facts = experiment.manifest.data.model_copy(update={"content_sha256": data.decoded.content_sha256})
    session = Session(started_at="2026-01-01T00:00:00+00:00", seconds=1.0, end="interrupted")
    experiment.write_manifest(experiment.manifest.with_session(session, True).model_copy(update={"data": facts}))
    compute, _ = choose_compute("cpu", "fp32")
    begun = FitEvaluate(data.train, data.validation, space.baseline, RunSeed(space.search.seed, 1), compute)
    begun.run_epoch()
    begun.save(experiment.ray_folder / "session_1" / "trial_0001" / "checkpoint_000000")
    marker = tmp_path / "marker"
    plant(experiment.folder, marker)

    resumed = run("search.run", "--resume", "foreign", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert not marker.exists()
    history = experiment.history()
    assert history.n_ended == 3
    results = [path for path in experiment.ray_folder.glob("session_*/trial_0001/result.json")]
    assert [path.parts[-3] for path in results] == ["session_4"], "Ray got a folder that others had filled"
    assert json.loads(results[0].read_text().splitlines()[0])["epoch"] == 2, "the checkpoint was not used"

    retrained = run("search.retrain", "foreign", "--seeds", "1", "--epochs", "1", cwd=tmp_path)
    assert retrained.returncode == 0, retrained.stderr
    assert run("search.leaderboard", "foreign", cwd=tmp_path).returncode == 0
    Image.new("RGB", (20, 20)).save(tmp_path / "image.png")
    predicted = run("search.predict", "foreign", "image.png", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert not marker.exists()
