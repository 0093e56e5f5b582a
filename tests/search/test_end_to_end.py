"""The commands as users run them, on a real Ray cluster: the files they leave, and what other programs make of them."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import optuna
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from search.experiment.events import EpochDone, Event, ReplicateEpochDone
from search.experiment.history import History
from search.experiment.journal import event_from_line, read_history
from search.policy.study import Proposer
from spaces import Dataset, Hyperparameters, Space, load_space
from tests.conftest import TINY, set_options
from tests.support.foreign import Call
from tests.support.processes import Listener, listen_to_ctrl_c, listeners, marked_commands, wait_until
from trainable.compute import choose_compute
from trainable.data.cache import decode_once
from trainable.data.datasets import prepare_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.network.model import DepthwiseSeparableNet, Normalise
from trainable.seeding import Purpose, RunSeed

pytestmark = pytest.mark.cluster

Run = Callable[..., subprocess.CompletedProcess[str]]


def events_until(journal: Path, event: str, trial: int) -> Iterator[Event]:
    """The journal's events before the one of this name and trial."""
    for line in journal.read_bytes().splitlines():
        content = json.loads(line)
        if content["event"] == event and content["trial"] == trial:
            return
        yield event_from_line(line)


@dataclass
class Watched:
    """A search command that ran to its end, and what was seen of it meanwhile."""

    folder: Path
    output: str
    errors: str
    exit_code: int
    checkpoints: dict[int, dict[str, Any]]
    temporary: Path
    listeners: list[Listener]
    strangers: str

    @cached_property
    def history(self) -> History:
        return read_history(self.folder / "journal.jsonl")

    @cached_property
    def space(self) -> Space:
        return load_space(str(self.folder))


def start(command: str, *arguments: str, cwd: Path, temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"search.{command}", *arguments],
        cwd=cwd,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listen_to_ctrl_c,
    )


def seen_checkpoints(folder: Path) -> Iterator[dict[str, Any]]:
    for path in folder.glob("ray/session_*/trial_*/checkpoint_*/state.json"):
        try:
            yield {"trial": int(path.parts[-3].removeprefix("trial_")), **json.loads(path.read_text())}
        except (FileNotFoundError, json.JSONDecodeError):
            continue  # being written or removed right now


STRANGERS = """
import os, sys
from ray._raylet import AuthenticationTokenLoader, GcsClient

for attempt in range(2):
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None)
        print("in")
    except Exception as error:
        print("refused")
    os.environ.pop("RAY_AUTH_TOKEN", None)
"""


def start_strangers(folder: Path) -> subprocess.Popen[str]:
    """Knocks at the cluster in a guarded folder, with another token and with the right one; prints what came of it."""
    (server,) = [pid for pid, command in marked_commands(folder).items() if "/gcs_server " in command]
    (door,) = listeners([server])
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": 64 * "0",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    command = [sys.executable, "-c", STRANGERS, f"{door.address}:{door.port}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    results = tmp_path_factory.mktemp("finished") / "results"
    temporary = Path(tempfile.mkdtemp(prefix="t"))
    arguments = ("--name", "tiny", "--results", str(results))
    sampler = ("search.sampler=curves", "search.startup_trials=4")
    process = start("run", *arguments, *set_options(*TINY, *sampler), cwd=results.parent, temporary=temporary)
    checkpoints: dict[int, dict[str, Any]] = {}
    seen_listeners: list[Listener] = []
    strangers: subprocess.Popen[str] | None = None
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        for state in seen_checkpoints(results / "tiny"):
            checkpoints[state["trial"]] = state
        if len(checkpoints) >= 2 and strangers is None:  # by now, all of Ray runs
            (folder,) = temporary.glob("dws-*")
            seen_listeners = listeners([process.pid, *marked_commands(folder)])
            strangers = start_strangers(folder)
        time.sleep(0.05)
    output, errors = process.communicate(timeout=30)
    answers, _ = strangers.communicate(timeout=60) if strangers else ("", None)
    yield Watched(results / "tiny", output, errors, process.returncode, checkpoints, temporary, seen_listeners, answers)
    shutil.rmtree(temporary)


