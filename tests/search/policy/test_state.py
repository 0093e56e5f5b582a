import json
import math
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search.experiment.events import (
    EpochDone,
    EpochRedone,
    Event,
    ReplicateEnded,
    ReplicateEpochDone,
    ReplicateStarted,
    SpaceSet,
    TrialEnded,
    TrialStarted,
    event_as_dict,
    event_from_dict,
)
from search.experiment.history import History
from search.experiment.journal import Journal, backup_of, read_history
from search.policy.state import SearchState
from search.policy.study import STUDY_NAME, write_study
from spaces import InputError, Space, load_space
from spaces.errors import RunError
from tests.support.simulation import numbers, result, simulate

EPOCH = json.dumps(event_as_dict(result(0, 1, 0.5)))


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["search.sampler=random", "confirm.top=0", *overrides])


@pytest.fixture(scope="module")
def space() -> Space:
    return space_with("search.trials=20")


def statuses(history: History) -> list[str]:
    return [trial.status for trial in history.trials.values()]


def test_a_search_tries_the_number_of_trials_and_stops_weak_ones_but_never_the_baseline(space: Space) -> None:
    state = SearchState(space, History())
    simulate(state, curve=lambda trial, config, epoch: 0.0 if trial == 0 else 0.5 + trial * 7 % 20 / 100)
    baseline, *trials = state.history.trials.values()
    assert len(trials) == 19
    assert {trial.status for trial in trials} == {"completed", "stopped"}
    assert all(trial.n_epochs == 9 for trial in trials if trial.status == "completed")
    assert all(trial.n_epochs in (1, 3) for trial in trials if trial.status == "stopped")
    assert (baseline.config, baseline.status) == (space.baseline, "completed")
    assert (state.n_left, state.next_assignment()) == (0, None)


def test_a_stopped_trial_says_at_which_rung_and_below_what(space: Space) -> None:
    state = SearchState(space, History())
    numbers(state, 3)
    assert state.record(result(1, 1, 0.8))
    assert not state.record(result(2, 1, 0.3))
    assert state.history.trials[2].end.reason == "30.00% at rung 1, below its cutoff 80.00%"  # type: ignore[union-attr]


def test_a_diverged_trial_fails_counts_as_worst_and_does_not_stop_the_search(space: Space) -> None:
    state = SearchState(space, History())
    numbers(state, 3)
    assert not state.record(result(1, 1, 0.1, loss=math.nan))
    end = state.history.trials[1].end
    assert end is not None
    assert (end.status, end.reason) == ("diverged", "the loss was not finite in epoch 1")
    assert state.record(result(2, 1, 0.05)), "anything passes a rung where only a diverged trial was"


