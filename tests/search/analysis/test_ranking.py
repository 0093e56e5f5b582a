"""The order of trials, the sentences about it, and the leaderboard in all its formats."""

import csv
import io
import json
import math
import re

import pytest

from search.analysis import columns, ranking
from search.analysis.columns import LeaderboardColumn, shown_columns, sort_keys
from search.analysis.csv_files import CURVE_COLUMNS, curve_rows, trials_csv
from search.analysis.ranking import lead_sentence, rank, sort_by, winner
from search.experiment.events import SpaceSet, TrialEnded, TrialStarted
from search.experiment.history import History
from search.leaderboard import _complete_sort
from search.terminal import tables
from spaces import Space, load_space
from tests.support.simulation import result
from trainable.metric import ACCURACY, METRICS, Metric


def history(space: Space, *trials: tuple[str, list[float]]) -> History:
    """Trials with a status and their accuracy after each epoch; the first is the baseline."""
    found = History()
    for number, (status, accuracies) in enumerate(trials):
        found.apply(TrialStarted(number, space.searched_values(space.baseline), space.baseline, number == 0, 0.0))
        for epoch, value in enumerate(accuracies, 1):
            found.apply(result(number, epoch, value, math.nan if math.isnan(value) else 1.0))
        if status != "running":
            found.apply(TrialEnded(number, status, "why" if status != "completed" else "", 1.0))  # type: ignore[arg-type]
    return found


@pytest.fixture
def mixed(tiny_space: Space) -> History:
    return history(
        tiny_space,
        ("completed", [0.1, 0.5, 0.7]),
        ("stopped", [0.95]),
        ("completed", [0.2, 0.6, 0.8]),
        ("diverged", [math.nan]),
        ("stopped", [0.3, 0.4]),
        ("running", [0.5, 0.6]),
        ("failed", []),
        ("completed", [0.9, 0.9, 0.75]),
    )


def test_completed_first_then_stopped_and_running_by_epochs_then_failed_then_diverged(mixed: History) -> None:
    ranked = rank(mixed)
    assert [row.trial for row in ranked] == [2, 7, 0, 5, 4, 1, 6, 3]
    assert [row.rank for row in ranked] == list(range(1, 9))
    assert [row.validation_accuracy for row in ranked[-2:]] == [None, None], "of a failed and a diverged trial"
    best = winner(ranked)
    assert best is not None
    assert best.trial == 2


def test_where_the_best_is_at_chance_there_is_no_winner(tiny_space: Space) -> None:
    same = history(tiny_space, *[("completed", [0.74] * 3)] * 3, ("stopped", [0.7]))
    same.chances = {"accuracy": 0.842}
    ranked = rank(same)
    assert all(row.at_chance for row in ranked)
    assert winner(ranked) is None
    sentence = lead_sentence(same, ranked)
    assert sentence.startswith("No trial wins: 4 of 4 trials are at chance (at most 84.20%")
    assert "Try other learning rates" in sentence
    same.chances = {}
    assert winner(rank(same)) is not None, "of a search whose manifest does not know chance"
    some = history(tiny_space, ("completed", [0.74] * 3), ("stopped", [0.9]), ("diverged", [math.nan]))
    some.chances = {"accuracy": 0.842}
    sentence = lead_sentence(some, rank(some))
    assert sentence.startswith("Trial 1 leads with 90.00% validation accuracy after 1 epoch. ")
    assert "1 of 2 trials is at chance (at most 84.20%" in sentence


def test_the_lead_over_the_baseline_and_trials_at_chance_are_said(mixed: History, tiny_space: Space) -> None:
    mixed.chances = {"accuracy": 0.45}
    ranked = rank(mixed)
    assert [row.trial for row in ranked if row.at_chance] == [4]
    sentence = lead_sentence(mixed, ranked)
    assert sentence.startswith(
        "Trial 2 leads with 80.00% validation accuracy. It is 10.00 points above the baseline (trial 0, 70.00%); "
        "one seed each, on the images that chose it. 1 of 6 trials is at chance (at most 45.00%: "
    )
    mixed.chances = {"accuracy": 0.1}
    assert "chance" not in lead_sentence(mixed, rank(mixed))
    baseline = history(tiny_space, ("completed", [0.5, 0.6, 0.7]), ("stopped", [0.95]), ("completed", [0.5, 0.5, 0.5]))
    assert lead_sentence(baseline, rank(baseline)).endswith(
        "no searched configuration ranks above it, though 1 trial had a higher accuracy in the search."
    )
    assert lead_sentence(History(), []) == "No trial has completed yet."


