"""Expected trials and epochs, and the time left that a search shows, against simulated searches on a clock."""

import heapq
import math
import statistics
from functools import cache

import pytest

from search.analysis.cost import (
    Expected,
    expected_epochs_left,
    expected_search,
    of_trials,
    passing_of,
    passing_shares,
    recent_epoch_s,
    remaining,
    seconds_left,
)
from search.experiment.events import EpochDone, Event, ReplicateEpochDone, SpaceSet
from search.experiment.history import History
from search.policy.budget import most_epochs_over
from search.policy.confirmation import expected_epochs
from search.policy.state import Assignment, SearchState
from search.terminal.plan_text import audit_lines, epochs_text
from spaces import Space, load_space
from tests.support.simulation import accuracy, simulate

RUNGS = (1, 3, 9)


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["confirm.top=0", "search.sampler=random", *overrides])


def expected_of(space: Space, time_epochs: float | None = None) -> Expected:
    expected = expected_search(space, time_epochs)
    assert expected is not None
    return expected


# Before a search


def test_epochs_left_are_weighted_with_the_share_that_passes() -> None:
    passing = (0.5, 0.25)
    left = [expected_epochs_left(done, RUNGS, passing) for done in (0, 1, 2, 5, 9)]
    assert left == [1 + 0.5 * 2 + 0.125 * 6, 2 + 0.25 * 6, 1 + 0.25 * 6, 4, 0]


def test_the_time_left_is_never_less_than_the_longest_trial_s() -> None:
    assert seconds_left([1, 1, 1, 1], [], 2.0, 2) == 4
    assert seconds_left([9, 1], [], 2.0, 2) == 18
    assert seconds_left([], [], 2.0, 2) == 0
    assert seconds_left([1, 1], [3, 3, 3], 2.0, 2) == 14, "the third run has no other beside it"


def test_about_one_trial_in_reduction_factor_passes_and_early_and_audited_ones_more() -> None:
    few, many = passing_shares(12, RUNGS, 3), passing_shares(400, RUNGS, 3)
    assert all(1 / 3 < share < 0.45 for share in many)
    assert few[0] > many[0]
    assert passing_shares(1, (9,), 3) == ()
    assert passing_shares(30, RUNGS, 3, 0.3)[1] > passing_shares(30, RUNGS, 3)[1], "weak ones lower the second cutoff"
    adaptive = space_with("search.asha=adaptive")
    assert passing_of(adaptive, 30, 0.0) == (1.0, *passing_shares(30, (3, 9), 3)), "early rungs may stay closed"


def test_expected_epochs_lie_between_grace_for_all_and_everything() -> None:
    assert of_trials(space_with(), 1).epochs == 9
    assert of_trials(space_with("search.grace_epochs=9"), 20).epochs == 180
    assert of_trials(space_with("search.audit_fraction=1"), 20).epochs == 180
    assert 9 + 19 < of_trials(space_with(), 20).epochs < of_trials(space_with("search.audit_fraction=0.3"), 20).epochs
    assert of_trials(space_with(), 20).epochs < of_trials(space_with("search.grace_epochs=3"), 20).epochs
    million, thousand = of_trials(space_with(), 1_000_000).epochs, of_trials(space_with(), 1000).epochs
    assert million == pytest.approx(1000 * thousand, rel=0.2)


@pytest.mark.parametrize(
    ("asha", "audit_fraction", "limit"),
    [("stop", 0, "epochs"), ("off", 0, "epochs"), ("stop", 0.3, "trials")],
)
def test_searches_have_about_as_many_trials_and_epochs_as_expected(
    asha: str, audit_fraction: float, limit: str
) -> None:
    limits = {"trials": ["search.trials=30"], "epochs": ["search.trials=null", "search.epoch_budget=150"]}
    space = space_with(*limits[limit], f"search.asha={asha}", f"search.audit_fraction={audit_fraction}")
    n_trials, n_epochs = [], []
    for seed in range(6):
        state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
        order = [(7919 * (trial + 1) * (seed + 1)) % 1009 / 1009 for trial in range(150)]
        simulate(state, seed, trials_at_once=1, curve=lambda trial, config, epoch, order=order: order[trial])
        n_trials.append(len(state.history.trials))
        n_epochs.append(state.history.n_epochs)
    expected = expected_of(space)
    assert statistics.mean(n_trials) == pytest.approx(expected.trials, rel=0.15)
    assert statistics.mean(n_epochs) == pytest.approx(expected.epochs, rel=0.12)


def test_the_smaller_of_trials_and_budgets_counts() -> None:
    assert expected_of(space_with("search.trials=5", "search.epoch_budget=1000")).trials == 5
    budget = expected_of(space_with("search.trials=null", "search.epoch_budget=100")).trials
    assert expected_of(space_with("search.trials=500", "search.epoch_budget=1000"), 100.0).trials == budget
    only_time = space_with("search.trials=null", "search.time_budget=1m")
    assert expected_search(only_time) is None
    assert expected_of(only_time, time_epochs=100.0).trials == budget
    less_than_the_baseline = expected_of(space_with("search.trials=null", "search.epoch_budget=3"))
    assert (less_than_the_baseline.trials, less_than_the_baseline.epochs) == (1, 9.0)


def test_an_overrun_is_what_those_that_run_still_train() -> None:
    assert most_epochs_over(space_with(), 4) == 4 * 9 - 1


