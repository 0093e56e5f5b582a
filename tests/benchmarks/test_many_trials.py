import os
from typing import Any

import pytest

from benchmarks.faults.many_trials import Sample, resident_mib, stretches, table


def journal_of(n_trials: int, seconds_each: float) -> list[dict[str, Any]]:
    """One after the other: a start, two results, an end."""
    events: list[dict[str, Any]] = [{"event": "space_set", "at": 0.0}]
    for trial in range(n_trials):
        start = seconds_each * trial
        events.append({"event": "trial_started", "trial": trial, "at": start})
        events += [{"event": "epoch_done", "trial": trial, "at": start + part * seconds_each} for part in (0.4, 0.9)]
        events.append({"event": "trial_ended", "trial": trial, "at": start + seconds_each})
    return events


def test_a_search_is_cut_by_trials_and_what_is_left_over_is_shown_too() -> None:
    events = journal_of(25, 2.0)
    samples = [Sample(float(at), 100.0 + at) for at in range(50)]
    found = stretches(events, [10] * len(events), samples, every=10)
    assert [part.trials for part in found] == [10, 20, 25]
    assert [part.results for part in found] == [20, 20, 10]
    assert [part.seconds for part in found] == pytest.approx([20, 20, 10])
    assert [part.seconds_per_result for part in found] == pytest.approx([1, 1, 1])
    assert [part.seconds_per_trial for part in found] == pytest.approx([2, 2, 2])
    assert [part.driver_mib for part in found] == [120, 140, 149]
    assert [part.longest_gap_s for part in found] == pytest.approx([1, 1, 1])
    assert found[-1].journal_kib == pytest.approx(101 * 10 / 1024)
    assert len(table(found).splitlines()) == 2 + 3


def test_a_slower_stretch_shows() -> None:
    events = journal_of(20, 1.0)
    for event in events[42:]:
        event["at"] += 10
    first, second = stretches(events, [10] * len(events), [], every=10)
    assert second.seconds_per_result > 1.5 * first.seconds_per_result
    assert second.longest_gap_s > 10
    assert first.driver_mib is None


def test_a_search_cut_where_it_ends_has_no_empty_rest() -> None:
    assert [part.trials for part in stretches(journal_of(20, 1.0), [1] * 81, [], every=10)] == [10, 20]


def test_resident_memory_is_that_of_the_process() -> None:
    memory = resident_mib(os.getpid())
    assert memory is not None
    assert 5 < memory < 50_000
    assert resident_mib(2**22 + 1) is None
