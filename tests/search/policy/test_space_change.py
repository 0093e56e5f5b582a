"""A search whose space was changed: what is refused, what is excluded, and what counts on."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from search.analysis.ranking import lead_sentence, rank, winner
from search.experiment.events import ReplicateStarted, SpaceSet, TrialEnded, TrialStarted
from search.experiment.folder import Experiment, load_space_or_experiment
from search.experiment.history import History
from search.policy.rungs import Rungs
from search.policy.space_change import counting_in, excluded, must_be_allowed
from search.policy.state import SearchState
from search.policy.study import study_of
from search.session.resume import ResumeRequest, adopt_space, changed_space
from spaces import InputError, Space, load_space
from spaces.loader import dump_space, space_from_text
from spaces.parameters import LogUniform
from tests.support.foreign import make_experiment
from tests.support.simulation import result, simulate
from trainable.files import write_text

FOLDER = Path("results/mine")
NARROWED = ("space.lr={loguniform: [0.002, 0.05]}",)


def changed(*overrides: str) -> Space:
    return load_space("quickstart", ["search.trials=20", "search.sampler=random", "confirm.top=0", *overrides])


SPACE = changed()


@pytest.fixture(scope="module")
def finished() -> History:
    history = History([SpaceSet(SPACE.as_dict(), [], 0.0)])
    simulate(SearchState(SPACE, history))
    return history


@pytest.fixture
def searched(finished: History) -> History:
    return deepcopy(finished)


@pytest.mark.parametrize(
    ("override", "is_change"),
    [("search.trials=20", False), ("search.trials=30", True), ("search.time_budget=1h", True)],
)
def test_what_does_not_touch_results_may_change(override: str, is_change: bool) -> None:
    assert must_be_allowed(SPACE.as_dict(), changed(override), allowed=False, folder=FOLDER) == is_change


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (NARROWED[0], "`space.lr` was {loguniform: [0.002, 0.5]} and is {loguniform: [0.002, 0.05]}"),
        ("baseline.lr=0.02", "`baseline.lr` was 0.01 and is 0.02"),
        ("training.batch_size=32", "`training.batch_size` was 16 and is 32"),
        ("space.dropout={uniform: [0, 0.5]}", "`space.dropout` was not given and is {uniform: [0.0, 0.5]}"),
    ],
)
def test_a_changed_space_is_shown_and_must_be_allowed(override: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        must_be_allowed(SPACE.as_dict(), changed(override), allowed=False, folder=FOLDER)
    assert f"{FOLDER}: {line}." in error.value.lines
    assert "--allow-changed-space" in error.value.lines[-1]
    assert must_be_allowed(SPACE.as_dict(), changed(override), allowed=True, folder=FOLDER)


@pytest.mark.parametrize(
    "override", ["dataset.train_limit=400", "training.max_epochs=27", "training.precision=fp32", "search.seed=1"]
)
def test_what_every_result_rests_on_cannot_change(override: str) -> None:
    with pytest.raises(InputError, match="its trials would not compare with later ones"):
        must_be_allowed(SPACE.as_dict(), changed(override), allowed=True, folder=FOLDER)


def test_trials_outside_count_no_more_and_those_inside_do(searched: History, monkeypatch: pytest.MonkeyPatch) -> None:
    narrowed = changed(*NARROWED)
    outside = excluded(narrowed, searched)
    assert outside == [n for n, trial in searched.trials.items() if trial.config.lr > 0.05]
    assert 0 < len(outside) < 20
    assert searched.n_ended == 20
    searched.apply(SpaceSet(narrowed.as_dict(), outside, 1.0))
    assert searched.n_ended == 20 - len(outside), "a leaderboard of 20 trials never says that 25 have ended"

    ranked = rank(searched)
    assert [row.excluded for row in ranked] == sorted(row.excluded for row in ranked), "last"
    assert winner(ranked).trial not in outside  # type: ignore[union-attr]
    assert {row.reason for row in ranked if row.excluded} == {"outside the space as it was changed later"}

    study = study_of(narrowed, searched)
    assert [trial.number for trial in study.trials if not trial.params] == outside

    at_rungs: set[int] = set()

    class Recorded(Rungs):
        def arrive(self, trial: int, epoch: int, value: float) -> str | None:
            at_rungs.add(trial)
            return super().arrive(trial, epoch, value)

    monkeypatch.setattr("search.policy.asha.Rungs", Recorded)
    state = SearchState(narrowed, searched)
    assert at_rungs == set(searched.trials) - set(outside)
    assert state.n_left == len(outside), "so many are tried in their place"
    simulate(state, seed=1)
    assert len(searched.counting) == 20
    assert all(narrowed.contains(trial.config) for trial in searched.counting)
    assert [trial.number for trial in searched.trials.values() if trial.baseline] == [0]


EDITED = [
    (NARROWED, "lr"),
    (("space.weight_decay={loguniform: [0.00001, 0.01]}", "baseline.weight_decay=0.0001"), "weight_decay"),
    (("training.batch_size=32",), "batch_size"),
]


@pytest.mark.parametrize(("overrides", "name"), EDITED)
def test_a_study_of_an_edited_file_learns_nothing_from_trials_outside(
    overrides: tuple[str, ...], name: str, searched: History
) -> None:
    edited = changed(*overrides)
    outside = excluded(edited, searched)
    assert outside, name
    assert [trial.number for trial in study_of(edited, searched).trials if not trial.params] == outside
    assert [trial.number for trial in counting_in(edited, searched)] == sorted(set(searched.trials) - set(outside))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_every_proposal_of_a_space_lies_in_it_so_that_a_resumed_study_knows_all(sampler: str) -> None:
    searched = ("space.batch_size={choice: [16, 32]}", "space.weight_decay={loguniform: [0.00001, 0.01]}")
    baseline = ("baseline.batch_size=16", "baseline.weight_decay=0.0001")
    space = changed(*searched, *baseline, f"search.sampler={sampler}", "search.startup_trials=5")
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
    simulate(state, max_results=40)
    assert state.history.unfinished
    assert excluded(space, state.history) == []
    read_back = space_from_text(dump_space(space), "experiment.yaml", "mine", ())
    for trial in study_of(read_back, state.history).trials:
        config = state.history.trials[trial.number].config
        assert trial.params == {name: getattr(config, name) for name in space.searched}


def test_a_new_baseline_is_run_and_led_against(searched: History) -> None:
    moved = changed("baseline.lr=0.03")
    searched.apply(SpaceSet(moved.as_dict(), excluded(moved, searched), 1.0))
    state = SearchState(changed("baseline.lr=0.03", "search.trials=22"), searched)
    simulate(state, seed=2)
    baselines = [trial for trial in searched.trials.values() if trial.baseline]
    assert [trial.number for trial in baselines] == [0, 20]
    assert baselines[1].config.lr == 0.03
    assert baselines[1].status == "completed"
    sentence = lead_sentence(searched, rank(searched))
    assert "(trial 20, " in sentence or "It is the baseline" in sentence


def test_a_parameter_that_is_searched_from_now_on_takes_old_trials_at_their_fixed_value(searched: History) -> None:
    widened = changed("space.dropout={uniform: [0.0, 0.5]}")
    assert excluded(widened, searched) == []
    searched.apply(SpaceSet(widened.as_dict(), [], 1.0))
    assert all(trial.params["dropout"] == 0.1 for trial in study_of(widened, searched).trials)


def test_unfinished_runs_of_trials_that_are_set_aside_end_and_others_go_on(tiny_space: Space, tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, "mine", tiny_space)
    journal = experiment.journal()
    journal.append(TrialEnded(1, "stopped", "", 2.0))
    journal.append(TrialStarted(2, {"lr": 0.3}, replace(tiny_space.baseline, lr=0.3), False, 3.0))
    journal.append(result(2, 1, 0.5))
    journal.append(TrialEnded(2, "stopped", "", 4.0))
    for number, trial in enumerate((0, 2)):
        journal.append(ReplicateStarted(number, trial, 1, 5.0))
    lr = tiny_space.parameters["lr"]
    assert isinstance(lr, LogUniform)
    narrowed = replace(tiny_space, parameters={**tiny_space.parameters, "lr": replace(lr, high=0.05)})

    adopt_space(experiment, narrowed, experiment.history())
    history = experiment.history()
    assert [trial.excluded for trial in history.trials.values()] == [False, False, True]
    end = history.replicates[1].end
    assert end is not None
    assert (end.status, end.reason) == ("failed", "the space was changed")
    assert [run.number for run in history.unfinished_replicates] == [0]


NO_LR = dump_space(load_space("quickstart", ["confirm.top=0"])).replace(
    "  lr:\n    loguniform:\n    - 0.002\n    - 0.5\n", ""
)


def old_experiment(results: Path, lr: str, n_trials: int) -> Experiment:
    """An experiment as earlier versions wrote it: `baseline` names searched hyperparameters only."""
    space = space_from_text(NO_LR, "old.yaml", "old", [f"baseline.lr={lr}"])
    made = make_experiment(results, "old", space)
    content = space.as_dict()
    content["baseline"] = space.searched_values(space.baseline)
    write_text(made.folder / "experiment.yaml", yaml.safe_dump(content, sort_keys=False))
    (made.folder / "journal.jsonl").unlink()
    journal = made.journal()
    journal.append(SpaceSet(content, [], 0.0))
    for number in range(n_trials):
        journal.append(TrialStarted(number, space.searched_values(space.baseline), space.baseline, number == 0, 1.0))
        journal.append(TrialEnded(number, "stopped", "", 2.0))
    return Experiment(made.folder)


def two_more(experiment: Experiment) -> ResumeRequest:
    return ResumeRequest(started_s=0.0, results=experiment.folder.parent, experiment=experiment, add_trials=2)


@pytest.mark.parametrize("lr", ["0.01", "0.00001"])
def test_a_resumed_search_of_an_earlier_version_keeps_the_values_of_its_trials(
    lr: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = old_experiment(tmp_path, lr, 3)
    space = changed_space(two_more(experiment), experiment.history())
    assert space.baseline.lr == float(lr)
    adopt_space(experiment, space, experiment.history())
    assert [trial.excluded for trial in experiment.history().trials.values()] == [False] * 3
    assert load_space(str(experiment.folder)).baseline.lr == float(lr), "the file states it from now on"
    told = capsys.readouterr().err
    assert "experiment.yaml: does not state `baseline.lr`; the value of its trials" in told
    assert "count no more" not in told


def test_an_old_search_is_repeated_with_its_values_and_needs_neither_trials_nor_space_file(tmp_path: Path) -> None:
    folder = old_experiment(tmp_path / "one", "0.01", 1).folder
    assert load_space_or_experiment(str(folder), []).baseline.lr == 0.01
    assert load_space_or_experiment(str(folder / "experiment.yaml"), []).baseline.lr == 0.01
    assert load_space_or_experiment(str(folder), ["baseline.lr=0.2"]).baseline.lr == 0.2
    (folder / "experiment.yaml").unlink()
    assert Experiment(folder).space.baseline.lr == 0.01
    without_trials = old_experiment(tmp_path / "two", "0.05", 0)
    assert changed_space(two_more(without_trials), without_trials.history()).search.trials == 18


def test_trials_are_never_set_aside_without_a_word(
    tiny_space: Space, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = make_experiment(tmp_path, "mine", tiny_space)
    moved = replace(tiny_space, parameters={**tiny_space.parameters, "lr": LogUniform(0.1, 0.5)})
    adopt_space(experiment, moved, experiment.history())
    assert "2 of 2 trials lie outside the space as it is now and count no more (0, 1)." in capsys.readouterr().err
    adopt_space(experiment, replace(moved, confirm=moved.confirm.model_copy(update={"seeds": 5})), experiment.history())
    assert "count no more" not in capsys.readouterr().err, "they did not count before"
