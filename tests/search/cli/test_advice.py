"""Every command that a message or page tells the user to type is one that the command itself accepts."""

import ast
import shlex
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from search.experiment import command_lines, remote_results
from search.experiment import folder as experiment_module
from search.experiment.folder import Experiment, create_experiment
from search.pages import report_data
from search.pages.report_data import read_all
from search.retraining import session as retraining_session
from search.session import conduct, resume
from spaces import InputError, Space
from tests.support import foreign, shown_experiment
from tests.support.foreign import Call

SEARCH = Path(command_lines.__file__).parents[1]


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that messages are made with."""
    lines: list[str] = []
    make = command_lines.command_line

    def recorded(*arguments: Any, **more: Any) -> str:
        lines.append(make(*arguments, **more))
        return lines[-1]

    for module in (command_lines, resume, experiment_module, remote_results, report_data):
        monkeypatch.setattr(module, "command_line", recorded)
    return lines


def parsed(monkeypatch: pytest.MonkeyPatch, line: str) -> Namespace:
    """What the command's own parser makes of a line."""
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    module = import_module(words[2])
    found: list[Namespace] = []

    def parse(parser: Any, action: Callable[..., int], arguments: list[str] | None) -> int:
        found.append(parser.parse_args(arguments))
        return 0

    monkeypatch.setattr(module, "run_command", parse)
    module.main(words[3:])
    return found[0]


def test_each_command_that_is_advised_is_one(
    advised: list[str], call: Call, tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "some where"
    here = ("--results", str(results))
    made = foreign.make_experiment(results, "mine", tiny_space)
    winner = shown_experiment.searched(results, "won", tiny_space)
    begun = create_experiment(results, "begun", tiny_space, made.manifest)
    for words in (
        ["run", *here, "--name", "mine"],
        ["run", *here, "--resume", "mine"],
        ["retrain", *here, "begun"],
        ["predict", *here, "mine", "x.png"],
        ["leaderboard", "--results", str(results / "empty")],
        ["leaderboard", "--results", f"file://{tmp_path}/bucket"],
    ):
        assert call(*words)[0] == 2
    with pytest.raises(InputError, match="resume it"):
        create_experiment(results, "mine", tiny_space, made.manifest)
    for end in ("interrupted", "time budget used"):
        conduct.print_result(winner, end, "10.0.0.1:6379")
    plan = retraining_session.planned(made, 0, n_passes=9, again="a second look")
    retraining_session.same_command(plan)
    metrics = {"metric": "accuracy", "test_metrics": {"accuracy": {"mean": 0.5, "interval_95": None}}}
    more = {
        "test_accuracy_per_seed": [{"accuracy": 0.5}],
        "search_validation_accuracy": None,
        "replicates": None,
        "exports": {},
    }
    retraining_session.print_result(made, metrics | more)
    for experiment in (made, winner, begun):
        report_data.commands(read_all(experiment))
    with made.exclusive():
        report_data.commands(read_all(made))

    assert len(advised) >= 20
    for line in advised:
        given = parsed(monkeypatch, line)
        assert given.results in (f"file://{tmp_path}/bucket", str(results), str(results / "empty")), line
    commands = ("run", "leaderboard", "diagnose", "retrain", "predict", "report")
    assert {shlex.split(line)[2] for line in advised} == {f"search.{name}" for name in commands}


def test_no_message_spells_a_command_by_itself() -> None:
    for path in SEARCH.rglob("*.py"):
        tree = ast.parse(path.read_text())
        of_parsers = {
            id(keyword.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for keyword in node.keywords
            if keyword.arg in ("prog", "epilog", "footer")
        }
        in_footers = {id(part) for node in ast.walk(tree) if id(node) in of_parsers for part in ast.walk(node)}
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and path.name != "command_lines.py":
                spelled = "python -m search." in node.value and id(node) not in docstrings | in_footers
                assert not spelled, f"{path.name}:{node.lineno}: {node.value}"


def test_without_results_where_they_lie_in_the_default_folder(
    tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = foreign.make_experiment(Path("results"), "mine", tiny_space)
    assert command_lines.resume_line(made) == "python -m search.run --resume mine"
    assert command_lines.resume_line(Experiment(made.folder.resolve())).endswith(f" --results {tmp_path / 'results'}")
