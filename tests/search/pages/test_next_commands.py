"""The commands that a report offers do what they say, wherever the experiment lies."""

import shlex
from pathlib import Path

import pytest

from search import diagnose
from search import run as run_command
from search.experiment.folder import Experiment, create_experiment
from search.experiment.manifest import Session
from search.experiment.remote_results import RemoteExperiment, working_folder
from search.pages.headline import remarks, retraining_sentences
from search.pages.report_data import commands, go_on_line, read_all
from search.session import conduct, resume
from search.session.resume import ResumeRequest
from spaces import Space, load_space
from tests.conftest import TINY
from tests.support import foreign, shown_experiment

FINISHED = "finished"


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Space, float | None]]:
    """Spaces that `search.run --resume` would go on with, and the seconds it would have; nothing is trained."""
    found: list[tuple[Space, float | None]] = []

    def check(request: ResumeRequest) -> str:
        space = resume.changed_space(request, request.experiment.history())
        timed = resume.with_time_budget(space, request.time_budget)
        found.append((space, conduct.time_left_s(request.experiment, timed)))
        return FINISHED

    monkeypatch.setattr(resume, "_resume", check)
    monkeypatch.setattr(conduct, "print_result", lambda *_: None)
    return found


def finished(folder: Path, *overrides: str) -> Experiment:
    made = shown_experiment.searched(folder, "mine", load_space("quickstart", [*TINY, *overrides]))
    made.write_manifest(made.manifest.model_copy(update={"state": FINISHED}))
    return made


def offered(experiment: Experiment, what: str) -> list[str]:
    """The words after `python -m`."""
    (line,) = [command.line for command in commands(read_all(experiment)) if command.what == what]
    return shlex.split(line)[2:]


@pytest.mark.parametrize(
    ("overrides", "trials", "epochs"),
    [
        ((), 24, None),
        (("search.trials=null", "search.epoch_budget=15"), None, 23),
        (("search.epoch_budget=15",), 24, 23),
    ],
)
def test_a_finished_search_goes_on_with_more_of_what_limits_it(
    overrides: tuple[str, ...],
    trials: int | None,
    epochs: int | None,
    resumed: list[tuple[Space, float | None]],
    tmp_path: Path,
) -> None:
    made = finished(tmp_path / "some where", *overrides)
    program, *words = offered(made, "Resume this search")
    assert program == "search.run"
    assert run_command.main(words) == 0
    ((space, _),) = resumed
    assert (space.search.trials, space.search.epoch_budget) == (trials, epochs)
    assert not remarks(read_all(made))


def test_an_unfinished_search_goes_on_without_more(
    resumed: list[tuple[Space, float | None]], tiny_space: Space, tmp_path: Path
) -> None:
    made = foreign.make_experiment(tmp_path / "elsewhere", "mine", tiny_space)
    words = offered(made, "Resume this search")
    assert words == ["search.run", "--resume", "mine", "--results", str(tmp_path / "elsewhere")]
    assert run_command.main(words[1:]) == 0
    assert resumed == [(made.space, None)]
    assert remarks(read_all(made)) == [f"The search is not finished; this resumes it: python -m {' '.join(words)}"]


def test_a_search_without_time_left_goes_on_with_more(
    resumed: list[tuple[Space, float | None]], tmp_path: Path
) -> None:
    made = foreign.make_experiment(tmp_path, "mine", load_space("quickstart", [*TINY, "search.time_budget=5m"]))
    session = Session(started_at="1970-01-01T00:00:00+00:00", seconds=310.0, end="time budget used")
    made.write_manifest(made.manifest.with_session(session, new=True))
    known = read_all(made)
    assert run_command.main(shlex.split(go_on_line(known))[3:]) == 0
    ((_, left_s),) = resumed
    assert left_s == 11 * 60 - 310


def test_a_running_search_is_watched_and_a_retraining_is_none(tiny_space: Space, tmp_path: Path) -> None:
    made = foreign.make_experiment(tmp_path, "mine", tiny_space)
    with made.exclusive():
        assert offered(made, "Watch it while it runs")[0] == "search.leaderboard"
        assert remarks(read_all(made)) == ["The search was running when this page was made."]
        made.write_manifest(made.manifest.model_copy(update={"state": "interrupted"}))
        assert offered(made, "Resume this search")[0] == "search.run"


def test_names_and_places_are_found_again(
    tiny_space: Space, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = foreign.make_experiment(Path("results"), "mine", tiny_space)
    (tmp_path / "link").symlink_to(made.folder.resolve())
    absolute = str(made.folder.resolve().parent)
    for folder, more in ((made.folder, []), (Path("link"), ["--results", absolute])):
        experiment = Experiment(folder)
        assert offered(experiment, "This page") == ["search.report", "mine", *more]
        assert offered(experiment, "Retrain the winner, test it once, export it") == ["search.retrain", "mine", *more]
        assert retraining_sentences(read_all(experiment))[0].endswith(" ".join(["search.retrain", "mine", *more]))
        _, space, *flag = offered(experiment, "The same search again")
        assert load_space(space).as_dict() == tiny_space.as_dict()
        assert flag == more
        diagnosis = offered(experiment, "Whether the search was any good, and what to change")
        assert diagnose.main(diagnosis[1:]) == 0
        assert capsys.readouterr().out.startswith("mine: ")
    monkeypatch.chdir(made.folder.resolve())
    assert offered(Experiment(Path()), "This page") == ["search.report", "mine", "--results", absolute]


def test_nobody_is_sent_to_retrain_what_has_no_winner(tiny_space: Space, tmp_path: Path) -> None:
    manifest = foreign.make_experiment(tmp_path, "mine", tiny_space).manifest
    known = read_all(create_experiment(tmp_path, "begun", tiny_space, manifest))
    assert not [command for command in commands(known) if "search.retrain" in command.line]
    assert retraining_sentences(known) == ["The test images have not been opened."]


def test_an_experiment_at_a_url_is_named_by_it(
    tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: list[tuple[Space, float | None]]
) -> None:
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/bucket"
    foreign.make_experiment(working_folder(url), "mine", tiny_space)
    remote = RemoteExperiment(url, "mine")
    with remote.exclusive():
        pass
    for command in commands(read_all(remote)):
        assert shlex.split(command.line)[-2:] == ["--results", url], command
    assert load_space(offered(remote, "The same search again")[1]).as_dict() == tiny_space.as_dict()
    assert run_command.main(offered(remote, "Resume this search")[1:]) == 0
    ((space, _),) = resumed
    assert space.as_dict() == tiny_space.as_dict()
