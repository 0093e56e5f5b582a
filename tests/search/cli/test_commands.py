"""Bad command lines and folders: one clear line each, exit code 2, and nothing left behind. No cluster."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from search import Experiment as NotebookExperiment
from search.execution.plan import ResourcePlan
from search.experiment import folder as experiment_module
from search.experiment.events import TrialEnded, TrialStarted
from search.experiment.folder import Experiment, create_experiment, open_experiment
from search.experiment.manifest import Data, Device, Session, TestSetUse, new_manifest, seconds_used, timestamp
from spaces import InputError, Space
from spaces.plain_files import Mode
from tests.support.foreign import Call
from tests.support.simulation import result
from trainable.compute import Compute


@pytest.fixture
def experiment(tiny_space: Space, tmp_path: Path) -> Experiment:
    """A search that was broken off: a completed baseline, a stopped trial and an unfinished one."""
    device = Device(device="cpu", name="CPU", trials_at_once=2)
    data = Data(n_train=320, n_validation=80, class_names=["0", "1"], mean=[0.3], std=[0.3], content_sha256="0" * 64)
    manifest = new_manifest(tiny_space, "mine", device, data)
    made = create_experiment(tmp_path / "results", "mine", tiny_space, manifest)
    journal = made.journal()
    for number in range(3):
        journal.append(
            TrialStarted(number, tiny_space.searched_values(tiny_space.baseline), tiny_space.baseline, number == 0, 0.0)
        )
    for number, accuracies in enumerate([(0.5, 0.6, 0.7), (0.1,), (0.6,)]):
        for epoch, accuracy in enumerate(accuracies, 1):
            journal.append(result(number, epoch, accuracy))
    journal.append(TrialEnded(0, "completed", "", 1.0))
    journal.append(TrialEnded(1, "stopped", "10.00% at rung 1, below its cutoff 50.00%", 1.0))
    return made


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("run", ["quikstart"], "`quikstart` is not a space"),
        ("run", ["--trials", "0", "--results", "my--resume-tests"], "`search.trials` is 0, but must be at least 1."),
        ("run", ["--trials", "many"], "argument --trials: invalid int value: 'many'"),
        ("run", ["--time-budget", "soon"], "must be a duration such as 30m, 1h30m or 90s"),
        ("run", ["--seed", "-1"], "`search.seed` is -1, but must be at least 0."),
        ("run", ["--name", "own"], "--name is own, which means something else in `search.memory`"),
        ("run", ["--name", "../up"], "--name is '../up', but must be 1 to 100 letters"),
        (
            "run",
            ["--name", "mine"],
            "Choose another name, or resume it: python -m search.run --resume mine",
        ),
        ("run", ["--resume", "nobody"], "`nobody` is not an experiment: results/ has mine."),
        ("run", ["--resume", "mine", "--trials", "3"], "does not take --trials. More trials: --add-trials N"),
        ("run", ["--resume", "mine", "--dry-run"], "does not take --dry-run."),
        ("run", ["--resume", "mine", "--add-trials", "0"], "--add-trials is 0, but must be at least 1."),
        ("run", ["--resume", "mine", "--epoch-budget", "9"], "does not take --epoch-budget. More trials"),
        ("run", ["--resume", "mine", "--add-epochs", "0"], "--add-epochs is 0, but must be at least 1."),
        (
            "run",
            ["--resume", "mine", "--add-epochs", "9"],
            "no `search.epoch_budget` that --add-epochs could raise",
        ),
        ("run", ["--add-trials", "3"], "change a search that there is: give --resume NAME."),
        ("run", ["--add-epochs", "3"], "change a search that there is: give --resume NAME."),
        ("run", ["--resume", "mine", "--time-budget", "x"], "--time-budget is x"),
        ("run", ["--resume=mine", "--set", "search.trials=0"], "`search.trials` is 0, but must be at least 1."),
        ("run", ["--set", "training.max_epochs=10"], "the nearest are 9 and 27"),
        ("run", ["--nonsense"], "unrecognized arguments: --nonsense. See --help."),
        (
            "run",
            ["--set", "dataset.name=folder", "--set", "dataset.root=/nowhere"],
            "must be a folder that holds",
        ),
        (
            "run",
            ["--set", "dataset.name=folder", "--set", "dataset.root=~nosuchuser/x"],
            "~nosuchuser/x: begins with the",
        ),
        ("run", ["--resume", "mine"], "was begun on other images than `dataset.root` has now"),
        ("leaderboard", ["--top", "0"], "--top is 0, but must be at least 1."),
        ("leaderboard", ["--sort", "beauty"], "--sort is beauty, but must be one of rank, trial"),
        ("leaderboard", ["--format", "xml"], "invalid choice: 'xml'"),
        (
            "leaderboard",
            ["--results", "empty"],
            "empty/ holds no experiment. Start one with: python -m search.run",
        ),
        ("diagnose", ["nobody"], "`nobody` is not an experiment: results/ has mine."),
        ("diagnose", ["--format", "xml"], "invalid choice: 'xml'"),
        ("diagnose", ["--results", "empty"], "empty/ holds no experiment."),
        ("why", ["mine", "--results", "results", "9"], "TRIAL is 9, but mine has trials 0 to 2."),
        ("why", ["mine", "9"], "TRIAL is 9, but mine has trials 0 to 2."),
        ("why", ["mine", "-1"], "TRIAL is -1, but mine has trials 0 to 2."),
        ("why", ["mine", "best"], "argument TRIAL: invalid int value: 'best'"),
        ("why", ["mine"], "argument TRIAL: invalid int value: 'mine'"),
        ("why", ["nobody", "0"], "`nobody` is not an experiment: results/ has mine."),
        ("retrain", ["--trial", "9"], "--trial is 9, but must be between 0 and 2."),
        ("leaderboard", ["~nosuchuser/x"], "begins with the home of a user that this machine does not have"),
        ("retrain", ["--seeds", "0"], "--seeds is 0, but must be at least 1."),
        ("retrain", ["--epochs", "-3"], "--epochs is -3, but must be at least 1."),
        ("retrain", ["--passes", "2.5"], "argument --passes: invalid int value: '2.5'"),
        ("retrain", ["--passes", "2", "--epochs", "2"], "argument --epochs: not allowed with argument --passes"),
        ("report", ["nobody"], "`nobody` is not an experiment: results/ has mine."),
        ("report", ["mine", "--output", "no/where.html"], "--output is no/where.html, but no is not a folder."),
        ("predict", ["mine", "x.png"], "Make it first: python -m search.retrain mine"),
        ("predict", ["mine"], "the following arguments are required: IMAGE"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(
    command: str,
    arguments: list[str],
    expected: str,
    call: Call,
    experiment: Experiment,
    tmp_path: Path,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, output, errors = call(command, *arguments)
    assert code == 2
    assert output == ""
    assert len(errors.splitlines()) == 1, errors
    assert expected in errors
    assert sorted(path for path in tmp_path.rglob("*") if path.name != ".lock") == before


def test_cuda_is_refused_where_there_is_none(call: Call) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code, _, errors = call("run", "--device", "cuda")
    assert code == 2
    assert "torch finds no CUDA device here. Use --device cpu or auto." in errors


def test_debug_shows_the_trace(call: Call) -> None:
    code, _, errors = call("run", "nobody", "--debug")
    assert code == 2
    assert "Traceback" in errors


def test_the_leaderboard_of_a_search_that_was_broken_off(call: Call, experiment: Experiment) -> None:
    code, output, errors = call("leaderboard")
    assert code == 0, errors
    assert output.startswith("mine: 2 of 8 trials ended\n")
    assert "unfinished" in output
    assert "It is the baseline: no searched configuration ranks above it." in output
    code, output, _ = call("leaderboard", "--format", "json", "--sort", "validation_loss", "--top", "2")
    rows = json.loads(output)["trials"]
    assert [row["status"] for row in rows] == ["completed", "running"]


def test_letters_that_the_output_cannot_have_are_escaped(experiment: Experiment, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "search.leaderboard", experiment.name]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\\xb1" in shown.stdout, "±"


def test_a_search_in_which_nothing_learned_names_no_winner(call: Call, experiment: Experiment) -> None:
    manifest = experiment.manifest
    experiment.write_manifest(manifest.model_copy(update={"data": manifest.data.model_copy(update={"chance": 0.842})}))
    nothing = "No trial wins: 3 of 3 trials are at chance (at most 84.20%"
    assert nothing in call("leaderboard", "mine")[1]
    assert nothing in call("diagnose", "mine")[1]
    assert NotebookExperiment(experiment.folder).best is None
    code, _, errors = call("retrain", "mine")
    assert code == 2
    (line,) = errors.splitlines()
    assert nothing in line
    assert line.endswith("To retrain one all the same: --trial ID")
    assert call("report", "mine")[0] == 0
    page = (experiment.folder / "report.html").read_text()
    assert nothing in page
    assert "no winner: the best is at chance" in page


def test_the_diagnosis_of_a_search_that_was_broken_off_and_of_one_without_trials(
    call: Call, experiment: Experiment, tiny_space: Space
) -> None:
    code, output, errors = call("diagnose")
    assert code == 0, errors
    lines = output.splitlines()
    assert lines[0] == "mine: 2 of 8 trials ended, 5 epochs"
    assert "- Stopping saved 2 epochs of 7 (29%)." in lines
    assert lines.index("Cannot be told yet:") > lines.index("Fine as it is:")
    with experiment.exclusive():
        code, output, _ = call("diagnose", "mine", "--format", "json")
    content = json.loads(output)
    assert code == 0
    assert content["running"] is True
    assert {"name", "verdict", "sentence", "advice", "numbers"} == content["findings"][0].keys()
    by_name = {finding["name"]: finding for finding in content["findings"]}
    assert by_name["savings"]["numbers"]["saved"] == 2
    assert by_name["edges"]["verdict"] == "unknown"

    create_experiment(experiment.folder.parent, "begun", tiny_space, experiment.manifest)
    code, output, errors = call("diagnose", "begun")
    assert code == 0, errors
    assert output.startswith("begun: 0 of 8 trials ended, 0 epochs\n")
    assert "To change" not in output


def test_a_name_needs_no_results_folder_to_be_a_path(experiment: Experiment, tmp_path: Path) -> None:
    assert open_experiment("mine", tmp_path / "results").folder == experiment.folder
    assert open_experiment(str(experiment.folder), tmp_path / "elsewhere").folder == experiment.folder
    with pytest.raises(InputError, match="has none yet"):
        open_experiment("mine", tmp_path / "elsewhere")


def test_a_damaged_manifest_or_journal_is_named(call: Call, experiment: Experiment) -> None:
    shutil.rmtree(experiment.folder / ".backup")
    (experiment.folder / "manifest.json").write_text("{")
    code, _, errors = call("retrain")
    assert code == 2
    assert "manifest.json: is not a manifest of a search (the file: Invalid JSON" in errors
    (experiment.folder / "journal.jsonl").write_text("{}\n")
    code, _, errors = call("leaderboard")
    assert code == 2
    assert "journal.jsonl:1: is not an event of a search" in errors


def test_a_folder_is_held_by_one_process_at_a_time_and_a_search_can_begin_while_a_reader_asks_whether_one_runs(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, began = experiment_module.open_plain, []

    @contextmanager
    def with_a_writer_beside(path: Path, mode: Mode = "rb") -> Iterator[IO[bytes]]:
        with opened(path, mode) as file:
            yield file
            if mode == "rb":
                with Experiment(experiment.folder).exclusive():
                    began.append(path.name)

    with experiment.exclusive():
        assert experiment.is_live()
        with pytest.raises(InputError, match="is in use by process"), Experiment(experiment.folder).exclusive():
            pass
    monkeypatch.setattr(experiment_module, "open_plain", with_a_writer_beside)
    assert not experiment.is_live()
    assert began == [".lock"]


@pytest.mark.parametrize(
    ("key", "value"), [("data", []), ("sessions", [{"started_at": 3}]), ("test_openings", [{}]), ("name", 1)]
)
def test_a_manifest_of_another_shape_is_refused(key: str, value: object, call: Call, experiment: Experiment) -> None:
    path = experiment.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    (experiment.folder / ".backup" / "manifest.json").unlink()
    code, _, errors = call("retrain")
    assert code == 2
    assert f"manifest.json: is not a manifest of a search ({key}" in errors
    assert len(errors.splitlines()) == 1


def test_resuming_with_a_changed_space_is_refused(call: Call, experiment: Experiment) -> None:
    path = experiment.folder / "experiment.yaml"
    path.write_text(path.read_text().replace("    - 0.002\n", "    - 0.02\n").replace("  lr: 0.01\n", "  lr: 0.03\n"))
    before = sorted((file, file.stat().st_mtime_ns) for file in experiment.folder.rglob("*") if file.name != ".lock")
    code, _, errors = call("run", "--resume", "mine")
    assert code == 2
    changes = ["`space.lr` was {loguniform: [0.002, 0.5]} and is {loguniform: [0.02, 0.5]}", "`baseline.lr` was 0.01"]
    assert all(change in errors for change in changes)
    assert "give --allow-changed-space" in errors.splitlines()[-1]
    after = sorted((file, file.stat().st_mtime_ns) for file in experiment.folder.rglob("*") if file.name != ".lock")
    assert after == before, "a refusal changes nothing"
    code, _, errors = call("run", "--resume=mine", "--set", "dataset.train_limit=300", "--allow-changed-space")
    assert code == 2
    assert "`dataset.train_limit` was 400 and is 300" in errors
    assert "start a new search" in errors, "whatever is allowed: trials would not compare"


def test_a_damaged_file_is_told_and_its_copy_shown(call: Call, experiment: Experiment) -> None:
    (experiment.folder / "journal.jsonl").write_text("garbage\n")
    code, output, errors = call("leaderboard")
    assert code == 0
    assert output.startswith("mine: 2 of 8 trials ended\n")
    assert errors.count("\n") == 1
    assert "journal.jsonl:1: is not an event of a search" in errors
    assert "its copy .backup/journal.jsonl is used" in errors


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([], 0),
        # The last event stands at 201 s: a killed session counts until then, or until the next one begins.
        ([(0.0, None), (400.0, 12.5), (500.0, None)], 213.5),
        ([(0.0, None), (201.000001, None)], 201),
    ],
)
def test_a_killed_session_counts_until_its_last_event(
    sessions: list[tuple[float, float | None]], expected: float, experiment: Experiment
) -> None:
    given = [Session(started_at=timestamp(at), seconds=seconds) for at, seconds in sessions]
    assert seconds_used(given, experiment.history()) == expected


def test_a_session_that_runs_counts_until_now(experiment: Experiment) -> None:
    killed, running = Session(started_at=timestamp(0.0)), Session(started_at=timestamp(500.0))
    assert seconds_used([killed, running], experiment.history(), now=530.0) == 231
    assert seconds_used([running], experiment.history(), now=499.0) == 0, "its machine's clock may be ahead"


def test_an_opening_of_the_test_set_is_replaced_by_its_result(experiment: Experiment) -> None:
    opening = TestSetUse(at="now", trial=0, config={}, epochs=1, seeds=1, reason=None)
    manifest = experiment.manifest.with_use_of_test_set(opening, new=True)
    finished = opening.model_copy(update={"test_accuracy_mean": 0.5})
    manifest = manifest.with_use_of_test_set(finished, new=False).with_use_of_test_set(opening, new=True)
    assert [o.test_accuracy_mean for o in manifest.test_openings] == [0.5, None]


def test_every_share_of_a_gpu_lets_all_trials_run_at_once_after_ray_has_rounded_it() -> None:
    for n_gpus, at_once, share in ((1, 4, 0.25), (2, 3, 0.5), (2, 5, 1 / 3), (4, 3, 1.0)):
        resource_plan = ResourcePlan(Compute("cuda"), "", "GPU", 16, n_gpus, at_once)
        assert resource_plan.resources_per_trial["gpu"] == pytest.approx(share, abs=1e-4)
    for at_once in range(1, 65):
        shares = ResourcePlan(Compute("cuda"), "", "GPU", 16, 1, at_once).resources_per_trial
        assert round(shares["gpu"] * 10_000) * at_once <= 10_000
        assert round(shares["cpu"] * 10_000) >= 1