def test_ranking_asks_each_trial_a_fixed_number_of_times(tiny_space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    n_calls = 0
    score = Metric.score

    def counted(metric: Metric, epoch: object) -> float:
        nonlocal n_calls
        n_calls += 1
        return score(metric, epoch)

    monkeypatch.setattr(Metric, "score", counted)
    rank(history(tiny_space, *[("completed", [0.7])] * 1000))
    assert 1000 < n_calls <= 5 * 1000


def test_trials_that_cannot_win_have_no_forecast(mixed: History, tiny_space: Space) -> None:
    mixed.apply(SpaceSet(tiny_space.as_dict(), [7], 2.0))
    found = {row.trial: row.forecast is not None for row in rank(mixed)}
    assert found == {0: True, 1: True, 2: True, 3: False, 4: True, 5: True, 6: False, 7: False}
    assert [row.trial for row in rank(mixed)][-3:] == [6, 3, 7]


def test_lower_losses_sort_first() -> None:
    space = load_space("quickstart", ["search.metric=loss"])
    found = History([SpaceSet(space.as_dict(), [], 0.0)])
    for number, loss in enumerate((0.5, 0.2, 0.9)):
        found.apply(TrialStarted(number, space.searched_values(space.baseline), space.baseline, number == 0, 0.0))
        found.apply(result(number, 1, 0.5, loss))
    assert [row.trial for row in sort_by(rank(found), "forecast_mean")] == [1, 0, 2]
    is_descending = {column.name: column.more_is_better for column in shown_columns(True, METRICS["loss"])}
    assert not is_descending["forecast_mean"]
    assert not is_descending["replicate_mean"]


def test_sorting_by_any_column_puts_missing_values_last(mixed: History) -> None:
    by_accuracy = sort_by(rank(mixed), "validation_accuracy")
    assert [row.trial for row in by_accuracy][:3] == [1, 2, 7]
    assert by_accuracy[-1].validation_accuracy is None
    assert [row.trial for row in sort_by(rank(mixed), "trial")] == list(range(8))
    assert len(sort_by(rank(mixed), "lr")) == 8


HEADS = {
    "accuracy": "validation_accuracy",
    "loss": "validation_loss",
    "ssr_p": "shift_scale_rotate_p",
    "hole_p": "coarse_dropout_p",
    "replicates": "replicate_mean",
    "lr": "lr",
    "rank": "rank",
}


def test_the_heads_of_the_table_and_full_names_are_sort_keys() -> None:
    keys = sort_keys()
    for head, full in HEADS.items():
        assert keys[head] == keys[full] == full
        assert head in _complete_sort(head[:2].upper())


def test_every_format_has_every_trial(mixed: History) -> None:
    ranked = rank(mixed)
    content = json.loads(tables.as_json("mine", ranked, ACCURACY))
    assert (content["experiment"], content["metric"]) == ("mine", "validation_accuracy")
    assert [trial["trial"] for trial in content["trials"]] == [row.trial for row in ranked]
    results = {"rank", "trial", "status", "epochs", "validation_accuracy", "validation_loss", "seconds", "baseline"}
    assert results | {"config"} <= content["trials"][0].keys()
    assert content["trials"][0]["config"]["lr"] == 0.01
    rows = list(csv.DictReader(io.StringIO(trials_csv(ranked, ["lr"]))))
    assert [int(row["trial"]) for row in rows] == [row.trial for row in ranked]
    assert rows[2]["baseline"] == "true"
    assert trials_csv(ranked).splitlines()[0].startswith(",".join(rows[0])), "the file has all hyperparameters"
    assert len(tables.as_markdown(ranked, ["lr"]).splitlines()) == 10
    text = tables.as_table(ranked, ["lr", "momentum"])
    assert len(text.splitlines()) == 11
    assert text.splitlines()[-1] == "trial 6: why", "why a trial failed"
    assert "\x1b" not in text
    assert "0 (baseline)" in text
    assert "unfinished" in tables.as_table(ranked, [], live=False)


def test_curves_have_a_row_an_epoch(mixed: History) -> None:
    rows = [dict(zip(CURVE_COLUMNS, row, strict=True)) for row in curve_rows(mixed)]
    assert len(rows) == mixed.n_epochs
    assert rows[2]["validation_accuracy"] == 0.7


def test_a_narrow_table_fits_and_says_what_it_leaves_out(mixed: History) -> None:
    text = tables.as_table(rank(mixed), ["lr", "momentum", "gamma"], width=80)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(len(line) for line in plain.splitlines()) <= 80
    assert "(wider terminals also show momentum, gamma)" in plain


def test_a_long_table_shows_its_first_rows_and_reasons_and_says_so(tiny_space: Space) -> None:
    found = history(tiny_space, *[("completed", [0.7])] * 30, *[("failed", [])] * 25)
    text = tables.as_table(rank(found), ["lr"], most_rows=10)
    assert sum(" completed " in line for line in text.splitlines()) == 10
    assert "(the first 10 of 55 trials: --top N shows more, --format csv all)" in text
    assert text.count(": why") == tables.MOST_REASONS
    assert text.endswith("(and 5 more that failed or do not count: --format csv says why)")
    assert trials_csv(rank(found), ["lr"]).count("\n") == 56


def test_a_new_column_is_added_in_one_place(mixed: History, monkeypatch: pytest.MonkeyPatch) -> None:
    percent = LeaderboardColumn("percent", "%", value=lambda row: 100 * (row.score or 0.0), more_is_better=True)
    for module in (columns, ranking):
        monkeypatch.setattr(module, "LEADERBOARD", (*columns.LEADERBOARD, percent))
    ranked = rank(mixed)
    assert json.loads(tables.as_json("mine", ranked, ACCURACY))["trials"][0]["percent"] == 80.0
    assert "| % |" in tables.as_markdown(ranked, []).splitlines()[0]
    assert tables.as_table(ranked, []).splitlines()[0].split()[-2] == "%"
    assert sort_keys()["%"] == "percent"
    assert [row.trial for row in sort_by(ranked, "percent")][:2] == [1, 2]


def test_columns_of_replicates_are_shown_with_replicates_only_and_reasons_are_last() -> None:
    without, replicates = shown_columns(has_replicates=False), shown_columns(has_replicates=True)
    more = {column.name for column in replicates} - {column.name for column in without}
    assert more == {"replicate_mean", "tied"}
    last = [column.name for column in without if column.after_parameters]
    assert last == ["proposed_by", "reason"] == [column.name for column in without[-2:]]
