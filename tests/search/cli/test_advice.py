"""Every command that a message or page tells the user to type is one that the command itself accepts."""

import ast
import errno
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search import diagnose, leaderboard, predict, report, retrain
from search import run as run_module
from search.execution import launching
from search.experiment import command_lines, remote_results
from search.experiment import folder as experiment_module
from search.experiment.folder import Experiment, create_experiment, open_experiment
from search.experiment.history import History
from search.pages import next_commands as report_commands
from search.pages.report_data import read_all
from search.retraining import session as retraining_session
from search.retraining.session import RetrainRequest
from search.session import conduct, resume, start
from search.session.request import ResumeRequest
from spaces import InputError, Space
from spaces.errors import RunError
from tests.support import foreign, shown_experiment

MAKERS = {"command_line", "command_on", "resume_line"}
SEARCH = Path(command_lines.__file__).parents[1]
COMMANDS = {
    "run": run_module,
    "leaderboard": leaderboard,
    "diagnose": diagnose,
    "retrain": retrain,
    "predict": predict,
    "report": report,
}


class Advised:
    """Collects the commands that are made, and the functions that have them made."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.by: set[tuple[str, str]] = set()
        self._make = command_lines.command_line

    def __call__(self, *arguments: Any, **more: Any) -> str:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_code.co_filename == command_lines.__file__:
            frame = frame.f_back
        self.by.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))
        self.lines.append(self._make(*arguments, **more))
        return self.lines[-1]


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> Advised:
    recorder = Advised()
    for module in (command_lines, start, resume, experiment_module, remote_results, report_commands):
        monkeypatch.setattr(module, "command_line", recorder)
    return recorder


def parsed(monkeypatch: pytest.MonkeyPatch, line: str) -> Namespace:
    """What the command's own parser makes of a line."""
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    module = COMMANDS[words[2].removeprefix("search.")]
    found: list[Namespace] = []

    def parse(parser: Any, action: Callable[..., int], arguments: list[str] | None) -> int:
        found.append(parser.parse_args(arguments))
        return 0

    monkeypatch.setattr(module, "run_command", parse)
    module.main(words[3:])
    return found[0]


def functions_that_advise() -> set[tuple[str, str]]:
    """File and function of each call of `MAKERS`."""
    found = set()
    for path in SEARCH.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and path.name != "command_lines.py":
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                if any(isinstance(call, ast.Name) and call.id in MAKERS for call in calls):
                    found.add((path.name, function.name))
    return found


def advise_everything(results: Path, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    made = foreign.make_experiment(results, "mine", space)
    winner = shown_experiment.searched(results, "won", space)
    given = Namespace(results=results, results_url=None, experiment="mine", trial=None, top=3, address="10.0.0.1:6379")
    monkeypatch.setattr(leaderboard, "_print", lambda *_: 0)
    monkeypatch.setattr("search.terminal.live_screen.can_show_screens", lambda console: True)
    leaderboard._watch(Namespace(**{**vars(given), "top": None, "sort": "rank", "format": "table"}))
    with pytest.raises(RunError, match="no space left"), launching._disk_in_one_line(made):
        raise OSError(errno.ENOSPC, "No space left on device")
    removed = Experiment(results / "removed")
    with pytest.raises(RunError, match="was removed while"), launching._disk_in_one_line(removed):
        raise InputError("manifest.json: cannot be read")
    with pytest.raises(InputError, match="Start one with"):
        open_experiment(None, results / "empty")
    with pytest.raises(InputError, match="resume it"):
        create_experiment(results, "mine", space, made.manifest)
    with pytest.raises(InputError, match="resume it"):
        start.must_be_new("mine", results, None)
    with pytest.raises(InputError, match="does not say what was searched"):
        resume.changed_space(ResumeRequest(started_s=0.0, results=results, experiment=made), History())
    with pytest.raises(InputError, match="other images"):
        resume.must_be_the_same_images(made, SimpleNamespace(decoded=SimpleNamespace(content_sha256="1")))  # type: ignore[arg-type]
    conduct.print_result(winner, "interrupted", given.address)
    conduct.print_result(winner, "time budget used", given.address)
    begun = create_experiment(results, "begun", space, made.manifest)
    with pytest.raises(InputError, match="no trial has completed"):
        retraining_session.chosen_trial(RetrainRequest(experiment=begun))
    retraining = SimpleNamespace(experiment=made, trial=SimpleNamespace(number=1))
    retraining_session.same_command(retraining, RetrainRequest(experiment=made, passes=9, again="a second look"))  # type: ignore[arg-type]
    monkeypatch.setattr(launching, "_close_session", lambda *_: None)
    launch = SimpleNamespace(experiment=winner, space=space, cluster=SimpleNamespace(address="10.0.0.1:6379"))
    lost_images = SimpleNamespace(decoded=SimpleNamespace(folder=results / "no images"))
    search = SimpleNamespace(experiment=winner, cluster=SimpleNamespace(shares_disk=True), data=lost_images)
    assert launching.damaged_images(search) is not None  # type: ignore[arg-type]
    launching._last_words(launch, SimpleNamespace(close=lambda: None))  # type: ignore[arg-type]
    metrics = {"test_accuracy_mean": 0.5, "test_accuracy_interval_95": None, "test_accuracy_per_seed": []}
    retraining_session.print_result(made, {**metrics, "search_validation_accuracy": None, "exports": {}})
    with pytest.raises(InputError, match="Make it first"):
        predict._predict(given)
    for experiment in (made, winner, begun):
        report_commands.commands(read_all(experiment))
    with made.exclusive():
        report_commands.commands(read_all(made))
    url = f"file://{results.parent}/bucket"
    with pytest.raises(InputError, match="Start one with"):
        remote_results.open_remote_experiment(url, None)
    remote = remote_results.RemoteExperiment(remote_results.RemoteResults(url), "mine")
    remote_results._Copier(remote)


def test_each_command_that_is_advised_is_one(
    advised: Advised, tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / "cache"))
    results = tmp_path / "some where"
    advise_everything(results, tiny_space, monkeypatch)
    assert advised.by == functions_that_advise()
    for line in advised.lines:
        given = parsed(monkeypatch, line)
        if given.results_url:
            assert given.results_url == f"file://{results.parent}/bucket"
        else:
            assert given.results in (results, results / "empty"), line
    assert {shlex.split(line)[2] for line in advised.lines} == {f"search.{name}" for name in COMMANDS}


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
