"""Who goes on at a rung, and when a search is over: in searches without Ray."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.invariants import Asked, TrialLines, first_to_promote, history_problems, rung_problems
from search.experiment.events import Event, SpaceSet, TrialPromoted, TrialStarted, event_as_dict, event_from_dict
from search.experiment.history import History, Trial
from search.experiment.journal import Journal, read_history
from search.policy.budget import epochs_trained, most_epochs_over
from search.policy.state import Assignment, SearchState, is_done
from spaces import Hyperparameters, InputError, Space, load_space
from tests.support.simulation import accuracy, result, simulate

CHANCE = 0.12


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


def asked_of(space: Space, chance: float | None) -> Asked:
    search = space.search
    promotes = search.asha == "promote"
    return Asked(search.trials, space.rung_epochs, search.reduction_factor, promotes, search.epoch_budget, chance)


def recorded(space: Space, seed: int, workers: int, chance: float | None = CHANCE) -> tuple[History, list[Event]]:
    events: list[Event] = []
    history = History([SpaceSet(space.as_dict(), [], 0.0)])
    state = SearchState(space, history, observe=lambda event, history: events.append(event), chance=chance)
    simulate(state, seed, trials_at_once=workers, curve=crossing)
    return state.history, events


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("chance", [CHANCE, None])
def test_promotions_are_the_paper_s_get_job(workers: int, chance: float | None) -> None:
    """Held against a naive reference that looks through the whole journal at each decision."""
    space = promoting()
    history, events = recorded(space, 3, workers, chance)
    content = [event_as_dict(event) for event in events]
    asked = asked_of(space, chance)
    assert rung_problems(content, asked) == []
    assert history_problems(content, asked, finished=True) == []
    assert any(isinstance(event, TrialPromoted) for event in events)
    for epoch in space.rung_epochs[:-1]:
        arrived = [trial for trial in history.trials.values() if trial.n_epochs >= epoch]
        passed = [trial for trial in arrived if trial.n_epochs > epoch]
        assert len(passed) <= len(arrived) // 3 + 1 + sum(trial.baseline for trial in arrived)
        assert len(passed) >= len(arrived) // 3 - (chance is not None) * 2
    # In the end nobody who should have been promoted was left behind.
    lines = {n: _lines(trial) for n, trial in history.trials.items()}
    assert first_to_promote(lines, {n: t.promoted_at for n, t in history.trials.items()}, asked) is None


def _lines(trial: Trial) -> TrialLines:
    start = {"trial": trial.number, "baseline": trial.baseline}
    end = None if trial.status == "stopped" else {"status": trial.status}
    return TrialLines(start, [event_as_dict(epoch) for epoch in trial.epochs], end)


def test_a_trial_waits_at_a_rung_until_it_is_among_the_best() -> None:
    state = SearchState(promoting(), History())
    baseline, first, second, third = (state.next_assignment() for _ in range(4))
    assert None not in (baseline, first, second, third)
    assert not state.record(result(1, 1, 0.5))
    assert state.is_paused(1)
    assert state.n_running == 3
    assert state.history.trials[1].end is None
    assert not state.record(result(2, 1, 0.7))
    fourth = state.next_assignment()
    assert fourth is not None
    assert fourth.number == 4, "of two nobody is promoted"
    assert not state.record(result(3, 1, 0.6))
    again = state.next_assignment()
    assert again == Assignment("trial", 2, 2, 2, second.config, n_epochs_known=1, n_before=1)  # type: ignore[union-attr]
    assert not state.is_paused(2)
    assert state.record(result(2, 2, 0.7))
    assert not state.record(result(2, 3, 0.7)), "at the next rung it waits again"


def test_ties_go_to_the_lower_loss_then_to_the_earlier_trial() -> None:
    state = SearchState(promoting(), History())
    for _ in range(7):
        state.next_assignment()
    for number, loss in ((1, 0.9), (2, 0.8), (3, 0.8), (4, math.inf), (5, 0.9), (6, 0.95)):
        diverged = not math.isfinite(loss)
        assert not state.record(result(number, 1, 0.1 if diverged else 0.5, loss))
    assert [state.next_assignment().number for _ in range(2)] == [2, 3]  # type: ignore[union-attr]
    third = state.next_assignment()
    assert third is not None
    assert third.number == 7, "a third of six are two"


def test_the_baseline_and_explored_trials_do_not_wait() -> None:
    space = promoting("search.audit_fraction=0.3")
    history, events = recorded(space, 0, 2)
    exempt = [trial for trial in history.trials.values() if trial.baseline or trial.audit]
    assert len(exempt) > 5
    assert {trial.status for trial in exempt} == {"completed"}
    assert not {event.trial for event in events if isinstance(event, TrialPromoted)} & {t.number for t in exempt}


def test_what_is_at_chance_is_not_promoted_where_any_run_has_learned() -> None:
    state = SearchState(promoting("search.trials=7"), History(), chance=CHANCE)
    for _ in range(7):
        state.next_assignment()
    for number in range(1, 4):
        state.record(result(number, 1, 0.1))
    assert state.next_assignment().number == 1, "none has learned"  # type: ignore[union-attr]
    state.record(result(4, 1, 0.11))
    state.record(result(5, 1, 0.12))
    state.record(result(6, 1, 0.3))
    assert state.next_assignment().number == 6  # type: ignore[union-attr]
    assert state.next_assignment() is None, "of the best two of six one is at chance"
    for number, epoch in ((6, 2), (6, 3), (1, 2), (1, 3), *((0, e) for e in range(1, 10))):
        state.record(result(number, epoch, {0: 0.1, 1: 0.2, 6: 0.3}[number]))
    assert state.next_assignment().number == 6  # type: ignore[union-attr]
    for epoch in range(4, 10):
        state.record(result(6, epoch, 0.3))
    assert state.next_assignment() is None, "nobody is left to promote"
    ends = {number: trial.end for number, trial in state.history.trials.items()}
    assert all(end is not None for end in ends.values())
    assert ends[2].reason == "at chance (10.00%) at rung 1, where others have learned"  # type: ignore[union-attr]
    assert ends[1].reason == "20.00% at rung 3, not among the best 1 of 3 that go on"  # type: ignore[union-attr]


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
        loss = math.inf if number % 11 == 10 and epoch == 2 else 1.0
        if not state.record(result(number, epoch, crossing(number, assignment.config, epoch), loss)):
            del running[number]


def without_times(events: list[Event]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event_as_dict(event).items() if key != "at"} for event in events]


@pytest.mark.parametrize(
    "overrides",
    [
        ("search.asha=promote",),
        ("search.asha=promote", "search.trials=null", "search.epoch_budget=35"),
        ("search.asha=stop", "search.trials=null", "search.epoch_budget=35"),
        ("search.asha=stop", "search.audit_fraction=0.2"),
    ],
)
def test_after_a_break_at_any_event_the_search_decides_as_if_there_had_been_none(overrides: tuple[str, ...]) -> None:
    space, workers = space_with("search.trials=12", *overrides), 3
    undisturbed: list[Event] = []
    driven(SearchState(space, History(), observe=lambda e, h: undisturbed.append(e), chance=CHANCE), workers)
    assert len(undisturbed) > 40
    for n_events in range(len(undisturbed)):
        events = undisturbed[:n_events]
        history = History(event_from_dict(event_as_dict(event)) for event in events)
        state = SearchState(space, history, observe=lambda e, h, events=events: events.append(e), chance=CHANCE)
        driven(state, workers)
        assert without_times(events) == without_times(undisturbed), f"broken off after {n_events} events"
        assert is_done(history, space)


def test_a_waiting_trial_is_not_given_out_on_resume_before_it_is_promoted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    space = promoting()
    simulate(SearchState(space, History(), Journal(path)), seed=2, max_results=30, curve=crossing)
    history = read_history(path)
    state = SearchState(space, history)
    waiting = [number for number in history.trials if state.is_paused(number)]
    assert waiting
    given = state.next_assignment()
    while given and given.n_epochs_known and given.number not in waiting:
        given = state.next_assignment()
    assert given is not None
    assert given.number not in waiting or history.trials[given.number].promoted_at == given.n_epochs_known


def test_an_epoch_budget_ends_a_search_without_a_number_of_trials() -> None:
    space = space_with("search.trials=null", "search.epoch_budget=100")
    for workers in (1, 4):
        state = SearchState(space, History())
        simulate(state, seed=1, trials_at_once=workers, curve=crossing)
        n_epochs = epochs_trained(state.history)
        assert 100 <= n_epochs <= 100 + most_epochs_over(space, workers)
        assert is_done(state.history, space)
        assert not state.history.unfinished


def test_trials_and_epochs_limit_together() -> None:
    few = space_with("search.trials=5", "search.epoch_budget=1000")
    state = SearchState(few, History())
    simulate(state, seed=1, curve=crossing)
    assert len(state.history.trials) == 5
    budget = space_with("search.trials=1000", "search.epoch_budget=30")
    state = SearchState(budget, History())
    simulate(state, seed=1, curve=crossing)
    assert len(state.history.trials) < 30


def test_more_epochs_start_more_trials_and_replicates_do_not_count() -> None:
    space = load_space("quickstart", ["search.trials=null", "search.epoch_budget=60", "search.sampler=random"])
    state = SearchState(space, History())
    simulate(state, seed=1)
    assert is_done(state.history, space)
    assert sum(run.n_epochs for run in state.history.replicates.values()) > 0
    n_trials, n_epochs = len(state.history.trials), epochs_trained(state.history)
    assert n_epochs == state.history.n_epochs
    more = load_space("quickstart", ["search.trials=null", "search.epoch_budget=90", "search.sampler=random"])
    assert not is_done(state.history, more)
    simulate(SearchState(more, state.history), seed=1)
    assert len(state.history.trials) > n_trials
    assert epochs_trained(state.history) >= 90


@pytest.mark.parametrize("workers", [1, 4])
def test_a_promoting_search_keeps_to_its_epochs(workers: int) -> None:
    space = promoting("search.trials=null", "search.epoch_budget=80")
    history, events = recorded(space, 5, workers)
    assert 80 <= epochs_trained(history) <= 80 + most_epochs_over(space, workers)
    content = [event_as_dict(event) for event in events]
    assert rung_problems(content, asked_of(space, CHANCE)) == []
    assert history_problems(content, asked_of(space, CHANCE), finished=True) == []
    reasons = [trial.end.reason for trial in history.trials.values() if trial.end and trial.status == "stopped"]
    assert all(" at rung " in reason for reason in reasons)


def test_without_asha_every_trial_is_trained_to_the_end() -> None:
    space = space_with("search.asha=off", "search.trials=6", "training.max_epochs=7")
    state = SearchState(space, History())
    simulate(state, seed=0)
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
    space = promoting()
    start = TrialStarted(0, {}, space.baseline, False, 0.0)
    history = History([start, result(0, 1, 0.5)])
    promotion = {**event_as_dict(TrialPromoted(0, 1, 2.0)), **damage}
    with pytest.raises(ValueError, match="trial"):
        history.apply(event_from_dict(json.loads(json.dumps(promotion))))
    history.apply(TrialPromoted(0, 1, 2.0))
    with pytest.raises(ValueError, match="where it does not wait"):
        history.apply(TrialPromoted(0, 1, 2.0))


def test_the_state_of_a_trial_that_waits_is_running_for_the_sampler() -> None:
    space = load_space("quickstart", ["confirm.top=0", "search.asha=promote", "search.trials=30"])
    state = SearchState(space, History())
    simulate(state, seed=0, max_results=60, curve=accuracy)
    n_waiting = sum(state.is_paused(number) for number in state.history.trials)
    running = [trial for trial in state._proposer._study.get_trials(deepcopy=False) if trial.state.name == "RUNNING"]
    assert len(running) == len(state.history.unfinished) >= n_waiting > 3
