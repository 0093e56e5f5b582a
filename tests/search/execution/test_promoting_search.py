"""A promoting search on a real cluster that is killed in the middle and gone on with."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults.invariants import events_of, history_problems
from search.experiment.events import EpochRedone, Event, TrialPromoted
from search.experiment.folder import Experiment
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
    events, experiment = events_of(journal.read_bytes()), Experiment(journal.parent)
    chance = experiment.manifest.data.chance
    assert chance is not None
    assert events[: len(before)] == before
    assert history_problems(events, experiment.space, chance, finished=True) == []
    # Each of at most two that ran, and of those that were just being saved, redoes an epoch at most.
    redone = [event.trial for event in events if isinstance(event, EpochRedone)]
    assert len(redone) == len(set(redone)) <= 3
    history = experiment.history()
    assert any(trial.status == "completed" for trial in history.trials.values() if not trial.baseline)
    assert history.n_epochs >= 40
    assert _n_promotions(events) > _n_promotions(before)
    assert not list(journal.parent.glob("ray/session_*/trial_*/checkpoint_*")), "nobody waits any more"
    assert experiment.manifest.sessions[-1].end == "finished"


def _n_promotions(events: list[Event]) -> int:
    return sum(isinstance(event, TrialPromoted) for event in events)


def _n_epochs_after_a_promotion(journal: Path) -> int:
    trials = read_history(journal).trials.values()
    return sum(trial.n_epochs - trial.promotions[0].epoch for trial in trials if trial.promotions)
