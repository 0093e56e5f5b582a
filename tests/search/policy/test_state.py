import json
import math
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search.experiment.events import (
    EpochDone,
    EpochRedone,
    SpaceSet,
    TrialEnded,
    TrialStarted,
    event_as_dict,
    event_from_dict,
)
from search.experiment.history import History
from search.experiment.journal import Journal, backup_of, read_history
from search.policy.state import SearchState
from search.policy.study import STUDY_NAME, Proposer, write_study
from spaces import InputError, Space, load_space
from spaces.errors import RunError
from tests.support.simulation import result, simulate

EPOCH = json.dumps(event_as_dict(result(0, 1, 0.5)))


@pytest.fixture
def space() -> Space:
    return load_space("quickstart", ["search.trials=20", "confirm.top=0"])


def statuses(history: History) -> dict[int, str]:
    return {number: trial.status for number, trial in history.trials.items()}


def test_a_search_tries_the_number_of_trials_and_stops_weak_ones(space: Space) -> None:
    state = SearchState(space, History())
    simulate(state, seed=0)
    trials = state.history.trials.values()
    assert len(trials) == 20
    assert {trial.status for trial in trials} == {"completed", "stopped"}
    assert all(trial.n_epochs == 9 for trial in trials if trial.status == "completed")
    assert all(trial.n_epochs in (1, 3) for trial in trials if trial.status == "stopped")
    assert state.n_left == 0
    assert state.next_assignment() is None


def test_the_baseline_is_first_and_goes_to_the_end_however_bad(space: Space) -> None:
    state = SearchState(space, History())
    simulate(state, seed=0, curve=lambda trial, config, epoch: 0.0 if trial == 0 else 0.5 + trial / 100)
    baseline = state.history.trials[0]
    assert baseline.config == space.baseline
    assert baseline.status == "completed"


def test_a_stopped_trial_says_at_which_rung_and_below_what(space: Space) -> None:
    state = SearchState(space, History())
    for _ in range(3):
        state.next_assignment()
    assert state.record(result(1, 1, 0.8))
    assert not state.record(result(2, 1, 0.3))
    end = state.history.trials[2].end
    assert end is not None
    assert end.reason == "30.00% at rung 1, below its cutoff 80.00%"


def test_a_diverged_trial_fails_counts_as_worst_and_does_not_stop_the_search(space: Space) -> None:
    state = SearchState(space, History())
    for _ in range(3):
        state.next_assignment()
    assert not state.record(result(1, 1, 0.1, loss=math.nan))
    assert state.history.trials[1].status == "diverged"
    assert state.history.trials[1].end.reason == "the loss was not finite in epoch 1"  # type: ignore[union-attr]
    assert state.record(result(2, 1, 0.05)), "anything passes a rung where only a diverged trial was"


