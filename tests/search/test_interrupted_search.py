"""Searches that end early and go on: Ctrl-C, a power cut, a used-up time budget, on a real Ray cluster."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.invariants import events_of
from search.experiment.events import EpochRedone
from search.experiment.journal import read_history
from search.policy.state import is_done
from spaces import load_space
from tests.conftest import TINY, set_options
from tests.search.test_end_to_end import (
    Run,
    assert_trained_as_alone,
    assert_trained_by,
    start,
    wait_for_results,
)
from tests.support.foreign import Call
from tests.support.processes import marked_commands, wait_until

pytestmark = pytest.mark.cluster


def kill_all(process: subprocess.Popen[str], guarded: Path) -> None:
    """Kill the driver, its guardian and all of Ray at once, as a power cut does."""
    watching = subprocess.run(["pgrep", "-f", f"guardian.py {guarded}"], capture_output=True, text=True, check=True)
    for pid in [int(watching.stdout), process.pid, *marked_commands(guarded)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until(lambda: not marked_commands(guarded))


@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("power cut", marks=pytest.mark.long)])
def test_an_interrupted_search_goes_on_where_it_was(how: str, call: Call, tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path / "results" / "tiny"
    journal = folder / "journal.jsonl"
    smaller = ("dataset.train_limit=200", "search.trials=2", "training.max_epochs=6", "search.grace_epochs=2")
    settings = set_options(*TINY, *smaller)
    process = start("run", "--name", "tiny", *settings, cwd=tmp_path, temporary=temporary)
    wait_for_results(journal, 3, process)

    code, _, errors = call("run", "--resume", "tiny")
    assert code == 2
    assert "is in use by process" in errors
    assert json.loads(call("leaderboard", "--format", "json")[1])["trials"]
    assert call("steer", "tiny", "add", "lr=0.123")[1].startswith("Added, and tried next: lr=0.123 ")

    (guarded,) = temporary.glob("dws-*")
    if how == "power cut":
        kill_all(process, guarded)
        assert list(temporary.iterdir()) == [guarded]
    else:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "Resume with: python -m search.run --resume tiny" in output
        assert errors == ""
        assert json.loads((folder / "manifest.json").read_text())["state"] == "interrupted"
        assert list(temporary.iterdir()) == []
    before = read_history(journal)
    assert before.unfinished

    resumed = start("run", "--resume", "tiny", cwd=tmp_path, temporary=temporary)
    _, errors = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, errors
    after = read_history(journal)
    assert len(after.trials) == 3
    assert [trial.config.lr for trial in after.trials.values() if trial.proposed_by == "steer"] == [0.123]
    assert not after.unfinished
    for number, trial in before.trials.items():
        assert after.trials[number].epochs[: trial.n_epochs] == trial.epochs
    redone = Counter(event.trial for event in events_of(journal.read_bytes()) if isinstance(event, EpochRedone))
    assert redone <= Counter(trial.number for trial in before.unfinished), "more than one epoch was trained again"
    assert_trained_as_alone(after, load_space(str(folder)), before.unfinished[0].number)
    assert not list(folder.glob("ray/session_*/trial_*/checkpoint_*"))
    assert list(temporary.iterdir()) == []  # what a power cut left is gone as well


@pytest.mark.long
def test_replicates_confirm_the_best_also_after_a_kill(run: Run, call: Call, tmp_path: Path, temporary: Path) -> None:
    results = tmp_path / "results"
    confirm = ("search.trials=3", "confirm.top=1", "confirm.seeds=2", "confirm.budget=4")
    process = start("run", "--name", "tiny", *set_options(*TINY, *confirm), cwd=tmp_path, temporary=temporary)
    journal = results / "tiny" / "journal.jsonl"
    wait_for_results(journal, 3, process, "run_epoch_done")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    before = read_history(journal)
    assert before.unfinished_replicates

    resumed = run("search.run", "--resume", "tiny", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert " wins: the search said " in resumed.stdout
    assert "baseline" in resumed.stdout
    history, space = read_history(journal), load_space(str(results / "tiny"))
    assert is_done(history, space)
    for number, past in before.replicates.items():
        assert history.replicates[number].epochs[: past.n_epochs] == past.epochs
    for number in {0, before.unfinished_replicates[0].number}:
        fresh = history.replicates[number]
        config = history.trials[fresh.trial].config
        assert_trained_by(space, config, "CONFIRMATION", fresh.block, fresh.epochs)
    with (results / "tiny" / "replicates.csv").open() as file:
        assert len(list(csv.DictReader(file))) == sum(fresh.n_epochs for fresh in history.replicates.values())
    assert not list((results / "tiny").glob("ray/session_*/*/checkpoint_*"))
    assert json.loads(call("leaderboard", "--format", "json")[1])["trials"][0]["n_replicates"] >= 2


@pytest.mark.long
def test_a_search_reads_no_test_image(run: Run, call: Call, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for i in range(20):
            pixels = generator.integers(level - 30, level + 30, (17, 17, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / "train" / name / f"{i}.png")
        # Were anything to look at the test images, it could not read them.
        test_image = tmp_path / "images" / "test" / name / "0.png"
        test_image.parent.mkdir(parents=True)
        test_image.write_bytes(b"no image at all")
    dataset = ("dataset.name=folder", "dataset.root=images", "dataset.image_size=17")
    small = ("training.max_epochs=1", "confirm.budget=9", "search.trials=2")
    searched = run("search.run", *set_options(*dataset, *small), "--name", "folder", cwd=tmp_path)
    assert searched.returncode == 0, searched.stderr
    manifest = json.loads((tmp_path / "results/folder/manifest.json").read_text())
    assert manifest["data"]["class_names"] == ["dark", "light"]
    assert "replicate" in searched.stdout
    for command in ("leaderboard", "diagnose", "report"):
        code, output, errors = call(command, "folder")
        assert code == 0, errors
        assert "Test set opened" not in output
    for reason in ("test/dark/0.png", "images/test: is not there"):
        code, output, errors = call("retrain", "folder", "--trial", "0", "--seeds", "1")
        assert code == 2
        assert reason in errors
        assert "\nseed " not in output, "trained before it looked"
        shutil.rmtree(tmp_path / "images" / "test", ignore_errors=True)
    assert json.loads((tmp_path / "results/folder/manifest.json").read_text())["test_openings"] == []
    assert not (tmp_path / "results/folder/final").exists()


def test_a_used_up_time_budget_ends_the_search(run: Run, call: Call, tmp_path: Path) -> None:
    short = run("search.run", *set_options(*TINY), "--time-budget", "1s", "--name", "short", cwd=tmp_path)
    assert short.returncode == 0, short.stderr
    assert "The time budget is used up" in short.stdout
    assert json.loads((tmp_path / "results/short/manifest.json").read_text())["state"] == "time budget used"
    code, _, errors = call("run", "--resume", "short")
    assert code == 2
    assert "--time-budget TIME" in errors
