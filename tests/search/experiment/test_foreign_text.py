"""Names and sentences from elsewhere command no terminal, no shell and no renderer."""

import csv
import io
import json
import shlex
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from rich.console import Console

from search.analysis.csv_files import csv_text, trials_csv
from search.analysis.ranking import rank
from search.experiment.events import TrialEnded, TrialStarted
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Session, TestSetUse
from search.retraining.answers import predictions_csv
from search.retraining.model_card import model_card
from search.terminal.display import SearchDisplay
from spaces import Space
from spaces.printable import printable
from tests.support.foreign import Call, model

HOSTILE = "x\x1b[2J\x1b]0;t\x07\r\u202e\x9b31m\udcff[red]; touch pwned;`id`$(id)'\"|<b>"


def assert_printable(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), ascii(text)


@pytest.fixture
def hostile(tiny_space: Space, tmp_path: Path, foreign: Experiment) -> Experiment:
    """Hostile in all that is text: the folder's name, sentences of the journal, the manifest and the classes."""
    journal = foreign.journal()
    journal.append(TrialEnded(1, "failed", f"why {HOSTILE}\nnot", 2.0))
    session = Session(started_at="2026-01-01T00:00:00+00:00", end="x")
    opening = TestSetUse(at=HOSTILE.replace("\udcff", ""), trial=0, config={}, epochs=1, seeds=1, reason=None)
    foreign.write_manifest(foreign.manifest.with_session(session, new=True).with_use_of_test_set(opening, new=True))
    (foreign.final_folder / "model.onnx").write_bytes(model([f"cat {HOSTILE}", "dog\n\x1b"]))
    folder = tmp_path / "results" / HOSTILE
    foreign.folder.rename(folder)
    return Experiment(folder)


@pytest.mark.parametrize(
    ("command", "more", "expected"),
    [
        *(("leaderboard", ("--format", form), 0) for form in ("table", "csv", "markdown", "json")),
        *(("diagnose", ("--format", form), 0) for form in ("text", "json")),
        *(("why", ("1", "--format", form), 0) for form in ("text", "json")),
        ("retrain", (), 2),
        ("retrain", ("--debug",), 2),
        ("resume", (), 2),
        ("repeat", (), 2),
    ],
)
def test_no_command_prints_a_control_character(
    command: str, more: tuple[str, ...], expected: int, on_folder: Call, hostile: Experiment
) -> None:
    if command == "repeat":
        path = hostile.folder / "experiment.yaml"
        path.write_text(path.read_text() + '"\\e[31m\\n": 1\n')
    code, output, errors = on_folder(command, hostile.folder, *more)
    assert code == expected, errors
    assert_printable(output + errors)
    if code == 2:
        assert ("Traceback" in errors) == bool(more)
        assert more or len(errors.splitlines()) == 1
    if "csv" in more:
        assert "why x\\x1b[2J" in output
        assert len(output.splitlines()) == 3


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n="])
def test_text_in_a_csv_file_is_no_formula_and_numbers_stay_numbers(start: str, tiny_space: Space) -> None:
    cell = f"{start}cmd|'/c calc'!A0"
    text = csv_text(["text", "a", "b", "c"], [[cell, -0.5, -3, None]])
    _, row = csv.reader(io.StringIO(text, newline=""))
    assert row[0].startswith(("'", "\\"))
    assert row[0].endswith("cmd|'/c calc'!A0")
    assert row[1:] == ["-0.5", "-3", ""]
    started = TrialStarted(0, tiny_space.searched_values(tiny_space.baseline), tiny_space.baseline, True, 0.0)
    ranked = rank(History([started, TrialEnded(0, "failed", "=1+1", 1.0)]))
    assert ",'=1+1," in trials_csv(ranked, ["lr"])
    predictions = predictions_csv([np.log(np.array([[0.9, 0.1]], np.float32))], np.array([1]), ["=cat", "@dog"])
    assert predictions.splitlines()[1] == "0,'@dog,'=cat,0.9,0.1,0"


def test_a_space_that_was_changed_is_shown_without_either(on_folder: Call, hostile: Experiment) -> None:
    path = hostile.folder / "journal.jsonl"
    first, *others = path.read_text().splitlines()
    hidden = '"space": {"dataset": {"\\u001b[2J": "\\u001b[2J\\n"}, "\\u202e": {"x": 1}}'
    path.write_text("\n".join([f"{first.rstrip('}')}, {hidden}}}", *others, ""]))
    code, output, errors = on_folder("resume", hostile.folder)
    assert code == 2
    assert output == ""
    assert "`dataset.\\x1b[2J` was" in errors
    assert_printable(errors)