def test_a_result_known_already_decides_nothing_but_is_counted(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    state = SearchState(space, History(), Journal(path))
    for _ in range(2):
        state.next_assignment()
    state.record(result(0, 1, 0.5))
    state.record(result(1, 1, 0.9))
    epochs = list(state.history.results_in_order)
    assert state.record(result(1, 1, 0.0))
    assert state.history.results_in_order == epochs
    assert state.history.n_redone == read_history(path).n_redone == 1
    assert json.loads(path.read_text().splitlines()[-1])["event"] == "epoch_redone"


def test_trials_that_fail_alike_at_the_start_end_the_search_but_not_for_good(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    state = SearchState(space, History(), Journal(path))
    for number in range(2):
        state.next_assignment()
        state.fail(number, f"process {number} at 0x7f{number} has no libfoo.so")
    state.next_assignment()
    with pytest.raises(RunError, match="the first 3 trials failed in the same way: process 0 at"):
        state.fail(2, "process 99 at 0xabc has no libfoo.so")
    assert not any(trial.end for trial in read_history(path).trials.values())
    again = SearchState(space, read_history(path), Journal(path))
    simulate(again, seed=0)
    assert set(statuses(again.history).values()) == {"completed", "stopped"}


def test_trials_that_fail_for_different_reasons_are_given_up_one_by_one(space: Space) -> None:
    state = SearchState(space, History())
    for number, reason in enumerate(("no memory", "no driver", "no memory")):
        state.next_assignment()
        state.fail(number, reason)
    assert list(statuses(state.history).values()) == ["failed"] * 3
    state.next_assignment()
    state.fail(3, "no memory")
    assert statuses(state.history)[3] == "failed"


def test_a_failure_is_its_trial_s_own_once_another_has_trained(space: Space) -> None:
    state = SearchState(space, History())
    for _ in range(4):
        state.next_assignment()
    for number in (1, 2, 3):
        state.fail(number, "no memory")
    assert set(statuses(state.history).values()) == {"running"}, "the first trial has not failed and may say more"
    assert state.n_running == 1
    state.record(result(0, 1, 0.5))
    assert list(statuses(state.history).values()) == ["running", "failed", "failed", "failed"]


def test_a_failure_is_its_trial_s_own_in_a_later_round_of_a_session_too(space: Space) -> None:
    state = SearchState(space, History())
    for _ in range(2):
        state.next_assignment()
    state.record(result(0, 1, 0.5))
    again = SearchState(space, state.history, fails_alone=state.fails_alone)
    for _ in range(2):
        again.next_assignment()
    again.fail(1, "its worker process died")
    assert statuses(again.history)[1] == "failed"


def test_a_search_of_failures_only_says_why_at_its_end() -> None:
    state = SearchState(load_space("quickstart", ["search.trials=2"]), History())
    for number in range(2):
        state.next_assignment()
        state.fail(number, "no memory")
    assert state.next_assignment() is None
    with pytest.raises(RunError, match="the first 2 trials failed in the same way: no memory"):
        state.close()


@pytest.mark.parametrize("n_left", [1, 2])
def test_the_last_trials_of_a_search_fail_for_good_where_others_have_trained(n_left: int) -> None:
    space = load_space("quickstart", ["search.trials=6"])
    state = SearchState(space, History())
    for number in range(6):
        state.next_assignment()
        for epoch in range(1, 10 if number < 6 - n_left else 0):
            if not state.record(result(number, epoch, 0.5 + number / 100)):
                break
    again = SearchState(space, state.history)
    for number in range(6 - n_left, 6):
        assert again.next_assignment() is not None
        again.fail(number, "the GPU ran out of memory")
    fresh = again.next_assignment()
    assert fresh is not None
    assert fresh.kind == "run", "the search goes on to its end"
    again.close()
    assert [again.history.trials[number].status for number in range(6 - n_left, 6)] == ["failed"] * n_left


def test_a_trial_that_fails_alone_is_not_given_up_while_another_may_tell_more() -> None:
    space = load_space("quickstart", ["search.trials=3"])
    state = SearchState(space, History())
    for _ in range(3):
        state.next_assignment()
    for epoch in range(1, 10):
        state.record(result(0, epoch, 0.5))
    again = SearchState(space, state.history)
    again.next_assignment()
    again.fail(1, "no libfoo.so")
    with pytest.raises(RunError, match="the only trial failed"):
        again.close()  # as after Ctrl-C, with trial 2 still waiting
    again.next_assignment()
    assert again.next_assignment() is None
    assert statuses(again.history)[1] == "running"


def test_the_first_trial_of_a_search_that_fails_alone_is_told_of() -> None:
    state = SearchState(load_space("quickstart", ["search.trials=1"]), History())
    state.next_assignment()
    state.fail(0, "no libfoo.so")
    assert state.next_assignment() is None
    with pytest.raises(RunError, match=r"the only trial failed: no libfoo\.so\. Mend that"):
        state.close()


def test_the_sampler_is_told_the_truth(space: Space, tmp_path: Path) -> None:
    state = SearchState(space, History())
    for _ in range(2):
        state.next_assignment()
    state.record(result(1, 1, 0.0, loss=math.inf))
    simulate(state, seed=1)
    live = state._proposer._study
    write_study(tmp_path / "study.db", space, state.history)
    for study in (
        live,
        optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{tmp_path / 'study.db'}"),
    ):
        states = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "diverged": TrialState.FAIL}
        assert study.direction.name == "MAXIMIZE"
        assert len(study.trials) == len(state.history.trials)
        for trial in study.trials[1:]:
            ours = state.history.trials[trial.number]
            if ours.end is None:
                assert trial.state == TrialState.RUNNING
                continue
            assert trial.state == states[ours.status]
            assert trial.params == ours.suggested
            assert trial.intermediate_values == {e.epoch: e.validation_accuracy for e in ours.epochs if not e.diverged}
            expected = None if ours.status == "diverged" else ours.epochs[-1].validation_accuracy
            assert trial.value == expected
            assert trial.user_attrs.get("reason", "") == ours.end.reason
    assert TrialState.FAIL in {trial.state for trial in live.trials}


def test_the_same_history_gives_the_same_proposal(space: Space) -> None:
    state = SearchState(space, History())
    simulate(state, seed=0, max_results=40)
    number = len(state.history.trials)
    afresh = [Proposer(space, state.history).propose(number, baseline=False) for _ in range(2)]
    assert afresh[0] == afresh[1] == state._proposer.propose(number, baseline=False)


def test_another_seed_gives_other_proposals_but_the_same_baseline(space: Space) -> None:
    other = load_space("quickstart", ["search.trials=20", "search.seed=1", "confirm.top=0"])
    first, second = Proposer(space, History()), Proposer(other, History())
    assert first.propose(0, baseline=True) == second.propose(0, baseline=True) == space.baseline_suggestion()
    assert first.propose(1, baseline=False) != second.propose(1, baseline=False)


@pytest.mark.parametrize("broke_off_after", [0, 1, 2, 5, 11, 23, 36])
def test_a_resumed_search_loses_and_repeats_nothing(space: Space, tmp_path: Path, broke_off_after: int) -> None:
    path = tmp_path / "journal.jsonl"
    simulate(SearchState(space, History(), Journal(path)), seed=4, max_results=broke_off_after)
    before = read_history(path)
    simulate(SearchState(space, read_history(path), Journal(path)), seed=5)
    after = read_history(path)
    assert len(after.trials) == 20
    assert not after.unfinished
    for number, trial in before.trials.items():
        assert after.trials[number].config == trial.config
        assert after.trials[number].epochs[: trial.n_epochs] == trial.epochs
        if trial.end:
            assert after.trials[number].end == trial.end
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    epochs = [(line["trial"], line["epoch"]) for line in lines if line["event"] == "epoch_done"]
    assert len(epochs) == len(set(epochs))


def test_a_resumed_search_decides_as_one_that_never_stopped(space: Space, tmp_path: Path) -> None:
    # One trial at a time, so that the order of events is the same with and without the break.
    undisturbed = SearchState(space, History())
    simulate(undisturbed, seed=0, trials_at_once=1)
    path = tmp_path / "journal.jsonl"
    for _ in range(200):
        state = SearchState(space, read_history(path), Journal(path))
        if not state.n_left:
            break
        simulate(state, seed=0, max_results=3, trials_at_once=1)
    resumed = read_history(path)
    assert statuses(resumed) == statuses(undisturbed.history)
    assert [t.config for t in resumed.trials.values()] == [t.config for t in undisturbed.history.trials.values()]
    assert resumed.results_in_order == undisturbed.history.results_in_order


def test_a_verdict_that_was_due_when_the_search_died_is_given_on_resume(space: Space) -> None:
    events = [TrialStarted(n, space.baseline_suggestion(), space.baseline, n == 0, 0.0) for n in range(4)]
    history = History([*events, result(1, 1, 0.8), result(2, 1, 0.3), *(result(3, e, 0.9) for e in range(1, 10))])
    state = SearchState(space, history)
    assert statuses(history) == {0: "running", 1: "running", 2: "stopped", 3: "completed"}
    assert [state.next_assignment().number for _ in range(2)] == [0, 1]  # type: ignore[union-attr]


def test_a_well_formed_line_is_none_of_those(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append(TrialStarted(0, {}, space.baseline, True, 0.0))
    with path.open("a") as file:
        file.write(EPOCH + "\n")
    assert read_history(path).n_epochs == 1


def test_a_study_is_written_whatever_the_folder_is_called(space: Space, tmp_path: Path) -> None:
    state = SearchState(space, History())
    simulate(state, seed=0, max_results=5)
    folder = tmp_path / "wh?t a=b&c #1"
    folder.mkdir()
    write_study(folder / "study.db", space, state.history)
    assert [path.name for path in folder.iterdir()] == ["study.db"]
    (tmp_path / "plain.db").write_bytes((folder / "study.db").read_bytes())
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{tmp_path / 'plain.db'}")
    assert len(study.trials) == len(state.history.trials)


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


@pytest.mark.parametrize("n_bytes_lost", [1, 10, 60])
def test_a_line_that_a_power_cut_tore_is_dropped(space: Space, tmp_path: Path, n_bytes_lost: int) -> None:
    path = tmp_path / "journal.jsonl"
    simulate(SearchState(space, History(), Journal(path)), seed=0, max_results=10)
    whole = read_history(path)
    for one in (path, backup_of(path)):
        one.write_bytes(one.read_bytes()[:-n_bytes_lost])
    torn = read_history(path)
    assert torn.n_epochs + sum(t.end is not None for t in torn.trials.values()) + len(torn.trials) == (
        whole.n_epochs + whole.n_ended + len(whole.trials) - 1
    )
    simulate(SearchState(space, torn, Journal(path)), seed=0)
    assert len(read_history(path).trials) == 20


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
    journal = Journal(path)
    journal.append(TrialStarted(0, {}, space.baseline, True, 0.0))
    backup_of(path).unlink()
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"journal\.jsonl:2: is not an event of a search"):
        read_history(path)


def test_events_survive_json(space: Space) -> None:
    events = [
        SpaceSet(space.as_dict(), [], 1.0),
        TrialStarted(0, {"lr": 0.1}, space.baseline, True, 1.5),
        EpochRedone(0, 1, 1.7),
        EpochDone(0, 1, 0.1, 0.5, 0.6, 0.7, 0.8, 1.0, 0.1, 2.0),
        TrialEnded(0, "stopped", "below", 2.5),
    ]
    for event in events:
        assert event_from_dict(json.loads(json.dumps(event_as_dict(event)))) == event
    diverged = event_as_dict(EpochDone(0, 1, 0.1, math.inf, 0.1, math.nan, 0.1, 1.0, 0.1, 2.0))
    assert diverged["train_loss"] is None
    assert event_from_dict(diverged).diverged  # type: ignore[union-attr]
