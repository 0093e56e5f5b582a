import os
from dataclasses import replace

import pytest

from benchmarks.faults.many_trials import Sample, resident_mib, stretches, table
from search.experiment.events import Event, TrialEnded, TrialStarted
from spaces import Hyperparameters
from tests.support.simulation import result


def events_of(n_trials: int, seconds_each: float) -> list[Event]:
    """Trials one after the other, each with two results."""
    events: list[Event] = []
    for trial in range(n_trials):
        start = seconds_each * trial
        events.append(TrialStarted(trial, {}, Hyperparameters(), trial == 0, start))
        events += [replace(result(trial, n, 0.5), at=start + seconds_each * part) for n, part in ((1, 0.4), (2, 0.9))]
        events.append(TrialEnded(trial, "stopped", "", start + seconds_each))
    return events


def test_a_search_is_cut_by_trials_and_the_rest_is_shown_too() -> None:
    samples = [Sample(float(at), 100.0 + at) for at in range(50)]
    found = stretches(events_of(25, 2.0), samples, every=10)
    assert [part.n_ended for part in found] == [10, 20, 25]
    assert [part.seconds_per_result for part in found] == pytest.approx([1, 1, 1])
    assert [part.longest_gap_s for part in found] == pytest.approx([1, 1, 1])
    assert [part.driver_mib for part in found] == [120, 140, 149]
    assert len(table(found).splitlines()) == 2 + 3
    assert [part.n_ended for part in stretches(events_of(20, 1.0), [], every=10)] == [10, 20], "no empty rest"


def test_a_slower_stretch_shows() -> None:
    events = [replace(event, at=event.at + 10 * (n > 41)) for n, event in enumerate(events_of(20, 1.0))]
    first, second = stretches(events, [], every=10)
    assert second.seconds_per_result > 1.4 * first.seconds_per_result
    assert second.longest_gap_s > 10
    assert first.driver_mib is None


def test_resident_memory_is_that_of_the_process() -> None:
    memory = resident_mib(os.getpid())
    assert memory is not None
    assert 5 < memory < 50_000
    assert resident_mib(2**22 + 1) is None
