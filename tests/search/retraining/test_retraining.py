"""Retraining: saved each epoch, resumed, and the one look at the test set on record before it and finished after it."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from search.experiment.folder import Experiment
from search.experiment.manifest import Manifest
from search.retraining import retraining, session, training_runs
from search.retraining.retraining import WORK_FOLDER, Retraining, must_be_allowed, retrain
from search.retraining.training_runs import Progress, read_curve, restored, saved_epochs, train, train_all
from spaces import Dataset, Hyperparameters, InputError, Space, load_space
from spaces.errors import RunError
from tests.conftest import TINY
from tests.support.foreign import Call, bomb, make_experiment
from tests.support.processes import wait_until
from trainable.compute import Compute
from trainable.data.datasets import prepare_training_data

N_SEEDS, N_EPOCHS = 2, 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_space: Space) -> Retraining:
    """All seeds are trained, nothing is tested; not to be changed."""
    experiment = make_experiment(tmp_path_factory.mktemp("trained"), "mine", tiny_space)
    dataset = Dataset(name="digits", image_size=17, train_limit=60)
    plan = Retraining(
        experiment=experiment,
        space=tiny_space,
        dataset=dataset,
        trial=experiment.history().trials[0],
        data=prepare_training_data(dataset),
        n_seeds=N_SEEDS,
        epochs=N_EPOCHS,
        compute=Compute(),
        n_cores=1,
        again=None,
    )
    for run in plan.runs:
        train(run, lambda progress: None)
    return plan


@pytest.fixture
def plan(trained: Retraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Retraining:
    """A copy of it. What would take seconds, exports and pictures, is left out."""
    for function in ("export_all", "draw_learning_curve", "draw_confusion_matrix"):
        monkeypatch.setattr(retraining, function, lambda *_: {})
    folder = shutil.copytree(trained.experiment.folder, tmp_path / "mine")
    return replace(trained, experiment=Experiment(folder))


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_trains_the_network_that_the_space_describes(trained: Retraining) -> None:
    training = trained.space.training.model_copy(update={"pooling": "max"})
    other = replace(trained, space=replace(trained.space, training=training))
    assert restored(trained.runs[0], trained.data.everything, 0).network.pooling == "average"
    assert restored(other.runs[0], other.data.everything, 0).network.pooling == "max"
    assert other.folder != trained.folder, "checkpoints of the one are not taken for the other"


def never(*_: Any) -> None:
    pytest.fail("this must not be reached")


class ProcessEnds(BaseException):
    """Stands for a kill: no handler of the program's own takes it."""


def end(*_: Any, **__: Any) -> None:
    raise ProcessEnds


def killed_in(function: str, plan: Retraining) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retraining, function, end)
        with pytest.raises(ProcessEnds):
            retrain(plan, never)


