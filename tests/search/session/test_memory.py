"""Where the memory of a new search comes from, and where it is named."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from search.experiment.events import SpaceSet, event_as_dict, event_from_dict
from search.experiment.folder import Experiment, create_experiment, experiment_of, load_space_or_experiment
from search.experiment.journal import read_history
from search.experiment.manifest import Session
from search.policy.memory import N_STARTS
from search.policy.state import SearchState
from search.session.memory import MOST_OWN, SHIPPED_FILE, recall, shipped_searches
from spaces import Hyperparameters, InputError, Space, load_space
from tests.conftest import TINY, set_options
from tests.support.foreign import Call, make_experiment
from tests.support.simulation import simulate

PUBLISHED = Path(__file__).parents[3] / "results" / "cifar10"
Run = Callable[..., subprocess.CompletedProcess[str]]
SHIPPED_NAMES = ["shipped:digits", "shipped:cifar10-small", "shipped:cifar10"]


def finished(results: Path, name: str, trials: int = 12) -> Experiment:
    space = load_space("quickstart", [f"search.trials={trials}", "search.sampler=random", "confirm.top=0"])
    made = make_experiment(results, name, space)
    (made.folder / "journal.jsonl").unlink()
    journal = made.journal()
    journal.append(SpaceSet(space.as_dict(), [], 0.0))
    simulate(SearchState(space, made.history(), journal))
    made.write_manifest(made.manifest.model_copy(update={"state": "finished", "created_at": f"of {name}"}))
    return made


def space_with(memory: str) -> Space:
    return load_space("cifar10", [f"search.memory={memory}"])


def test_shipped_searches_are_the_default_and_named_one_by_one(tmp_path: Path) -> None:
    space, recalled = recall(load_space("cifar10"), tmp_path / "results")
    assert recalled
    assert recalled.sources == SHIPPED_NAMES
    assert len(recalled.configs) == N_STARTS
    assert all(space.contains(config) for config in recalled.configs)
    assert space.search.memory == ("shipped",), "no experiment of the user's own"
    assert event_from_dict(json.loads(json.dumps(event_as_dict(recalled)))) == recalled


def test_the_shipped_file_is_small_and_says_of_which_published_search_it_is_a_part() -> None:
    assert SHIPPED_FILE.stat().st_size < 200_000
    assert [len(one.configs) for one in shipped_searches()] == [160, 150, 40]
    created_at = json.loads(SHIPPED_FILE.read_text())[-1]["created_at"]
    assert created_at == Experiment(PUBLISHED).manifest.created_at


def test_own_experiments_are_taken_when_they_have_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    finished(results, "mine")
    finished(results, "short", trials=7)
    broken = finished(results, "broken")
    (broken.folder / "manifest.json").write_text("{")
    shutil.rmtree(broken.folder / ".backup")
    running = finished(results, "running")
    running.write_manifest(running.manifest.model_copy(update={"state": "interrupted"}))
    kept = shutil.ignore_patterns("ray", ".*")
    shutil.copytree(PUBLISHED, results / "cifar10", ignore=kept)
    space, recalled = recall(space_with("[shipped, own]"), results)
    assert recalled
    assert recalled.sources == [*SHIPPED_NAMES, "mine"], "the published search is among the shipped ones"
    assert space.search.memory == ("shipped", "mine"), "so that the space repeats this search"
    assert recall(space, results)[1].configs == recalled.configs  # type: ignore[union-attr]
    assert recall(space_with("own"), results)[0].search.memory == ("mine", "cifar10")
    assert capsys.readouterr().err.count("The new search learns nothing from broken: ") == 2


def test_of_many_own_experiments_the_newest_are_taken(tmp_path: Path) -> None:
    first = finished(tmp_path, "first")
    for number in range(1, MOST_OWN + 2):
        copied = Experiment(shutil.copytree(first.folder, tmp_path / f"e{number:02d}"))
        started = f"2026-11-{number:02d}T12:00:00+00:00"
        session = Session(started_at=started)
        copied.write_manifest(copied.manifest.model_copy(update={"sessions": [session], "created_at": started}))
    shutil.rmtree(first.folder)
    space, _ = recall(space_with("own"), tmp_path)
    assert space.search.memory == tuple(f"e{number:02d}" for number in range(MOST_OWN + 1, 1, -1))


def test_searches_without_a_common_hyperparameter_are_not_named(tmp_path: Path) -> None:
    finished(tmp_path, "mine")
    overrides = [f"space.{name}={getattr(Hyperparameters(), name)}" for name in load_space("cifar10").searched]
    other = load_space("cifar10", [*overrides, "space.dropout={uniform: [0.0, 0.3]}"])
    assert recall(other, tmp_path)[1] is None


def test_without_memory_nothing_is_taken(tmp_path: Path) -> None:
    finished(tmp_path, "mine")
    space, recalled = recall(space_with("none"), tmp_path)
    assert (space.search.memory, recalled) == ((), None)
    assert recall(space_with("own"), tmp_path / "empty")[1] is None


def test_a_named_experiment_must_exist_and_have_results(tmp_path: Path, tiny_space: Space) -> None:
    finished(tmp_path, "mine")
    assert recall(space_with("mine"), tmp_path)[1].sources == ["mine"]  # type: ignore[union-attr]
    assert recall(space_with(f"{tmp_path}/mine"), tmp_path / "other")[1].sources  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"^`search.memory`: `yours` is not an experiment"):
        recall(space_with("yours"), tmp_path)
    make_experiment(tmp_path, "few", tiny_space)
    with pytest.raises(
        InputError, match=r"^`search.memory` has few, of which fewer than 8 trials have results, or none"
    ):
        recall(space_with("few"), tmp_path)


def test_plan_and_start_name_what_is_taken(tmp_path: Path, call: Call) -> None:
    finished(tmp_path / "results", "mine")
    settings = set_options(*TINY, "search.memory=[shipped, own]")
    code, output, errors = call("run", "--dry-run", *settings)
    assert (code, errors) == (0, "")
    names = ", ".join([*SHIPPED_NAMES, "mine"])
    assert f"memory      4 configurations that did well in {names}, right after the baseline\n" in output


def test_a_search_of_an_earlier_version_is_repeated_without_memory(tmp_path: Path) -> None:
    assert Experiment(PUBLISHED).space.search.memory == ()
    assert load_space_or_experiment(str(PUBLISHED), ()).search.memory == ()
    made = finished(tmp_path, "mine")
    made.write_space(load_space("cifar10"))
    assert load_space_or_experiment(str(made.folder), ()).search.memory == ("shipped", "own")


def test_what_was_taken_is_in_the_journal_and_taken_again_where_the_search_is_repeated(tmp_path: Path) -> None:
    earlier = finished(tmp_path, "mine")
    space, recalled = recall(space_with("own"), tmp_path)
    template = earlier.manifest.model_copy(update={"name": "new"})
    made = create_experiment(tmp_path, "new", space, template, recalled)
    assert recalled
    assert read_history(made.folder / "journal.jsonl").recalled == recalled.configs
    shutil.rmtree(earlier.folder)
    again = load_space_or_experiment(str(made.folder), ())
    repeated = recall(again, tmp_path, repeated=experiment_of(str(made.folder)))[1]
    assert repeated
    assert (repeated.sources, repeated.configs) == (["mine"], recalled.configs)
    with pytest.raises(InputError, match=r"^`search.memory`: `mine` is not an experiment"):
        recall(again, tmp_path)


@pytest.mark.cluster
@pytest.mark.long
def test_a_search_tries_what_it_took_after_the_baseline(run: Run, tmp_path: Path) -> None:
    settings = set_options(*TINY, "search.memory=shipped", "search.trials=6")
    assert run("search.run", "--name", "new", *settings, cwd=tmp_path).returncode == 0
    made = Experiment(tmp_path / "results" / "new")
    trials = list(made.history().trials.values())
    assert [trial.proposed_by for trial in trials] == ["baseline", *["memory"] * N_STARTS, "prior"]
    assert [trial.config for trial in trials[1:5]] == made.history().recalled
    assert made.manifest.memory == SHIPPED_NAMES
    again = run("search.run", str(made.folder), "--dry-run", cwd=tmp_path)
    assert f"memory      4 configurations that did well in {', '.join(SHIPPED_NAMES)}" in again.stdout
