"""Which trial continues at a rung, and when a search ends: in searches without Ray."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.invariants import first_to_promote, history_problems
from search.experiment.events import (
    Event,
    SpaceSet,
    TrialEnded,
    TrialPromoted,
    TrialStarted,
    event_as_dict,
    event_from_dict,
)
from search.experiment.history import History
from search.experiment.journal import Journal, read_history
from search.policy.asha import waits_at_rung
from search.policy.budget import epochs_trained, most_epochs_over
from search.policy.state import Assignment, SearchState, is_done
from spaces import Hyperparameters, InputError, Space, load_space
from tests.support.simulation import numbers, result, simulate

CHANCE = 0.12
CHANCES = {"accuracy": CHANCE}


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["confirm.top=0", "search.sampler=random", *overrides])


def promoting(*overrides: str) -> Space:
    return space_with("search.asha=promote", "search.trials=30", *overrides)


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


@pytest.mark.parametrize(("workers", "chance"), [(1, CHANCE), (2, None), (5, CHANCE), (5, None)])
def test_promotions_are_the_paper_s_get_job(workers: int, chance: float | None) -> None:
    space = promoting()
    history, events = recorded(space, 3, workers, chance)
    assert any(isinstance(event, TrialPromoted) for event in events)
    for epoch in space.rung_epochs[:-1]:
        arrived = [trial for trial in history.trials.values() if trial.n_epochs >= epoch]
        passed = [trial for trial in arrived if trial.n_epochs > epoch]
        assert len(passed) <= len(arrived) // 3 + 1 + sum(trial.baseline for trial in arrived)
        assert len(passed) >= len(arrived) // 3 - (chance is not None) * 2
    # In the end nobody who should have been promoted was left behind.
    still_waiting = History(event for event in events if not isinstance(event, TrialEnded))
    assert first_to_promote(still_waiting, space, chance) is None


def test_a_trial_waits_at_a_rung_until_it_is_among_the_best() -> None:
    state = SearchState(promoting(), History())
    numbers(state, 4)
    assert not state.record(result(1, 1, 0.5))
    assert state.is_paused(1)
    assert state.n_running == 3
    assert state.history.trials[1].end is None
    assert not state.record(result(2, 1, 0.7))
    assert numbers(state, 1) == [4], "of two nobody is promoted"
    assert not state.record(result(3, 1, 0.6))
    config = state.history.trials[2].config
    assert state.next_assignment() == Assignment("trial", 2, 2, 2, config, n_epochs_known=1, n_before=1)
    assert not state.is_paused(2)
    assert state.record(result(2, 2, 0.7))
    assert not state.record(result(2, 3, 0.7)), "at the next rung it waits again"


def test_ties_go_to_the_lower_loss_then_to_the_earlier_trial() -> None:
    state = SearchState(promoting(), History())
    numbers(state, 7)
    for number, loss in ((1, 0.9), (2, 0.8), (3, 0.8), (4, math.inf), (5, 0.9), (6, 0.95)):
        diverged = not math.isfinite(loss)
        assert not state.record(result(number, 1, 0.1 if diverged else 0.5, loss))
    assert numbers(state, 3) == [2, 3, 7], "a third of six are two"


def test_the_baseline_and_audit_trials_do_not_wait() -> None:
    state = SearchState(promoting("search.audit_fraction=0.3"), History())
    simulate(state, curve=crossing)
    exempt = [trial for trial in state.history.trials.values() if trial.baseline or trial.audit]
    assert len(exempt) > 5
    assert {(trial.status, len(trial.promotions)) for trial in exempt} == {("completed", 0)}


def test_what_is_at_chance_is_not_promoted_where_any_run_has_learned() -> None:
    state = SearchState(promoting("search.trials=7"), History(chances=CHANCES))
    numbers(state, 7)
    for number in range(1, 4):
        state.record(result(number, 1, 0.1))
    assert numbers(state, 1) == [1], "none has learned"
    for number, value in ((4, 0.11), (5, 0.12), (6, 0.3)):
        state.record(result(number, 1, value))
    assert numbers(state, 2) == [6, None], "of the best two of six one is at chance"
    for number, epoch in ((6, 2), (6, 3), (1, 2), (1, 3), *((0, e) for e in range(1, 10))):
        state.record(result(number, epoch, {0: 0.1, 1: 0.2, 6: 0.3}[number]))
    assert numbers(state, 1) == [6]
    for epoch in range(4, 10):
        state.record(result(6, epoch, 0.3))
    assert state.next_assignment() is None, "nobody is left to promote"
    reasons = [trial.end and trial.end.reason for trial in state.history.trials.values()]
    assert reasons[1] == "20.00% at rung 3, not among the best 1 of 3 that go on"
    assert reasons[2] == "at chance (10.00%) at rung 1, where others have learned"
    assert None not in reasons


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
        ("search.asha=promote",),
        ("search.asha=promote", "search.trials=null", "search.epoch_budget=25"),
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


def test_a_waiting_trial_is_not_given_out_on_resume_before_it_is_promoted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    space = promoting()
    simulate(SearchState(space, History(), Journal(path)), seed=2, max_results=30, curve=crossing)
    history = read_history(path)
    waiting = {number for number, trial in history.trials.items() if waits_at_rung(trial, space)}
    unfinished = [trial.number for trial in history.unfinished if trial.number not in waiting]
    assert waiting
    state = SearchState(space, history)
    assert numbers(state, len(unfinished)) == unfinished
    (following,) = numbers(state, 1)
    assert following not in waiting or history.trials[following].promoted_at == history.trials[following].n_epochs  # type: ignore[index]
    running = [trial for trial in state._proposer._study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
    assert len(running) == len(history.unfinished), "a waiting trial is a running one for the sampler"


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("asha", ["stop", "promote"])
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


@pytest.mark.parametrize("damage", [{"epoch": 2}, {"trial": 9}, {"epoch": 0}])
def test_a_promotion_that_contradicts_the_journal_is_refused(damage: dict[str, int]) -> None:
    start = TrialStarted(0, {}, promoting().baseline, False, 0.0)
    history = History([start, result(0, 1, 0.5)])
    promotion = {**event_as_dict(TrialPromoted(0, 1, 2.0)), **damage}
    with pytest.raises(ValueError, match="trial"):
        history.apply(event_from_dict(json.loads(json.dumps(promotion))))
    history.apply(TrialPromoted(0, 1, 2.0))
    with pytest.raises(ValueError, match="where it does not wait"):
        history.apply(TrialPromoted(0, 1, 2.0))