def test_the_test_set_is_opened_after_that_is_on_record(plan: Retraining, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish(manifest: Manifest) -> None:
        raise RunError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(plan.experiment, "publish_manifest", publish)
        patch.setattr(retraining, "open_test_set", never)
        with pytest.raises(RunError, match="no route to host"):
            retraining._opened_test_set(plan)

    monkeypatch.setattr(retraining, "open_test_set", lambda dataset: len(plan.experiment.manifest.test_openings))
    opening, n_on_record = retraining._opened_test_set(plan)
    assert n_on_record == 1
    assert plan.experiment.manifest.test_openings == [opening]
    assert len(opening.checkpoints_sha256) == N_SEEDS


BEFORE_THE_OPENING = ("draw_learning_curve", "_config", "export_all", "git_commit")
AFTER_THE_OPENING = ("open_test_set", "results_on_test_set", "write_json")
AFTER_THE_RESULT = ("predictions_csv", "write_mistakes", "draw_confusion_matrix", "model_card", "_put_in_place")


def test_a_kill_before_the_opening_costs_no_look_and_one_after_it_is_finished_by_the_same_checkpoints(
    plan: Retraining,
) -> None:
    for function in BEFORE_THE_OPENING:
        killed_in(function, plan)
        assert plan.experiment.manifest.test_openings == []
    openings = []
    for function in (*AFTER_THE_OPENING, *AFTER_THE_RESULT):
        killed_in(function, plan)
        openings += plan.experiment.manifest.test_openings
        assert not plan.experiment.final_folder.exists(), "half of it must not be there to read"

    metrics = retrain(plan, never)
    (finished,) = plan.experiment.manifest.test_openings
    assert {opening.at for opening in openings} == {finished.at}, "one use, however often it was cut short"
    accuracy = metrics["test_accuracy_mean"]
    n_unfinished = len(AFTER_THE_OPENING)
    assert [opening.test_accuracy_mean for opening in openings[:n_unfinished]] == [None] * n_unfinished
    assert {opening.test_accuracy_mean for opening in [*openings[n_unfinished:], finished]} == {accuracy}
    final = plan.experiment.final_folder
    assert json.loads((final / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert f"{accuracy:.2%}" in (final / "README.md").read_text()
    assert not (plan.experiment.folder / WORK_FOLDER).exists()
    with pytest.raises(InputError, match="its test set was opened on"):
        retrain(plan, never)


def assert_not_finished_by(other: Retraining) -> None:
    with pytest.raises(InputError, match="the same settings and unchanged checkpoints would finish it"):
        must_be_allowed(other)
    must_be_allowed(replace(other, again="a reason"))


def test_nothing_but_the_same_checkpoints_finishes_the_look(plan: Retraining) -> None:
    killed_in("open_test_set", plan)
    others = [
        replace(plan, trial=plan.experiment.history().trials[1]),
        replace(plan, epochs=1),
        replace(plan, n_seeds=1),
        replace(plan, compute=Compute(precision="bf16")),
    ]
    for other in others:
        assert_not_finished_by(other)
    run = plan.runs[1]
    fit = restored(run, plan.data.everything, N_EPOCHS)
    fit.network.classifier.bias.data += 1
    fit.save(run.checkpoint(N_EPOCHS))
    assert_not_finished_by(plan)
    retrain(replace(plan, again="a reason"), never)
    first, second = plan.experiment.manifest.test_openings
    assert (first.reason, first.test_accuracy_mean) == (None, None)
    assert second.reason == "a reason"
    assert first.checkpoints_sha256[0] == second.checkpoints_sha256[0]
    assert first.checkpoints_sha256[1] != second.checkpoints_sha256[1]


@pytest.mark.parametrize("cause", ["kill", "full disk"])
def test_an_interrupted_seed_goes_on_bit_for_bit(
    cause: str, trained: Retraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(trained.runs[1], folder=tmp_path / "seed_1")
    if cause == "kill":
        with pytest.raises(ProcessEnds):
            train(run, end)
    else:
        save = training_runs.write_json

        def save_once(path: Path, content: Any) -> None:
            if path.parent == run.checkpoint(2):
                raise OSError(28, "No space left on device")
            save(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(training_runs, "write_json", save_once)
            with pytest.raises(OSError, match="No space left"):
                train(run, lambda progress: None)
    assert saved_epochs(run) == 1
    progress: list[Progress] = []
    train(run, progress.append)
    assert [one.epoch for one in progress] == [2, 3]
    assert_same_tensors(*(load_file(each.checkpoint(3) / "tensors.safetensors") for each in (run, trained.runs[1])))
    losses, expected = ([one.train_loss for one in read_curve(each, 3)] for each in (run, trained.runs[1]))
    assert losses == expected
    assert [path.name for path in run.folder.iterdir()] == ["checkpoint_000003"], "one checkpoint a seed"


def test_finished_seeds_are_not_trained_again(plan: Retraining) -> None:
    assert plan.n_epochs_saved == N_SEEDS * N_EPOCHS
    train_all(plan.runs, 2, never)


def test_a_checkpoint_that_was_cut_short_leaves_the_one_before(plan: Retraining) -> None:
    run = plan.runs[0]
    run.checkpoint(3).rename(run.checkpoint(2))
    state = run.checkpoint(2) / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "epoch": 2}))
    shutil.copytree(run.checkpoint(2), run.checkpoint(3))
    (run.checkpoint(3) / "state.json").unlink()
    assert saved_epochs(run) == 2


def test_another_s_checkpoint_is_refused(plan: Retraining) -> None:
    run = plan.runs[0]
    with pytest.raises(InputError, match="after 3 of 2 epochs"):
        saved_epochs(replace(run, epochs=2))
    shutil.rmtree(run.folder)
    shutil.copytree(plan.runs[1].folder, run.folder)
    with pytest.raises(InputError, match="was saved by"):
        saved_epochs(run)


def test_a_checkpoint_that_is_not_finite_is_refused(plan: Retraining) -> None:
    run = plan.runs[0]
    fit = restored(run, plan.data.everything, N_EPOCHS)
    with torch.no_grad():
        fit.network.classifier.bias[0] = math.inf
    fit.save(run.checkpoint(N_EPOCHS))
    with pytest.raises(InputError, match="not finite"):
        retrain(plan, never)
    assert plan.experiment.manifest.test_openings == []


@pytest.mark.parametrize("content", ["{", "[]", '[{"number": 0}]', None])
def test_a_damaged_curve_is_refused_before_the_test(content: str | None, plan: Retraining) -> None:
    path = plan.runs[0].checkpoint(N_EPOCHS) / training_runs.CURVE_FILE
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"curve\.json: is"):
        read_curve(plan.runs[0], N_EPOCHS)


def test_other_unfinished_settings_stay_and_pickles_among_the_checkpoints_stay_shut(
    plan: Retraining, tmp_path: Path
) -> None:
    for run in plan.runs:
        for name in ("optimizer.pt", "model.pkl", "data.pickle"):
            (run.checkpoint(N_EPOCHS) / name).write_bytes(bomb(tmp_path / "marker"))
    other = replace(plan, epochs=9)
    assert other.folder != plan.folder
    shutil.copytree(plan.folder, other.folder)
    retrain(plan, never)
    assert [path.name for path in (plan.experiment.folder / WORK_FOLDER).iterdir()] == [other.folder.name]
    assert not (tmp_path / "marker").exists()


def test_a_retraining_that_diverges_says_so(trained: Retraining, tmp_path: Path) -> None:
    # SGD at the largest lr and weight decay that are allowed multiplies the weights by -9 a step.
    config = Hyperparameters(lr=10.0, weight_decay=1.0, momentum=0.99)
    run = replace(trained.runs[0], hyperparameters=config, epochs=20, folder=tmp_path / "seed_0")
    with pytest.raises(RunError, match="Retraining 0 diverged in epoch"):
        train(run, lambda progress: None)


@pytest.mark.parametrize("width", [60, 120])
def test_progress_is_not_cut(width: int) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    with session.progress_bar(console) as bar:
        bar.add_task("", total=27, completed=8, latest="seed 1, accuracy 97.57%")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "8/27 epochs," in text
    assert "seed 1, accuracy 97.57%" in text


def test_ctrl_c_says_how_to_go_on(
    on_folder: Call, tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "retrain", interrupt)
    experiment = make_experiment(tmp_path / "results", "mine", tiny_space)
    code, output, errors = on_folder("retrain", experiment.folder, "--epochs", "2", "--again", "it's a test")
    assert code == 130
    assert "after whatever ends this, the same command resumes" in output
    again = """--again 'it'"'"'s a test'"""
    go_on = f"Resume with: python -m search.retrain mine --results {tmp_path}/results --trial 0 --seeds 3 --epochs 2"
    assert output.splitlines()[-1] == f"{go_on} {again}"
    assert errors.splitlines()[-1] == "Interrupted."


KILLED_AFTER_THE_OPENING = """
import os, signal
from search.retraining import retraining
from search.retrain import main
retraining.open_test_set = lambda dataset: os.kill(os.getpid(), signal.SIGKILL)
main(["mine", "--seeds", "2", "--epochs", "3"])
"""
ARGUMENTS = ("mine", "--seeds", "2", "--epochs", "3")


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A folder of results with a search that ran to its end."""
    make_experiment(tmp_path / "results", "mine", load_space("quickstart", TINY))
    return tmp_path


def uses_of_test_set(parent: Path) -> list[dict[str, Any]]:
    manifest = json.loads((parent / "results" / "mine" / "manifest.json").read_text())
    return list(manifest["test_openings"])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_kill_9_in_the_training_and_after_the_opening_costs_neither_epochs_nor_the_look(
    ended: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
    temporary: Path,
) -> None:
    elsewhere = shutil.copytree(ended, tmp_path_factory.mktemp("uninterrupted") / "x")
    uninterrupted = run("search.retrain", *ARGUMENTS, cwd=elsewhere)
    assert uninterrupted.returncode == 0, uninterrupted.stderr

    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "search.retrain", *ARGUMENTS]
    process = subprocess.Popen(command, cwd=ended, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("seed "):
        assert line, "it ended before an epoch"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    wait_until(lambda: not list(temporary.glob("dws-*")), 60)  # until the guardian has cleared up
    assert list((ended / "results" / "mine" / WORK_FOLDER).glob("*/seed_*/checkpoint_*")), "its clean-up took them"
    assert uses_of_test_set(ended) == []

    command = [sys.executable, "-c", KILLED_AFTER_THE_OPENING]
    again = subprocess.run(command, cwd=ended, env=environment, capture_output=True, text=True, timeout=240)
    assert again.returncode == -signal.SIGKILL, again.stderr
    assert "of 6 epochs were trained before." in again.stdout
    assert again.stdout.count("\nseed ") < 6
    (opening,) = uses_of_test_set(ended)
    assert opening["test_accuracy_mean"] is None
    wait_until(lambda: not list(temporary.glob("dws-*")), 60)

    finished = run("search.retrain", *ARGUMENTS, cwd=ended)
    assert finished.returncode == 0, finished.stderr
    assert "Resumes: 6 of 6 epochs were trained before.\nThe test set was opened " in finished.stdout
    (only,) = uses_of_test_set(ended)
    assert only["at"] == opening["at"]
    found, expected = (
        json.loads((parent / "results/mine/final/metrics.json").read_text()) for parent in (ended, elsewhere)
    )
    assert found["test_accuracy_per_seed"] == expected["test_accuracy_per_seed"]
    weights = [load_file(parent / "results/mine/final/model.safetensors") for parent in (ended, elsewhere)]
    assert_same_tensors(*weights)
    assert not (ended / "results" / "mine" / WORK_FOLDER).exists()
    assert run("search.retrain", *ARGUMENTS, cwd=ended).returncode == 2