def test_warnings_and_lists_of_names_print_none_either(on_folder: Call, hostile: Experiment) -> None:
    (hostile.folder / "journal.jsonl").unlink()
    code, output, errors = on_folder("leaderboard", hostile.folder)
    assert code == 0
    assert "is missing; its copy" in errors
    assert_printable(output + errors)
    code, _, errors = on_folder("leaderboard", Path("nobody"))
    assert code == 2
    assert "results/ has x\\x1b[2J" in errors
    assert_printable(errors)


def test_the_commands_to_type_next_are_one_word_where_a_name_is(on_folder: Call, hostile: Experiment) -> None:
    (hostile.folder / "journal.jsonl").unlink()
    shutil.rmtree(hostile.folder / ".backup")
    _, _, errors = on_folder("retrain", hostile.folder)
    assert "no trial has completed" in errors
    command = errors.partition("(python")[2].partition("), or name one")[0]
    words = shlex.split(command)
    assert words[:3] == ["-m", "search.run", "--resume"]
    assert words[4:] == ["--results", str(hostile.folder.parent)]
    assert "touch pwned" in words[3]


def test_predict_prints_classes_and_files_as_themselves(on_folder: Call, hostile: Experiment, tmp_path: Path) -> None:
    image = tmp_path / f"i{HOSTILE.replace('/', '')}.png"
    shutil.copy(tmp_path / "image.png", image)
    code, output, errors = on_folder("predict", hostile.folder, str(image))
    assert code == 0, errors
    assert_printable(output)
    assert len(output.splitlines()) == 2
    assert "cat x\\x1b[2J" in output
    code, output, _ = on_folder("predict", hostile.folder, str(image), "--format", "json")
    assert json.loads(output)[1]["classes"][1]["class"] == "dog\n\x1b"
    assert_printable(output)
    code, _, errors = on_folder("predict", hostile.folder, f"missing{HOSTILE}.png")
    assert code == 2
    assert_printable(errors)


def test_the_display_of_a_search_prints_none_either(tiny_space: Space) -> None:
    for quiet in (False, True):
        output = StringIO()
        display = SearchDisplay(tiny_space, Console(file=output), 2, quiet)
        started = TrialStarted(0, tiny_space.searched_values(tiny_space.baseline), tiny_space.baseline, True, 0.0)
        ended = TrialEnded(0, "failed", HOSTILE, 1.0)
        display.observe(ended, History([started, ended]))
        display.note(f"[/]{HOSTILE}")
        assert_printable(output.getvalue())
        assert "x\\x1b[2J" in output.getvalue()


def test_a_model_card_shows_names_as_names(tiny_space: Space) -> None:
    names = [HOSTILE, "a|b\n# Title", "<img src=x>", "[click](http://x)", "`"]
    metrics = {
        "experiment": HOSTILE,
        "trial": 0,
        "epochs": 1,
        "trained_on": {"n_images": 1, "images_per_epoch": 1},
        "tested_on": {"n_images": 1},
        "schedule": None,
        "precision": "fp32",
        "search_validation_accuracy": 0.5,
        "search_epochs": 9,
        "replicates": None,
        "metric": "accuracy",
        "test_metrics": {"accuracy": {"mean": 0.5, "interval_95": None}},
        "test_accuracy_per_seed": [{"accuracy": 0.5}],
        "per_class_accuracy": dict.fromkeys(names, 0.5),
        "class_names": names,
        "exports": {},
    }
    opening = TestSetUse(at="now", trial=0, config={}, epochs=1, seeds=1, reason=HOSTILE)
    text = model_card(tiny_space, metrics, [opening])
    assert_printable(text)
    text.encode()
    (named,) = ModelCard(text).data.eval_results
    assert (named.metric_value, ModelCard(text).data.model_name) == (0.5, printable(HOSTILE))
    rows = text.partition("## By class")[2].partition("## The test set")[0].strip().splitlines()[2:]
    assert len(rows) == len(names)
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)
    assert "\\<img" in text
    assert "\\[click]" in text
