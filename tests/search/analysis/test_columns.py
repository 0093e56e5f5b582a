"""One description of the leaderboard's columns for CSV, JSON, tables, pages and `--sort`."""

import json

import pytest

from search.analysis import columns
from search.analysis.columns import LeaderboardColumn, shown_columns, sort_keys
from search.analysis.ranking import rank, sort_by
from search.experiment.events import TrialStarted
from search.experiment.history import History
from search.terminal import tables
from spaces import Space
from tests.support.simulation import result


@pytest.fixture
def history(tiny_space: Space) -> History:
    started = [
        TrialStarted(i, tiny_space.baseline_suggestion(), tiny_space.baseline, i == 0, float(i)) for i in range(2)
    ]
    return History([*started, result(0, 1, 0.5), result(1, 1, 0.6)])


def test_a_new_column_is_added_in_one_place(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    percent = LeaderboardColumn("percent", "%", value=lambda row: 100 * (row.score or 0.0), more_is_better=True)
    for module in ("columns", "ranking"):
        monkeypatch.setattr(f"search.analysis.{module}.LEADERBOARD", (*columns.LEADERBOARD, percent))
    ranked = rank(history)
    assert [trial["percent"] for trial in json.loads(tables.as_json("mine", ranked))["trials"]] == [60.0, 50.0]
    assert "| % |" in tables.as_markdown(ranked, []).splitlines()[0]
    assert tables.as_table(ranked, []).splitlines()[0].endswith("%")
    assert sort_keys()["%"] == "percent"
    assert [row.trial for row in sort_by(ranked[::-1], "percent")] == [1, 0]


def test_columns_of_replicates_are_shown_with_replicates_only_and_reasons_are_last() -> None:
    without, replicates = shown_columns(has_replicates=False), shown_columns(has_replicates=True)
    assert {column.name for column in replicates} - {column.name for column in without} == {
        "replicate_accuracy",
        "tied",
    }
    assert [column.name for column in without if column.after_parameters] == ["reason"] == [without[-1].name]