def test_a_search_ends_well_stops_some_trials_early_and_says_what_to_do_next(finished: Watched) -> None:
    assert finished.exit_code == 0, finished.errors
    assert finished.errors == ""
    assert finished.output.count("[") >= 8, "a line a trial that ends"
    assert f"Next: python -m search.leaderboard tiny --results {finished.folder.parent}" in finished.output
    assert "\x1b" not in finished.output
    trials = finished.history.trials
    assert len(trials) == 8
    assert {trial.status for trial in trials.values()} == {"completed", "stopped"}
    assert trials[0].baseline
    assert trials[0].status == "completed"


def test_weights_were_trained_with_what_optuna_suggested_also_in_reused_actors(
    finished: Watched,
) -> None:
    trials, space = finished.history.trials, finished.space
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{finished.folder / 'study.db'}")
    assert len(finished.checkpoints) >= 4, "too few checkpoints were seen to say anything"
    for number, state in finished.checkpoints.items():
        suggested = study.trials[number].params
        assert suggested == trials[number].suggested
        assert state["hyperparameters"] == space.complete(suggested).as_dict()
        assert state["seed"][:2] == [space.search.seed, number]

    workers: dict[int, set[int]] = {}
    for path in finished.folder.glob("ray/session_1/trial_*/result.json"):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            workers.setdefault(result["pid"], set()).add(result["trial"])
            assert result["config"]["hyperparameters"] == trials[result["trial"]].config.as_dict()
    assert max(len(numbers) for numbers in workers.values()) >= 2, "no actor was reused"
    for trial in trials.values():
        for epoch in trial.epochs:
            n_steps = (epoch.epoch - 1) // trial.config.step_size
            assert epoch.lr == pytest.approx(trial.config.lr * trial.config.gamma**n_steps)


def assert_trained_as_alone(history: History, space: Space, number: int) -> None:
    """Train a trial's configuration here without Ray, and compare every epoch."""
    trial = history.trials[number]
    assert_trained_by(space, trial.config, "TRIAL", number, trial.epochs)


def assert_trained_by(
    space: Space,
    config: Hyperparameters,
    purpose: str,
    seed_number: int,
    epochs: Sequence[EpochDone] | Sequence[ReplicateEpochDone],
) -> None:
    data = prepare_training_data(space.dataset)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compute, _ = choose_compute("cpu", space.training.precision)
        seed = RunSeed(space.search.seed, seed_number, Purpose[purpose])
        run = FitEvaluate(data.train, data.validation, config, seed, compute)
        for epoch in epochs:
            result = run.run_epoch()
            assert result.train_loss == epoch.train_loss
            assert result.validation_accuracy == epoch.validation_accuracy
    finally:
        torch.set_num_threads(threads)


def test_a_trial_is_what_fit_evaluate_alone_makes_of_its_configuration(finished: Watched) -> None:
    assert_trained_as_alone(finished.history, finished.space, max(finished.history.trials))


