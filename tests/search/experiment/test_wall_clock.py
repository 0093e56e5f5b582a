import pytest

from search.experiment.events import EpochDone, TrialEnded, TrialStarted
from search.experiment.history import History
from search.experiment.wall_clock import wall_clock
from spaces import Hyperparameters

CONFIG = Hyperparameters()


def start(trial: int, at: float) -> TrialStarted:
    return TrialStarted(trial, {"lr": 0.05}, CONFIG, trial == 0, at)


def epoch(trial: int, number: int, seconds: float, at: float) -> EpochDone:
    return EpochDone(trial, number, 0.05, 1.0, 0.5, 1.0, 0.5, seconds * 0.75, seconds * 0.25, at)


def end(trial: int, at: float) -> TrialEnded:
    return TrialEnded(trial, "stopped", "", at)


def test_shares_of_two_places_add_up() -> None:
    # 10 s of start-up, 20 s in which both places train, 10 s in which one does, 5 s until Ray has ended.
    history = History(
        [start(0, 110), start(1, 110), epoch(1, 1, 20, 130), end(1, 130), epoch(0, 1, 30, 140), end(0, 140)]
    )
    shares = wall_clock(history, started_at=100, seconds=45, trials_at_once=2)
    assert shares.idle == pytest.approx(10 / 90)
    assert shares.overhead == pytest.approx((2 * 10 + 2 * 5) / 90)


def test_a_place_between_two_trials_is_overhead_not_idleness() -> None:
    history = History(
        [start(0, 100), epoch(0, 1, 10, 110), end(0, 110), start(1, 113), epoch(1, 1, 7, 120), end(1, 120)]
    )
    shares = wall_clock(history, started_at=100, seconds=20, trials_at_once=1)
    assert shares.overhead == pytest.approx(3 / 20)
    assert shares.idle == 0


def test_what_an_earlier_session_trained_does_not_count() -> None:
    events = [start(0, 10), epoch(0, 1, 30, 40), start(1, 10), end(1, 41), epoch(0, 2, 8, 109), end(0, 109)]
    shares = wall_clock(History(events), started_at=100, seconds=10, trials_at_once=1)
    assert shares.overhead == pytest.approx(2 / 10)
    assert shares.idle == 0


def test_trials_that_wait_for_a_place_do_not_make_negative_idleness() -> None:
    events = [start(0, 10), start(1, 10), start(2, 10), epoch(0, 1, 10, 110), end(0, 110), end(1, 120), end(2, 120)]
    shares = wall_clock(History(events), started_at=100, seconds=20, trials_at_once=1)
    assert shares.idle == 0
    assert 0 <= shares.overhead <= 1


def test_an_interrupted_epoch_is_overhead_and_an_empty_search_all_of_it() -> None:
    interrupted = wall_clock(History([start(0, 101), epoch(0, 1, 4, 105)]), 100, 10, 1)
    assert (interrupted.overhead, interrupted.idle) == (pytest.approx(0.6), 0)
    assert wall_clock(History([]), 100, 10, 2).overhead == 1
