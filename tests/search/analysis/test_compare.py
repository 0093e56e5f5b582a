"""Experiments side by side."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search import compare
from search.analysis.best_so_far import best_so_far
from search.analysis.comparison import compared_rows, read_compared, remarks
from search.analysis.ranking import lead_sentence, rank
from search.experiment.events import Event, ReplicateEnded, ReplicateStarted, TrialEnded, TrialStarted
from search.experiment.folder import Experiment
from search.experiment.manifest import Session
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


def test_what_differs_is_marked_and_nothing_else(pair: Pair) -> None:
    rows = {(row.section, row.name): row for row in compared_rows(read_compared(pair))}
    assert rows["searched", "lr"].values == ["loguniform 0.002 to 0.5", "loguniform 0.01 to 0.2"]
    for key in (("searched", "lr"), ("settings", "search.trials"), ("settings", "search.seed"), ("winner", "lr")):
        assert rows[key].differs, key
    for key in (("searched", "momentum"), ("settings", "training.max_epochs"), ("made with", "torch")):
        assert not rows[key].differs, key
    assert rows["settings", "search.trials"].values == ["12", "9"]
    assert [one.name for one in read_compared(pair)] == ["s0", "s1"]


def test_what_only_a_later_one_has_stays_in_its_section(pair: Pair, tmp_path: Path) -> None:
    wider = load_space("quickstart", ["search.trials=2", "confirm.top=0", "space.dropout={uniform: [0.0, 0.3]}"])
    third = shown_experiment.searched(tmp_path, "third", wider)
    rows = compared_rows(read_compared([pair[0], third]))
    sections = [row.section for row in rows]
    assert sections == sorted(sections, key=["outcome", "winner", "searched", "settings", "made with"].index)
    (dropout,) = [row.values for row in rows if (row.section, row.name) == ("searched", "dropout")]
    assert dropout == ["–", "uniform 0 to 0.3"]


def test_the_outcome_is_the_leaderboard_s(pair: Pair) -> None:
    compared = read_compared(pair)
    rows = {row.name: row for row in compared_rows(compared) if row.section == "outcome"}
    for i, one in enumerate(compared):
        assert one.best is not None
        assert one.best.replicates is not None
        assert rows["winner"].values[i] == f"trial {one.best.trial}"
        assert rows["validation accuracy"].values[i].startswith(f"{one.best.replicates.mean:.2%}")
        assert "points" in rows["lead over its baseline"].values[i]
        assert rows["epochs"].values[i] == str(one.history.n_epochs)


@pytest.mark.parametrize(
    ("runs", "sentence", "stat", "text"),
    [
        ({}, "20.00 points above the baseline", ("+20.00 points", "one seed each"), "+20.00 points (one seed)"),
        ({1: [0.8]}, "has no replicate to compare with", ("–", "the baseline has no replicate"), "–"),
        (
            {1: [0.8], 0: [0.75]},
            "It is 5.00 points above",
            ("+5.00 points", "replicates: how sure is not known"),
            "+5.00 points (too few replicates)",
        ),
        ({1: [0.8, 0.82], 0: [0.7, 0.71]}, "10.50 ± ", ("+10.50 ± ", "95 % interval"), "+10.50 ± "),
        # Of three, the second best has none yet: nobody's count.
        (
            {1: [0.8, 0.82], 3: [0.6, 0.6], 0: [0.7, 0.71]},
            "20.00 points above the baseline",
            ("+20.00 points", "one seed each"),
            "+20.00 points (one seed)",
        ),
    ],
)
def test_one_lead_is_said_everywhere(
    runs: dict[int, list[float]], sentence: str, stat: tuple[str, str], text: str, tiny_space: Space, tmp_path: Path
) -> None:
    made = foreign.make_experiment(tmp_path, "led", tiny_space)
    journal = made.journal()
    events: list[Event] = [result(1, 2, 0.8), result(1, 3, 0.9), TrialEnded(1, "completed", "", 4.0)]
    for number, accuracy in ((2, 0.8), (3, 0.75)):
        events.append(TrialStarted(number, tiny_space.baseline_suggestion(), tiny_space.baseline, False, 4.0))
        events += [result(number, epoch, accuracy) for epoch in (1, 2, 3)]
        events.append(TrialEnded(number, "completed", "", 5.0))
    blocks = [(trial, block, value) for trial, values in runs.items() for block, value in enumerate(values, 1)]
    for number, (trial, block, value) in enumerate(blocks):
        ended = ReplicateEnded(number, "completed", "", 7.0)
        events += [ReplicateStarted(number, trial, block, 6.0), run_result(number, 1, value), ended]
    for event in events:
        journal.append(event)
    assert sentence in lead_sentence(made.history(), rank(made.history()))
    (led,) = [one for one in headline(read_all(made)) if one.label == "Lead over the baseline"]
    assert led.value.startswith(stat[0])
    assert led.note.startswith(stat[1])
    (row,) = [row for row in compared_rows(read_compared([made])) if row.name == "lead over its baseline"]
    assert row.values[0].startswith(text)


def test_the_curve_rises_and_counts_all_epochs(pair: Pair) -> None:
    for experiment in pair:
        history = experiment.history()
        curve = best_so_far(history, experiment.manifest)
        assert [point.accuracy for point in curve] == sorted(point.accuracy for point in curve)
        assert [point.epochs for point in curve] == sorted(point.epochs for point in curve)
        completed = [trial for trial in history.trials.values() if trial.status == "completed"]
        assert curve[-1].accuracy == max(t.last.validation_accuracy for t in completed if t.last)
        assert curve[-1].epochs == history.n_epochs
        assert len(curve) == len(completed) + 1


def test_pauses_between_sessions_are_no_time_of_the_search(tiny_space: Space, tmp_path: Path) -> None:
    made = foreign.make_experiment(tmp_path, "paused", tiny_space)
    # Its trial's epochs came in at 1, 2 and 3 s; the second session began at 2.5 s after 1.2 s of the first.
    sessions = [
        Session(started_at="1970-01-01T00:00:00.500000+00:00", seconds=1.2),
        Session(started_at="1970-01-01T00:00:02.500000+00:00"),
    ]
    manifest = made.manifest.model_copy(update={"sessions": sessions})
    curve = best_so_far(made.history(), manifest)
    assert curve[0].seconds == pytest.approx(1.2 + 0.5)
    assert curve[0].epochs == 3


def test_what_does_not_compare_is_said(pair: Pair, tmp_path: Path) -> None:
    assert remarks(read_compared(pair)) == []
    other_cut = load_space("quickstart", ["search.trials=3", "dataset.split_seed=1", "confirm.top=0"])
    third = shown_experiment.searched(tmp_path, "third", other_cut)
    data = third.manifest.data.model_copy(update={"content_sha256": "1" * 64})
    third.write_manifest(third.manifest.model_copy(update={"data": data}))
    said = remarks(read_compared([pair[0], third]))
    assert len(said) == 3
    assert said[0].startswith("They are not of the same images")
    assert said[1].startswith("They hold out different images")
    assert said[2].startswith("An accuracy of one seed")


def test_the_text_fits_a_terminal_or_is_plain(pair: Pair) -> None:
    compared = read_compared(pair)
    rows = compared_rows(compared)
    plain = comparison_text(compared, rows)
    assert "\x1b" not in plain
    marked = [line for line in plain.splitlines() if line.startswith("≠")]
    assert len(marked) == sum(row.differs for row in rows)
    from rich.text import Text

    narrow = comparison_text(compared, rows, width=80).partition("\ns0: ")[0]
    assert all(len(Text.from_ansi(line).plain) <= 80 for line in narrow.splitlines())


def test_the_command_prints_a_table_or_json(call: Callable[..., tuple[int, str, str]]) -> None:
    code, output, errors = call("s0", "s1")
    assert (code, errors) == (0, "")
    assert "s0: Trial" in output
    code, output, _ = call("s0", "s1", "--format", "json")
    content = json.loads(output)
    assert content["experiments"] == ["s0", "s1"]
    assert set(content["curves"]) == {"s0", "s1"}


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


def test_names_from_elsewhere_stay_names(pair: Pair, tmp_path: Path) -> None:
    import shutil

    name = "<img src=x onerror=alert(1)>\x1b[2J"
    hostile = Experiment(Path(shutil.copytree(pair[0].folder, tmp_path / name)))
    compared = read_compared([pair[0], hostile])
    text = comparison_text(compared, compared_rows(compared), width=100)
    assert "\x1b[2J" not in text


def test_two_folders_of_one_name_are_told_apart(pair: Pair) -> None:
    assert [one.name for one in read_compared([pair[0], pair[0]])] == ["s0 (1)", "s0 (2)"]