def test_the_folder_is_readable_without_our_code(finished: Watched) -> None:
    with (finished.folder / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    with (finished.folder / "curves.csv").open() as file:
        assert len(list(csv.DictReader(file))) == finished.history.n_epochs
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["seeds"] == {"experiment": 0, "split": 0}
    assert manifest["versions"]["torch"]
    assert len(manifest["data"]["content_sha256"]) == 64
    assert [session["end"] for session in manifest["sessions"]] == ["finished"]
    (session,) = manifest["sessions"]
    assert session["seconds"] > 1
    trained_s = sum(epoch.seconds for epoch in finished.history.results_in_order)
    trained = trained_s / session["seconds"] / manifest["device"]["trials_at_once"]
    assert session["overhead_share"] + session["idle_share"] + trained == pytest.approx(1, abs=0.02)
    assert 0 < session["overhead_share"] < 1
    assert 0 <= session["idle_share"] < 1
    assert manifest["device"]["precision"] in ("fp32", "bf16")
    assert manifest["device"]["precision_reason"]


def test_nobody_else_is_let_in_and_nothing_is_left_behind(finished: Watched) -> None:
    assert len(finished.listeners) >= 7, "too few were seen to say anything"
    assert [listener for listener in finished.listeners if not listener.address.is_loopback] == []
    assert finished.strangers.split() == ["refused", "in"], "without and with the search's own token"
    assert list(finished.temporary.iterdir()) == []
    assert not list(finished.folder.glob("ray/session_*/trial_*/checkpoint_*")), "checkpoints of ended trials"
    with_our_folder = subprocess.run(["pgrep", "-f", str(finished.temporary)], capture_output=True, text=True)
    assert with_our_folder.stdout == "", "Ray processes live on"


@pytest.mark.parametrize("moved", [False, True])
def test_the_leaderboard_s_json_has_every_trial(finished: Watched, call: Call, tmp_path: Path, moved: bool) -> None:
    arguments = ["--results", str(finished.folder.parent)]  # the newest experiment there
    if moved:
        folder = shutil.copytree(finished.folder, tmp_path / "copied", ignore=shutil.ignore_patterns("ray"))
        arguments = [str(folder)]
    code, output, errors = call("leaderboard", *arguments, "--format", "json")
    assert code == 0, errors
    content = json.loads(output)
    assert content["experiment"] == ("copied" if moved else "tiny")
    assert [row["rank"] for row in content["trials"]] == list(range(1, 9))
    completed = [row["validation_accuracy"] for row in content["trials"] if row["status"] == "completed"]
    assert completed == sorted(completed, reverse=True)
    assert sum(row["baseline"] for row in content["trials"]) == 1


def test_the_leaderboard_needs_neither_ray_nor_torch_nor_optuna(finished: Watched, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['ray', 'torch', 'optuna', 'albumentations']))\n"
        "from search.leaderboard import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, str(finished.folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "8 of 8 trials ended" in result.stdout
    assert "points above the baseline" in result.stdout or "no searched configuration ranks above it" in result.stdout


def test_the_resolved_space_repeats_the_search(finished: Watched, call: Call, tmp_path: Path) -> None:
    code, output, errors = call("run", str(finished.folder / "experiment.yaml"), "--dry-run")
    assert code == 0, errors
    assert "320 training and 80 validation images of 17 x 17" in output
    assert "trials      8, the baseline first, at most 3 epochs each" in output
    assert not (tmp_path / "results").exists(), "a dry run leaves nothing"


def test_a_finished_search_takes_no_trial_again(finished: Watched, call: Call, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "results" / "again")
    before = (folder / "journal.jsonl").read_bytes()
    code, _, errors = call("run", "--resume", "again")
    assert code == 0, errors
    assert (folder / "journal.jsonl").read_bytes() == before