def test_a_result_known_already_decides_nothing_but_is_counted(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    state = SearchState(space, History(), Journal(path))
    numbers(state, 2)
    state.record(result(0, 1, 0.5))
    state.record(result(1, 1, 0.9))
    epochs = list(state.history.results_in_order)
    assert state.record(result(1, 1, 0.0))
    assert state.history.results_in_order == epochs
    assert state.history.n_redone == read_history(path).n_redone == 1
    assert json.loads(path.read_text().splitlines()[-1])["event"] == "epoch_redone"


# Failures


def test_trials_that_fail_alike_at_the_start_end_the_search_but_not_for_good(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    state = SearchState(space, History(), Journal(path))
    numbers(state, 3)
    for number in range(2):
        state.fail(number, f"process {number} at 0x7f{number} has no libfoo.so")
    with pytest.raises(RunError, match="the first 3 trials failed in the same way: process 0 at"):
        state.fail(2, "process 99 at 0xabc has no libfoo.so")
    assert not any(trial.end for trial in read_history(path).trials.values())
    again = SearchState(space, read_history(path), Journal(path))
    simulate(again)
    assert set(statuses(again.history)) == {"completed", "stopped"}


def test_trials_that_fail_for_different_reasons_are_given_up_one_by_one(space: Space) -> None:
    state = SearchState(space, History())
    for number, reason in enumerate(("no memory", "no driver", "no memory", "no memory")):
        state.next_assignment()
        state.fail(number, reason)
    assert statuses(state.history) == ["failed"] * 4


def test_a_failure_is_its_trial_s_own_once_another_has_trained_also_in_a_later_round(space: Space) -> None:
    state = SearchState(space, History())
    numbers(state, 4)
    for number in (1, 2, 3):
        state.fail(number, "no memory")
    assert set(statuses(state.history)) == {"running"}, "the first trial has not failed and may say more"
    assert state.n_running == 1
    state.record(result(0, 1, 0.5))
    assert statuses(state.history) == ["running", "failed", "failed", "failed"]
    again = SearchState(space, state.history, fails_alone=state.fails_alone)
    assert numbers(again, 2) == [0, 4]
    again.fail(4, "its worker process died")
    assert statuses(again.history)[4] == "failed"


@pytest.mark.parametrize(("n_trials", "which"), [(1, "the only trial failed"), (2, "the first 2 trials failed in the")])
def test_a_search_of_failures_only_says_why_at_its_end(n_trials: int, which: str) -> None:
    state = SearchState(space_with(f"search.trials={n_trials}"), History())
    for number in range(n_trials):
        state.next_assignment()
        state.fail(number, "no libfoo.so")
    assert state.next_assignment() is None
    with pytest.raises(RunError, match=rf"{which}.*: no libfoo\.so\. Mend that"):
        state.close()


def with_first_trials_trained(space: Space, n_trials: int, n_trained: int) -> History:
    state = SearchState(space, History())
    numbers(state, n_trials)
    for number in range(n_trained):
        for epoch in range(1, 10):
            if not state.record(result(number, epoch, 0.5 + number / 100)):
                break
    return state.history


@pytest.mark.parametrize("n_left", [1, 2])
def test_the_last_trials_of_a_search_fail_for_good_where_others_have_trained(n_left: int) -> None:
    space = load_space("quickstart", ["search.trials=6", "search.sampler=random"])
    again = SearchState(space, with_first_trials_trained(space, 6, 6 - n_left))
    for number in range(6 - n_left, 6):
        assert numbers(again, 1) == [number]
        again.fail(number, "the GPU ran out of memory")
    fresh = again.next_assignment()
    assert fresh is not None
    assert fresh.kind == "run", "the search goes on to its end"
    again.close()
    assert statuses(again.history)[-n_left:] == ["failed"] * n_left


def test_a_trial_that_fails_alone_is_not_given_up_while_another_may_tell_more() -> None:
    space = space_with("search.trials=3")
    again = SearchState(space, with_first_trials_trained(space, 3, 1))
    again.next_assignment()
    again.fail(1, "no libfoo.so")
    with pytest.raises(RunError, match="the only trial failed"):
        again.close()  # as after Ctrl-C, with trial 2 still waiting
    assert numbers(again, 2) == [2, None]
    assert statuses(again.history)[1] == "running"


def test_a_full_disk_ends_the_search_with_its_own_error(space: Space) -> None:
    from search.execution.ray_adapters import Shared

    class FullJournal(Journal):
        def __init__(self) -> None:
            pass

        def append(self, event: object) -> None:
            raise OSError(28, "No space left on device")

    state = SearchState(space, History(), FullJournal())
    shared = Shared(state, lambda assignment: {})
    assert shared.kept(state.next_assignment, None) is None
    assert isinstance(shared.failure, OSError)
    assert shared.kept(lambda: 3, 4) == 4, "nothing more is tried"


# The study


def test_the_sampler_and_the_file_of_the_study_are_told_the_truth(space: Space, tmp_path: Path) -> None:
    state = SearchState(space, History())
    numbers(state, 2)
    state.record(result(1, 1, 0.0, loss=math.inf))
    simulate(state, seed=1, max_results=45)
    live = state._proposer._study
    # SQLite reads a `?` in a path as the start of a query.
    folder = tmp_path / "wh?t a=b&c #1"
    folder.mkdir()
    write_study(folder / "study.db", space, state.history)
    assert [path.name for path in folder.iterdir()] == ["study.db"]
    (folder / "study.db").rename(tmp_path / "plain.db")
    written = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{tmp_path / 'plain.db'}")
    states = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "diverged": TrialState.FAIL}
    for study in (live, written):
        assert study.direction.name == "MAXIMIZE"
        trials = study.get_trials(deepcopy=False)
        assert len(trials) == len(state.history.trials)
        assert {trial.state for trial in trials} == {*states.values(), TrialState.RUNNING}
        for trial, ours in zip(trials, state.history.trials.values(), strict=True):
            assert trial.params == ours.suggested
            assert trial.intermediate_values == {e.epoch: e.validation_accuracy for e in ours.epochs if not e.diverged}
            assert trial.state == states.get(ours.status, TrialState.RUNNING)
            has_value = ours.status in ("completed", "stopped")
            assert trial.value == (ours.epochs[-1].validation_accuracy if has_value else None)
            assert trial.user_attrs.get("reason", "") == (ours.end.reason if ours.end else "")


# Events in the journal; `test_asha.py` breaks a search off at each event, and `test_recovery.py` damages its files


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"event": "no such event"}',
        '{"event": "epoch_redone", "trial": 0, "epoch": 1, "at": 0}',
        '{"event": "space_set", "space": [], "excluded": [], "at": 0}',
        '{"event": "space_set", "space": {}, "excluded": [7], "at": 0}',
        '{"event": "space_set", "space": {}, "excluded": ["0"], "at": 0}',
        '{"event": "trial_ended", "trial": 99, "status": "failed", "reason": "", "at": 0}',
        '{"event": "epoch_done", "trial": 0, "epoch": 7}',
        EPOCH.replace('"validation_accuracy": 0.5', '"validation_accuracy": "0.5"'),
        EPOCH.replace('"validation_accuracy": 0.5', '"validation_accuracy": NaN'),
        EPOCH.replace('"validation_accuracy": 0.5', '"validation_accuracy": 1.51'),
        EPOCH.replace('"train_accuracy": ', '"train_accuracy": 1'),
        EPOCH.replace('"train_loss": 1.0', '"train_loss": "x"'),
        EPOCH.replace('"train_s": 0.5', '"train_s": null'),
        EPOCH.replace('"train_s": 0.5', '"train_s": true'),
        EPOCH.replace('"epoch": 1', '"epoch": 2'),
        EPOCH.replace('"trial": 0', '"trial": -1'),
        '{"event": "trial_ended", "trial": 0, "status": "banana", "reason": "", "at": 0}',
        '{"event": "trial_ended", "trial": 0, "status": "failed", "reason": 3, "at": 0}',
        '{"event": "trial_started", "trial": 1, "suggested": 3, "config": {}, "baseline": false, "at": 0}',
        '{"event": "trial_started", "trial": 1, "suggested": {}, "config": {}, "baseline": "no", "at": 0}',
        '{"event": "trial_started", "trial": 1, "suggested": {}, "config": {"lr": "x"}, "baseline": false, "at": 0}',
    ],
)
def test_a_damaged_line_is_named(space: Space, tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append(TrialStarted(0, {}, space.baseline, True, 0.0))
    backup_of(path).unlink()
    whole = path.read_text()
    path.write_text(whole + EPOCH + "\n")
    assert read_history(path).n_epochs == 1
    path.write_text(whole + line + "\n")
    with pytest.raises(InputError, match=r"journal\.jsonl:2: is not an event of a search"):
        read_history(path)


def test_events_survive_json(space: Space) -> None:
    events: list[Event] = [
        SpaceSet(space.as_dict(), [], 1.0),
        TrialStarted(0, {"lr": 0.1}, space.baseline, True, 1.5),
        EpochRedone(0, 1, 1.7),
        EpochDone(0, 1, 0.1, 0.5, 0.6, 0.7, 0.8, 1.0, 0.1, 2.0),
        TrialEnded(0, "stopped", "below", 2.5),
        ReplicateStarted(0, 3, 1, 1.0),
        ReplicateEpochDone(0, 1, 0.5, 0.6, 0.7, 1.0, 0.1, 2.0),
        ReplicateEnded(0, "diverged", "the loss was not finite in epoch 1", 3.0),
    ]
    for event in events:
        assert event_from_dict(json.loads(json.dumps(event_as_dict(event)))) == event
    diverged = event_as_dict(EpochDone(0, 1, 0.1, math.inf, 0.1, math.nan, 0.1, 1.0, 0.1, 2.0))
    assert diverged["train_loss"] is None
    assert event_from_dict(diverged).diverged  # type: ignore[union-attr]
