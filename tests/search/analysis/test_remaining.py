"""The time left that a search shows, against the time that it then takes: simulated searches on a clock."""

import heapq
import math
import statistics
from functools import cache

import pytest

from search.analysis.cost import expected_search, recent_epoch_s, remaining
from search.experiment.events import EpochDone, Event, ReplicateEpochDone, SpaceSet
from search.experiment.history import History
from search.policy.confirmation import expected_epochs
from search.policy.state import Assignment, SearchState
from search.terminal.plan_text import epochs_text
from spaces import Space, load_space
from tests.support.simulation import accuracy

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
def timed_search(seed: int, confirm_budget: float) -> tuple[Space, list[Event]]:
    overrides = ["search.sampler=random", f"search.seed={seed}", f"confirm.budget={confirm_budget}"]
    space = load_space("quickstart", overrides)
    return space, timed_events(space)


def said_over_real(space: Space, events: list[Event], share: float) -> float:
    """The time left that was shown after `share` of a search's time, divided by the time that it then took."""
    end = events[-1].at
    now = START + share * (end - START)
    history = History(event for event in events if event.at <= now)
    said_s = remaining(history, space).seconds(recent_epoch_s(history, START), SLOTS)
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
    space = load_space("quickstart", ["search.sampler=random"])
    events = timed_events(space)
    early = History(events[:8])
    assert len(early.trials) < space.search.trials / 2  # type: ignore[operator]
    expected = expected_search(space)
    assert expected is not None
    assert sum(remaining(early, space).of_runs) == pytest.approx(expected_epochs(expected.epochs, space), rel=0.2)


def test_an_epoch_takes_its_slot_longer_than_it_trains_but_no_longer_because_of_a_break() -> None:
    events = timed_events(load_space("quickstart", ["search.sampler=random"]))
    history = History(events[:60])
    assert recent_epoch_s(history, START) == pytest.approx(TRAINING_S + CHECKPOINT_S, rel=0.3)
    assert recent_epoch_s(history, history.results_in_order[-1].at + 1) == pytest.approx(TRAINING_S)
    assert recent_epoch_s(History(), START) is None


def test_the_epochs_that_are_announced_hold_those_of_replicates() -> None:
    space = load_space("quickstart")
    expected = expected_search(space)
    assert expected is not None
    assert round(expected.epochs) == 55
    assert epochs_text(space, expected) == (
        "about 154 epochs in all (99 of them in 11 replicates of the best and the baseline)"
    )
    alone = load_space("quickstart", ["confirm.top=0"])
    assert epochs_text(alone, expected) == "about 55 epochs in all"
