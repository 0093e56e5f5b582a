"""Experiments side by side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from search import compare
from search.analysis.comparison import best_so_far, compared_rows, read_compared, remarks
from search.analysis.ranking import lead_sentence, rank
from search.experiment.events import Event, ReplicateEnded, ReplicateStarted, TrialEnded, TrialStarted
from search.experiment.folder import Experiment
from search.pages.headline import headline
from search.pages.report_data import read_all
from search.terminal.comparison import comparison_text
from spaces import Space, load_space
from tests.support import foreign, shown_experiment
from tests.support.simulation import result, run_result

Pair = tuple[Experiment, Experiment]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two searches that differ in a range, in the number of trials and in their seed."""
    results = tmp_path_factory.mktemp("parent") / "results"
    spaces = (
        load_space("quickstart", ["search.trials=12"]),
        load_space("quickstart", ["search.trials=9", "search.seed=5", "space.lr={loguniform: [0.01, 0.2]}"]),
    )
    first, other = (shown_experiment.searched(results, f"s{i}", space, seed=i) for i, space in enumerate(spaces))
    return first, other


@pytest.fixture
def call(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(pair[0].folder.parent.parent)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = compare.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_rows_say_what_differs_and_the_outcome_is_the_leaderboard_s(pair: Pair) -> None:
    compared = read_compared(pair)
    rows = {(row.section, row.name): row for row in compared_rows(compared)}
    assert rows["searched", "lr"].values == ["loguniform 0.002 to 0.5", "loguniform 0.01 to 0.2"]
    assert rows["settings", "search.trials"].values == ["12", "9"]
    for key in (("searched", "lr"), ("settings", "search.trials"), ("settings", "search.seed"), ("winner", "lr")):
        assert rows[key].differs, key
    for key in (("searched", "momentum"), ("settings", "training.max_epochs"), ("made with", "torch")):
        assert not rows[key].differs, key
    for i, one in enumerate(compared):
        assert one.best is not None
        assert one.best.replicates is not None
        outcome = {name: row.values[i] for (section, name), row in rows.items() if section == "outcome"}
        assert outcome["winner"] == f"trial {one.best.trial}"
        assert outcome["validation accuracy"].startswith(f"{one.best.replicates.mean:.2%}")
        assert "points" in outcome["lead over its baseline"]
        assert outcome["epochs"] == str(one.history.n_epochs)


def test_what_only_a_later_one_has_stays_in_its_section_and_what_does_not_compare_is_said(
    pair: Pair, tmp_path: Path
) -> None:
    assert remarks(read_compared(pair)) == []
    changed = ["dataset.split_seed=1", "space.dropout={uniform: [0.0, 0.3]}"]
    third = shown_experiment.searched(
        tmp_path, "third", load_space("quickstart", ["search.trials=3", "confirm.top=0", *changed])
    )
    data = third.manifest.data.model_copy(update={"content_sha256": "1" * 64})
    third.write_manifest(third.manifest.model_copy(update={"data": data}))
    compared = read_compared([pair[0], third])
    rows = compared_rows(compared)
    sections = [row.section for row in rows]
    assert sections == sorted(sections, key=["outcome", "winner", "searched", "settings", "made with"].index)
    (dropout,) = [row.values for row in rows if (row.section, row.name) == ("searched", "dropout")]
    assert dropout == ["–", "uniform 0 to 0.3"]
    starts = ("They are not of the same images", "They hold out different images", "A forecast rests on")
    assert [said.startswith(start) for said, start in zip(remarks(compared), starts, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("runs", "sentence", "value", "doubt"),
    [
        ({}, " points above the baseline", "+", "one seed each, on the images that chose it"),
        ({1: [0.8]}, "has no replicate to compare with", "–", "The baseline has no replicate to compare with"),
        (
            {1: [0.8], 0: [0.75]},
            "It is 5.00 points above",
            "+5.00 points",
            "too few replicates to say how surely",
        ),
        ({1: [0.8, 0.82], 0: [0.7, 0.71]}, "10.50 ± ", "+10.50 ± ", ""),
        # The best has none yet: nobody's count.
        (
            {3: [0.6, 0.6], 0: [0.7, 0.71]},
            "Trial 1 leads with 90.00%",
            "+",
            "one seed each, on the images that chose it",
        ),
    ],
)
def test_one_lead_is_said_everywhere(
    runs: dict[int, list[float]], sentence: str, value: str, doubt: str, tiny_space: Space, tmp_path: Path
) -> None:
    made = foreign.make_experiment(tmp_path, "led", tiny_space)
    journal = made.journal()
    events: list[Event] = [result(1, 2, 0.8), result(1, 3, 0.9), TrialEnded(1, "completed", "", 4.0)]
    for number, accuracy in ((2, 0.8), (3, 0.75)):
        events.append(
            TrialStarted(number, tiny_space.searched_values(tiny_space.baseline), tiny_space.baseline, False, 4.0)
        )
        events += [result(number, epoch, accuracy) for epoch in (1, 2, 3)]
        events.append(TrialEnded(number, "completed", "", 5.0))
    blocks = [(trial, block, value) for trial, values in runs.items() for block, value in enumerate(values, 1)]
    for number, (trial, block, accuracy) in enumerate(blocks):
        ended = ReplicateEnded(number, "completed", "", 7.0)
        events += [ReplicateStarted(number, trial, block, 6.0), run_result(number, 1, accuracy), ended]
    for event in events:
        journal.append(event)
    assert sentence in lead_sentence(made.history(), rank(made.history()))
    (led,) = [one for one in headline(read_all(made)) if one.label == "Lead over the baseline"]
    assert led.value.startswith(value)
    assert led.note == (doubt or "95 % interval; clear of 0")
    (row,) = [row for row in compared_rows(read_compared([made])) if row.name == "lead over its baseline"]
    assert row.values[0].startswith(value)
    assert row.values[0].endswith("–" if value == "–" else f" ({doubt})" if doubt else " points")


def test_the_curve_rises_and_counts_all_epochs(pair: Pair) -> None:
    for experiment in pair:
        history = experiment.history()
        curve = best_so_far(history)
        assert [point["accuracy"] for point in curve] == sorted(point["accuracy"] for point in curve)
        assert [point["epochs"] for point in curve] == sorted({point["epochs"] for point in curve})
        completed = [trial for trial in history.trials.values() if trial.status == "completed"]
        assert curve[-1]["accuracy"] == max(t.last.validation_accuracy for t in completed if t.last)
        assert curve[-1]["epochs"] <= history.n_epochs
        assert len(curve) == len(completed)


def test_the_text_fits_a_terminal_or_is_plain_and_names_from_elsewhere_stay_names(pair: Pair, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>\x1b[2J"
    hostile = Experiment(Path(shutil.copytree(pair[0].folder, tmp_path / name)))
    compared = read_compared([*pair, hostile])
    rows = compared_rows(compared)
    plain = comparison_text(compared, rows)
    assert "\x1b" not in plain
    assert len([line for line in plain.splitlines() if line.startswith("≠")]) == sum(row.differs for row in rows)
    narrow = comparison_text(compared, rows, width=80).partition("\ns0: ")[0]
    assert all(len(Text.from_ansi(line).plain) <= 80 for line in narrow.splitlines())
    assert "\x1b[2J" not in narrow


def test_the_command_prints_a_table_or_json(call: Callable[..., tuple[int, str, str]]) -> None:
    code, output, errors = call("s0", "s1")
    assert (code, errors) == (0, "")
    assert "s0: Trial" in output
    code, output, _ = call("s0", "s0", "s1", "--format", "json")
    content = json.loads(output)
    assert content["experiments"] == ["s0 (1)", "s0 (2)", "s1"], "folders of the same name get numbers"
    assert set(content["curves"]) == set(content["experiments"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["s0"], "EXPERIMENT is s0 alone, but must be two or more to compare."),
        (["s0", "nobody"], "`nobody` is not an experiment"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], expected: str, call: Callable[..., tuple[int, str, str]]) -> None:
    code, output, errors = call(*arguments)
    assert (code, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert expected in errors