@pytest.mark.long
def test_trials_added_to_a_finished_search_are_proposed_with_all_that_it_knows(
    finished: Watched, run: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "results" / "again")
    before = (folder / "journal.jsonl").read_bytes()
    more = run("search.run", "--resume", "again", "--add-trials", "2", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert (folder / "journal.jsonl").read_bytes().startswith(before)
    history = read_history(folder / "journal.jsonl")
    assert len(history.trials) == 10
    assert not history.unfinished
    space = load_space(str(folder))
    assert space.search.trials == 10
    afresh = Proposer(space, History(events_until(folder / "journal.jsonl", "trial_started", 8)))
    assert history.trials[8].suggested == afresh.propose(8)


@pytest.mark.long
def test_a_search_resumes_in_a_changed_space_with_the_trials_that_lie_in_it(
    finished: Watched, call: Call, run: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "results" / "again")
    narrowed = ("--set", "space.momentum={uniform: [0.5, 0.9]}")
    code, _, errors = call("run", "--resume", "again", *narrowed)
    assert code == 2
    assert "`space.momentum` was {uniform: [0.5, 0.98]} and is {uniform: [0.5, 0.9]}" in errors
    changed = run("search.run", "--resume", "again", *narrowed, "--allow-changed-space", cwd=tmp_path)
    assert changed.returncode == 0, changed.stderr
    after = read_history(folder / "journal.jsonl")
    outside = [trial.number for trial in finished.history.trials.values() if not 0.5 <= trial.config.momentum <= 0.9]
    assert outside
    assert [trial.number for trial in after.trials.values() if trial.excluded] == outside
    assert len(after.counting) == 8
    assert all(0.5 <= trial.config.momentum <= 0.9 for trial in after.counting)
    assert load_space(str(folder)).as_dict() == after.space


@pytest.fixture(scope="module")
def retrained(finished: Watched, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("retrained")
    shutil.copytree(finished.folder, parent / "results" / "tiny")
    result = run("search.retrain", "--seeds", "2", cwd=parent)
    assert result.returncode == 0, result.stderr
    assert "Test accuracy" in result.stdout
    assert result.stderr == ""
    return parent / "results" / "tiny"


def digits_for_testing() -> tuple[np.ndarray, np.ndarray]:
    decoded = decode_once(Dataset(name="digits", image_size=17), "test")
    return np.array(decoded.images), decoded.labels


def test_retraining_writes_all_of_final(retrained: Path) -> None:
    final = retrained / "final"
    assert {path.name for path in final.iterdir()} == {
        "config.json",
        "metrics.json",
        "model.safetensors",
        "model.onnx",
        "model.pt2",
        "README.md",
        "learning_curve.png",
        "confusion_matrix.png",
        "test_predictions.csv",
        "mistakes",
    }
    assert not (retrained / ".retraining").exists()
    metrics = json.loads((final / "metrics.json").read_text())
    accuracies = [score["accuracy"] for score in metrics["test_accuracy_per_seed"]]
    assert len(accuracies) == 2
    assert metrics["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert metrics["trained_on"]["n_images"] == metrics["trained_on"]["images_per_epoch"] == 400
    assert metrics["precision"] == json.loads((retrained / "manifest.json").read_text())["device"]["precision"]
    confusion = np.array(metrics["confusion_matrix"])
    assert confusion.sum() == metrics["tested_on"]["n_images"] == 359
    assert np.trace(confusion) / confusion.sum() == pytest.approx(accuracies[0])
    answers = (final / "test_predictions.csv").read_text().splitlines()[1:]
    n_wrong = sum(row.split(",")[1] != row.split(",")[2] for row in answers)
    assert n_wrong == 359 - np.trace(confusion) > 0
    mistakes = metrics["surest_mistakes"]
    assert len(mistakes) == min(16, n_wrong)
    for mistake in mistakes:
        expected = digits_for_testing()[0][mistake["image"]]
        np.testing.assert_array_equal(np.asarray(Image.open(final / mistake["file"])), expected)
    for export in metrics["exports"].values():
        assert export["max_difference"] <= 1e-3
        assert export["n_other_class"] <= 1
        assert export["n_images"] == 256
    assert "Test accuracy" in (final / "README.md").read_text()
    assert not list(retrained.glob(".final-*"))


def test_each_exported_model_gets_the_stated_accuracy_and_carries_no_path_of_this_machine(retrained: Path) -> None:
    final = retrained / "final"
    images, labels = digits_for_testing()
    tensor = torch.from_numpy(images)
    config = json.loads((final / "config.json").read_text())
    network = DepthwiseSeparableNet(len(config["class_names"]), pooling=config["pooling"]).eval()
    network.load_state_dict(load_file(final / "model.safetensors"))
    normalise = Normalise(config["preprocessing"]["mean"], config["preprocessing"]["std"])
    session = onnxruntime.InferenceSession(final / "model.onnx")
    answers = {
        "model.onnx": session.run(None, {"images": images})[0],
        "model.pt2": torch.export.load(final / "model.pt2").module()(tensor).detach().numpy(),
        "model.safetensors": network(normalise(tensor)).detach().numpy(),
    }
    assert session.run(None, {"images": images[:1]})[0].shape == (1, 10)
    stated = json.loads((final / "metrics.json").read_text())["exported_test_accuracy"]
    for name, log_probabilities in answers.items():
        assert np.allclose(np.exp(log_probabilities).sum(1), 1, atol=1e-4), name
        assert (log_probabilities.argmax(1) == labels).mean() == pytest.approx(stated), name

    with zipfile.ZipFile(final / "model.pt2") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    contents += [(final / name).read_bytes() for name in ("model.onnx", "model.safetensors")]
    for path in (Path(__file__).parents[2], Path(sys.prefix), Path.home() / ".cache"):
        assert not [content for content in contents if str(path).encode() in content]


ONNX_PROGRAM = """
import sys
import numpy as np
import onnxruntime
images, labels = np.load(sys.argv[2]), np.load(sys.argv[3])
answers = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"images": images})[0]
print((answers.argmax(1) == labels).mean(), not any(name in sys.modules for name in ("torch", "search", "trainable")))
"""


def test_a_program_with_onnxruntime_alone_gets_the_stated_accuracy(retrained: Path, tmp_path: Path) -> None:
    for name, content in zip(("images.npy", "labels.npy"), digits_for_testing(), strict=True):
        np.save(tmp_path / name, content)
    program = [sys.executable, "-I", "-c", ONNX_PROGRAM, str(retrained / "final" / "model.onnx")]
    result = subprocess.run(
        [*program, "images.npy", "labels.npy"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    accuracy, is_alone = result.stdout.split()
    stated = json.loads((retrained / "final" / "metrics.json").read_text())["exported_test_accuracy"]
    assert float(accuracy) == pytest.approx(stated)
    assert is_alone == "True"


def test_predict_agrees_with_the_model_and_names_every_file_that_it_cannot_read(
    retrained: Path, call: Call, tmp_path: Path
) -> None:
    images, _ = digits_for_testing()
    files = [f"{i}.png" for i in range(6)]
    for name, image in zip(files, images, strict=False):
        Image.fromarray(image).save(tmp_path / name)
    code, output, errors = call("predict", str(retrained), *files, "--format", "json", "--top", "10")
    assert code == 0, errors
    session = onnxruntime.InferenceSession(retrained / "final" / "model.onnx")
    expected = np.exp(session.run(None, {"images": images[:6]})[0])
    for row, name, probabilities in zip(json.loads(output), files, expected, strict=True):
        assert row["image"] == name
        assert row["classes"][0]["class"] == str(probabilities.argmax())
        assert sum(entry["probability"] for entry in row["classes"]) == pytest.approx(1, abs=1e-4)

    (tmp_path / "bad.png").write_bytes(b"no image")
    code, output, errors = call("predict", str(retrained), "bad.png", "0.png", "missing.png")
    assert code == 2
    assert output.startswith("0.png: ")
    bad, missing = errors.splitlines()
    assert bad == "bad.png: is not an image."
    assert missing.startswith("missing.png: cannot be decoded")


def test_the_test_set_is_opened_once(retrained: Path, call: Call) -> None:
    code, _, errors = call("retrain", str(retrained))
    assert code == 2
    assert "its test set was opened on" in errors
    assert len(json.loads((retrained / "manifest.json").read_text())["test_openings"]) == 1


@pytest.mark.long
def test_the_test_set_is_opened_again_for_a_reason_that_is_shown(
    retrained: Path, call: Call, run: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(retrained, tmp_path / "again")
    reason = "a look at one epoch"
    again = run("search.retrain", str(folder), "--seeds", "1", "--epochs", "1", "--again", reason, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    openings = json.loads((folder / "manifest.json").read_text())["test_openings"]
    assert [opening["reason"] for opening in openings] == [None, reason]
    board = call("leaderboard", str(folder))[1]
    assert board.count("Test set opened ") == 2
    assert f"once more because: {reason}" in board
    assert reason in (folder / "final" / "README.md").read_text()
    assert json.loads((folder / "final" / "metrics.json").read_text())["test_accuracy_interval_95"] is None


def wait_for_results(journal: Path, n_results: int, process: subprocess.Popen[str], event: str = '"epoch_done') -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_text().count(event) >= n_results:
            return
        time.sleep(0.05)
    raise AssertionError(f"the search gave no {n_results} results: {process.communicate(timeout=10)}")


@pytest.mark.long
def test_ctrl_c_ends_a_retraining_that_leaves_its_checkpoints_and_the_test_set_unopened(
    finished: Watched, tmp_path: Path, temporary: Path
) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "results" / "tiny")
    process = start("retrain", "--epochs", "500", cwd=tmp_path, temporary=temporary)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("seed "):
        assert process.poll() is None
    (guarded,) = temporary.glob("dws-*")
    assert len(marked_commands(guarded)) >= 2
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "Interrupted.\n"
    go_on = r"Resume with: python -m search\.retrain tiny --trial \d --seeds 3 --epochs 500"
    assert re.fullmatch(go_on, output.splitlines()[-1])
    wait_until(lambda: not (list(temporary.iterdir()) or marked_commands(guarded)), 20)
    assert list(folder.glob(".retraining/*/seed_*/checkpoint_*/state.json"))
    assert not list(folder.glob(".final-*"))
    assert json.loads((folder / "manifest.json").read_text())["test_openings"] == []