def test_the_epochs_that_are_announced_hold_those_of_replicates() -> None:
    space = load_space("quickstart")
    expected = expected_of(space)
    assert round(expected.epochs) == 55
    assert epochs_text(space, expected) == (
        "about 154 epochs in all (99 of them in 11 replicates of the best and the baseline)"
    )
    assert epochs_text(space_with(), expected) == "about 55 epochs in all"


def test_the_plan_says_what_audits_cost() -> None:
    def lines(audit_fraction: float, *overrides: str) -> list[str]:
        space = space_with(f"search.audit_fraction={audit_fraction}", *overrides)
        return audit_lines(space, of_trials(space, 30))

    (off,), (on,), (none,) = lines(0.0), lines(0.1), lines(0.0001)
    begin, _, n_epochs = on.partition(": about ")
    assert begin == "audits      0.1: 3 of 29 trials are trained to the end whatever a rung says"
    assert off == f"audits      off; search.audit_fraction=0.1 would take about {n_epochs}"
    assert int(n_epochs.removesuffix(" epochs more")) > 0
    assert none == "audits      0.0001: no trial of 29, as the seed has it: raise it, or search.trials"
    assert lines(0.0, "search.asha=off") == []


# While a search runs

START = 1000.0  # of the session, in seconds since 1970
STARTUP_S = 12.0  # until a worker is ready for its first trial
TRIAL_START_S = 1.0
TRAINING_S = 0.6
CHECKPOINT_S = 0.4  # after each epoch, which neither `train_s` nor `validation_s` holds
SLOTS = 2


class Clock:
    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> float:
        return self.at


def timed_events(space: Space) -> list[Event]:
    """All events of a search in `SLOTS` slots, each at its time."""
    clock, events = Clock(), list[Event]([SpaceSet(space.as_dict(), [], START)])
    state = SearchState(space, History(events), observe=lambda event, _: events.append(event), now=clock)
    running: list[tuple[float, str, Assignment, int]] = []
    while True:
        while len(running) < SLOTS and (given := state.next_assignment()):
            begin = max(clock.at + TRIAL_START_S, START + STARTUP_S)
            heapq.heappush(running, (begin + TRAINING_S + CHECKPOINT_S, given.name, given, 1))
        if not running:
            return events
        clock.at, name, given, epoch = heapq.heappop(running)
        if record_epoch(state, given, epoch, clock.at):
            heapq.heappush(running, (clock.at + TRAINING_S + CHECKPOINT_S, name, given, epoch + 1))


def record_epoch(state: SearchState, given: Assignment, epoch: int, at: float) -> bool:
    value = accuracy(given.trial, given.config, epoch)
    times = (TRAINING_S - 0.1, 0.1, at)
    if given.kind == "trial":
        return state.record(EpochDone(given.number, epoch, 0.01, 1.0, value, 1.0, value, *times))
    # Blocks differ, trials are tied: all take part to the end.
    value = 0.8 + math.sin(7 * given.number) / 20
    return state.record_run(ReplicateEpochDone(given.number, epoch, 1.0, 1.0, value, *times))


@cache
def timed_search(seed: int = 0, confirm_budget: float = 1.8) -> tuple[Space, list[Event]]:
    overrides = ["search.sampler=random", f"search.seed={seed}", f"confirm.budget={confirm_budget}"]
    space = load_space("quickstart", overrides)
    return space, timed_events(space)


def said_over_real(space: Space, events: list[Event], share: float) -> float:
    """The time left that was shown after `share` of a search's time, divided by the time that it then took."""
    end = events[-1].at
    now = START + share * (end - START)
    history = History(event for event in events if event.at <= now)
    said_s = remaining(history, space).seconds(recent_epoch_s(history), SLOTS)
    assert said_s is not None
    return said_s / (end - now)


@pytest.mark.parametrize("share", [0.31, 0.5, 0.7, 0.85])
def test_the_time_that_is_said_to_be_left_is_about_the_time_that_it_takes(share: float) -> None:
    searches = [timed_search(seed, budget) for seed in range(6) for budget in (0.33, 1.8)]
    ratios = [said_over_real(space, events, share) for space, events in searches]
    assert 0.65 < statistics.median(ratios) < 1.5
    assert min(ratios) > 0.35
    assert max(ratios) < 2.5


def test_replicates_of_trials_that_have_not_begun_are_expected() -> None:
    space, events = timed_search()
    early = History(events[:8])
    assert len(early.trials) < space.search.trials / 2  # type: ignore[operator]
    epochs = expected_epochs(expected_of(space).epochs, space)
    assert sum(remaining(early, space).of_runs) == pytest.approx(epochs, rel=0.2)


def test_an_epoch_takes_its_slot_longer_than_it_trains_but_no_longer_because_of_a_break() -> None:
    _, events = timed_search()
    history = History(events[:60])
    assert recent_epoch_s(history) == pytest.approx(TRAINING_S + CHECKPOINT_S, rel=0.3)
    one = next(iter(history.trials.values()))
    late = EpochDone(one.number, 1, 0.01, 1.0, 0.5, 1.0, 0.5, TRAINING_S - 0.1, 0.1, one.started_at + 3600)
    paused = History([*events[:2], late])
    assert recent_epoch_s(paused) == pytest.approx(3 * TRAINING_S)
    assert recent_epoch_s(History()) is None
