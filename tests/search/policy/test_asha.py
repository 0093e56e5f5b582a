"""Which trial continues at a rung, and when a search ends: in searches without Ray."""

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.invariants import history_problems
from search.experiment.events import (
    Event,
    SpaceSet,
    TrialPromoted,
    event_as_dict,
    event_from_dict,
)
from search.experiment.history import History
from search.experiment.journal import Journal, read_history
from search.experiment.space_file import space_of_journal
from search.policy.budget import epochs_trained, most_epochs_over
from search.policy.state import Assignment, SearchState, is_done
from spaces import Hyperparameters, InputError, Space, load_space
from tests.support.simulation import result, simulate

CHANCE = 0.12
CHANCES = {"accuracy": CHANCE}


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["confirm.top=0", "search.sampler=random", *overrides])


def crossing(trial: int, config: Hyperparameters, epoch: int) -> float:
    """Curves that cross, some at chance for ever and some tied with others."""
    if trial % 5 == 4:
        return 0.1
    late = (trial * 7919) % 13 / 20
    return round(min(0.95, 0.15 + (trial * 31) % 11 / 20 + late * epoch / 9), 2)


def recorded(space: Space, seed: int, workers: int, chance: float | None = CHANCE) -> tuple[History, list[Event]]:
    """A whole search, held against the invariants' naive reference, which reads the whole journal at each decision."""
    events: list[Event] = []
    history = History([SpaceSet(space.as_dict(), [], 0.0)], {} if chance is None else {"accuracy": chance})
    state = SearchState(space, history, observe=lambda event, history: events.append(event))
    simulate(state, seed, trials_at_once=workers, curve=crossing)
    assert history_problems(events, space, chance, finished=True) == []
    return state.history, events


def driven(state: SearchState, workers: int) -> None:
    """To the end; always the lowest of those that run trains an epoch, so that nothing but the state decides."""
    running: dict[int, tuple[Assignment, int]] = {}
    while True:
        while len(running) < workers and (assignment := state.next_assignment()):
            running[assignment.number] = (assignment, assignment.n_epochs_known)
        if not running:
            return
        number = min(running)
        assignment, epoch = running[number][0], running[number][1] + 1
        running[number] = (assignment, epoch)
        loss = math.inf if number % 6 == 5 and epoch == 2 else 1.0
        if not state.record(result(number, epoch, crossing(number, assignment.config, epoch), loss)):
            del running[number]


def without_times(events: list[Event]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event_as_dict(event).items() if key != "at"} for event in events]


@pytest.mark.parametrize(
    "overrides",
    [
        ("search.asha=stop", "search.trials=null", "search.epoch_budget=25"),
        ("search.asha=stop", "search.audit_fraction=0.2"),
        ("search.asha=adaptive", "search.trials=14"),
    ],
)
def test_after_a_break_at_any_event_the_search_decides_as_if_there_had_been_none(overrides: tuple[str, ...]) -> None:
    space, workers = space_with("search.trials=8", *overrides), 3
    undisturbed: list[Event] = []
    driven(SearchState(space, History(chances=CHANCES), observe=lambda e, h: undisturbed.append(e)), workers)
    assert len(undisturbed) > 30
    for n_events in range(len(undisturbed)):
        events = undisturbed[:n_events]
        history = History((event_from_dict(event_as_dict(event)) for event in events), CHANCES)
        state = SearchState(space, history, observe=lambda e, h, events=events: events.append(e))
        driven(state, workers)
        assert without_times(events) == without_times(undisturbed), f"broken off after {n_events} events"
        assert is_done(history, space)


