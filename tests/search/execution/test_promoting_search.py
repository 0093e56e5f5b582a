"""A promoting search on a real cluster that is killed in the middle and gone on with."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults.files import asked_of
from benchmarks.faults.invariants import events_of, history_problems, rung_problems
from search.experiment.events import TrialPromoted, event_from_dict
from search.experiment.journal import read_history
from tests.conftest import TINY, set_options
from tests.support.processes import wait_until

OPTIONS = set_options(
    *TINY,
    "training.max_epochs=9",
    "search.asha=promote",
    "search.trials=null",
    "search.epoch_budget=40",
    "search.sampler=random",
    "resources.trials_at_once=2",
)


@pytest.mark.long
@pytest.mark.cluster
def test_a_promoting_search_goes_on_where_it_was_killed(
    tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    journal = tmp_path / "results" / "promoting" / "journal.jsonl"
    command = [sys.executable, "-m", "search.run", "quickstart", *OPTIONS, "--name", "promoting", "--quiet"]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True) as killed:
        try:
            # Once a promoted trial has trained, so that there are trials that wait, run, and have gone on.
            wait_until(lambda: journal.exists() and _n_epochs_after_a_promotion(journal) >= 2, timeout_s=120)
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
    before = events_of(journal.read_bytes())

    resumed = run("search.run", "--resume", "promoting", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    content = journal.read_bytes()
    events, asked = events_of(content), asked_of(tmp_path / "results" / "promoting")
    assert asked.chance is not None
    assert events[: len(before)] == before
    assert rung_problems(events, asked) == []
    assert history_problems(events, asked, finished=True) == []
    # Each of at most two that ran, and of those that were just being saved, redoes an epoch at most.
    redone = [event["trial"] for event in events if event["event"] == "epoch_redone"]
    assert len(redone) == len(set(redone)) <= 3
    history = read_history(journal)
    assert all(trial.epochs[i].epoch == i + 1 for trial in history.trials.values() for i in range(trial.n_epochs))
    assert any(trial.status == "completed" for trial in history.trials.values() if not trial.baseline)
    assert history.n_epochs >= 40
    promoted = [event for line in events if isinstance(event := event_from_dict(line), TrialPromoted)]
    assert len(promoted) > len([event for event in before if event["event"] == "trial_promoted"])
    assert not list(journal.parent.glob("ray/session_*/trial_*/checkpoint_*")), "nobody waits any more"
    manifest = json.loads((journal.parent / "manifest.json").read_bytes())
    assert manifest["sessions"][-1]["end"] == "finished"


def _n_epochs_after_a_promotion(journal: Path) -> int:
    promoted: dict[int, int] = {}
    n = 0
    for event in events_of(journal.read_bytes()):
        if event["event"] == "trial_promoted":
            promoted[event["trial"]] = event["epoch"]
        n += event["event"] == "epoch_done" and event["trial"] in promoted
    return n
