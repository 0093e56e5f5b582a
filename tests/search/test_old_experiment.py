"""An experiment of the release before the renames (`explore`, `set_aside`, fresh runs) is read, resumed and retrained.

`tests/data/old_experiment` was written by commit f76654e: 8 trials on 400 digits, with 25 replicates. Its
`leaderboard.txt` is the output of that commit's `search.leaderboard`.
"""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from search.experiment.folder import Experiment
from search.experiment.state_files import yaml_matches
from tests.support.foreign import Call

OLD = Path(__file__).parents[1] / "data" / "old_experiment"


@pytest.fixture
def old(tmp_path: Path) -> Experiment:
    (tmp_path / "results").mkdir()
    return Experiment(shutil.copytree(OLD, tmp_path / "results" / "old"))


def rows(board: str) -> list[list[str]]:
    """The words of each row of a leaderboard."""
    return [line.replace("(explored)", "(audit)").split() for line in board.splitlines() if re.match(r" +\d+ ", line)]


def test_the_leaderboard_has_the_figures_that_the_old_release_printed(old: Experiment, on_folder: Call) -> None:
    code, output, errors = on_folder("leaderboard", old.folder)
    assert (code, errors) == (0, "")
    before = rows((OLD / "leaderboard.txt").read_text())
    assert len(before) == 8
    # Since then: the forecast (`36.25% ± 7.92`) after the accuracy, and who proposed the trial.
    shown = [row[: row.index("±") - 1] + row[row.index("±") + 2 : -1] for row in rows(output)]
    assert {row[-1] for row in rows(output)} == {"baseline", "-"}, "who proposed a trial was not recorded"
    # Replicates rank as they did. Below them, forecasts have changed the order.
    assert shown[:4] == before[:4]
    assert sorted(row[1:] for row in shown) == sorted(row[1:] for row in before)

    _, output, _ = on_folder("leaderboard", old.folder, "--format", "json")
    found = {str(row["trial"]): row for row in json.loads(output)["trials"]}
    with (OLD / "trials.csv").open() as file:
        table = {row["trial"]: row for row in csv.DictReader(file)}
    assert found.keys() == table.keys()
    for number, row in table.items():
        new = found[number]
        assert new["validation_accuracy"] == float(row["validation_accuracy"])
        assert str(new["n_replicates"]) == row["fresh_runs"]
        assert str(new["audit"]).lower() == row["explored"]
    assert [row["rank"] for row in table.values()][:4] == [str(found[number]["rank"]) for number in list(table)[:4]]


def test_each_file_is_as_it_was_written(old: Experiment, told: list[str]) -> None:
    experiment = Experiment(old.folder)
    assert yaml_matches((old.folder / "experiment.yaml").read_bytes())
    assert experiment.manifest.state == "finished"
    history = experiment.history()
    assert len(history.events) == len((OLD / "journal.jsonl").read_text().splitlines())
    assert experiment.space.search.audit_fraction == 0.3
    assert [number for number, trial in history.trials.items() if trial.audit] == [1, 5]
    assert len(history.replicates) == 25
    assert [line for line in told if "explore" not in line] == []


@pytest.mark.cluster
@pytest.mark.long
def test_it_is_resumed_and_retrained(old: Experiment, run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    before, cwd = old.history(), old.folder.parents[1]
    options = ("--add-trials", "1", "--set", "confirm.top=0")
    resumed = run("search.run", "--resume", "old", *options, cwd=cwd)
    assert resumed.returncode == 0, resumed.stderr
    history = old.history()
    assert len(history.trials) == 9
    assert {number: history.trials[number] for number in before.trials} == before.trials
    assert history.replicates == before.replicates
    assert "audit_fraction: 0.3" in (old.folder / "experiment.yaml").read_text()

    retrained = run("search.retrain", "old", "--seeds", "1", "--epochs", "1", cwd=cwd)
    assert retrained.returncode == 0, retrained.stderr
    assert json.loads((old.final_folder / "metrics.json").read_text())["trial"] == 4
    assert json.loads((old.final_folder / "config.json").read_text())["pooling"] == "max"