@pytest.mark.parametrize("seed", range(4))
def test_adaptive_rungs_stop_trials_where_a_rule_that_reads_the_whole_journal_does(seed: int) -> None:
    space = space_with("search.asha=adaptive", "search.trials=40")
    history, _ = recorded(space, seed, workers=3)
    ends = {trial.n_epochs for trial in history.trials.values() if trial.status == "stopped"}
    assert ends == {1, 3}, "the first rung opened"


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("asha", ["adaptive", "stop"])
def test_an_epoch_budget_ends_a_search_without_a_number_of_trials(asha: str, workers: int) -> None:
    space = space_with("search.trials=null", "search.epoch_budget=80", f"search.asha={asha}")
    history, _ = recorded(space, 5, workers)
    assert 80 <= epochs_trained(history) <= 80 + most_epochs_over(space, workers)
    assert is_done(history, space)
    reasons = [trial.end.reason for trial in history.trials.values() if trial.end and trial.status == "stopped"]
    assert all(" rung " in reason for reason in reasons)


@pytest.mark.parametrize(("trials", "epoch_budget"), [(5, 1000), (1000, 30)])
def test_trials_and_epochs_limit_together(trials: int, epoch_budget: int) -> None:
    state = SearchState(space_with(f"search.trials={trials}", f"search.epoch_budget={epoch_budget}"), History())
    simulate(state, seed=1, curve=crossing)
    assert len(state.history.trials) == 5 if trials == 5 else len(state.history.trials) < 30


def test_more_epochs_start_more_trials_and_replicates_do_not_count() -> None:
    space, more = (
        load_space("quickstart", ["search.trials=null", f"search.epoch_budget={n}", "search.sampler=random"])
        for n in (60, 90)
    )
    state = SearchState(space, History())
    simulate(state, seed=1)
    assert is_done(state.history, space)
    assert sum(run.n_epochs for run in state.history.replicates.values()) > 0
    n_trials = len(state.history.trials)
    assert epochs_trained(state.history) == state.history.n_epochs
    assert not is_done(state.history, more)
    simulate(SearchState(more, state.history), seed=1)
    assert len(state.history.trials) > n_trials
    assert epochs_trained(state.history) >= 90


def test_without_asha_every_trial_is_trained_to_the_end() -> None:
    space = space_with("search.asha=off", "search.trials=6", "training.max_epochs=7")
    state = SearchState(space, History())
    simulate(state)
    assert {(trial.status, trial.n_epochs) for trial in state.history.trials.values()} == {("completed", 7)}


def test_off_may_be_written_as_yaml_1_1_reads_it() -> None:
    assert space_with("search.asha=off").search.asha == "off"
    assert space_with("search.asha='off'").search.asha == "off"
    with pytest.raises(InputError, match="is True, but must be one of"):
        space_with("search.asha=on")


def test_a_search_without_any_limit_is_refused_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        space_with("search.trials=null")
    (line,) = caught.value.lines
    assert "`search` has none of `trials`, `epoch_budget` and `time_budget`" in line
    for limit in ("search.epoch_budget=10", "search.time_budget=1m", "search.trials=3"):
        space_with("search.trials=null", limit)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chance", [CHANCE, None])
def test_a_rung_stops_trials_where_a_rule_that_reads_the_whole_journal_does(seed: int, chance: float | None) -> None:
    history, _ = recorded(space_with("search.trials=30", "search.audit_fraction=0.2"), seed, 4, chance)
    assert {trial.n_epochs for trial in history.trials.values() if trial.status == "stopped"} == {1, 3}


def test_a_search_of_an_earlier_version_whose_trials_waited_at_rungs_goes_on_by_stopping(tmp_path: Path) -> None:
    path, space = tmp_path / "journal.jsonl", space_with("search.trials=8")
    journal = Journal(path)
    content = space.as_dict()
    content["search"]["asha"] = "promote"
    journal.append(SpaceSet(content, [], 0.0))
    simulate(SearchState(space, History(), journal), max_results=9, curve=crossing)
    journal.append(TrialPromoted(0, 1, 1.0))
    history = read_history(path)
    assert space_of_journal(history, "old").search.asha == "stop"
    simulate(SearchState(space, history), curve=crossing)
    assert is_done(history, space)
    with pytest.raises(InputError, match=r"`search.asha` is 'promote', but must be one of 'adaptive', 'stop' or 'off'"):
        space_with("search.asha=promote")
