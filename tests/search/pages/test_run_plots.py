"""The timeline of slots and the picture of the replicates."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from search.experiment.events import (
    EndStatus,
    EpochDone,
    Event,
    ReplicateEnded,
    ReplicateStarted,
    TrialEnded,
    TrialPromoted,
    TrialStarted,
)
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Session, session_times, timestamp
from search.pages import run_plots
from search.pages.report_data import ReportData, read_all
from search.policy.replicate_statistics import replicate_results
from spaces import Space, load_space

T = 1_800_000_000.0  # start of the first session, seconds since 1970


def started(trial: int, at: float, space: Space) -> TrialStarted:
    return TrialStarted(trial, space.searched_values(space.baseline), space.baseline, trial == 0, T + at)


def epoch(trial: int, number: int, at: float) -> EpochDone:
    return EpochDone(trial, number, 0.01, 1.0, 0.5, 1.0, 0.5, 0.5, 0.1, T + at)


def ended(trial: int, status: EndStatus, at: float) -> TrialEnded:
    return TrialEnded(trial, status, "", T + at)


def session(start: float, seconds: float | None) -> Session:
    return Session(started_at=timestamp(T + start), seconds=seconds, end=None if seconds is None else "interrupted")


@pytest.fixture
def known(shown: Experiment) -> Callable[..., ReportData]:
    base = read_all(shown)

    def made(events: list[Event], sessions: list[Session], space: Space = base.space) -> ReportData:
        manifest = base.manifest.model_copy(update={"sessions": sessions})
        return replace(base, history=History(events), manifest=manifest, space=space)

    return made


def turns(known: ReportData) -> list[tuple[int, float, float, int]]:
    times = session_times(known.manifest.sessions, known.history)
    return [(t.slot, t.start_s, t.end_s, t.one.number) for t in run_plots.turns(known, times)]


def test_turns_are_without_pauses_and_in_the_first_free_slot(known: Callable[..., ReportData], space: Space) -> None:
    events: list[Event] = [
        started(0, 10, space),
        started(1, 11, space),
        epoch(1, 1, 20),
        ended(1, "stopped", 20.5),
        started(2, 21, space),
        epoch(0, 1, 30),
        # The first session ends after 40 s; the second begins 1000 s later, and resumes both.
        epoch(0, 2, 1050),
        ended(0, "completed", 1051),
        epoch(2, 1, 1055),
        ended(2, "failed", 1056),
        started(3, 1060, space),
        epoch(3, 1, 1070),
    ]
    of = known(events, [session(0, 40.0), session(1040, None)])
    assert turns(of) == [(1, 10, 51 - 40 + 40, 0), (2, 11, 20, 1), (2, 21, 56, 2), (1, 60, 70, 3)]
    figure = run_plots.timeline(of)
    assert figure is not None
    bars = {bar.name: bar for bar in figure.data}
    assert set(bars) == {"completed", "stopped", "failed or diverged", "unfinished"}
    assert (bars["stopped"].base, bars["stopped"].x, bars["stopped"].y) == ((11,), (9,), (2,))
    assert [shape.x0 for shape in figure.layout.shapes] == [40], "where the search was resumed"
    assert {bar.name for bar in run_plots.timeline(replace(of, is_live=True)).data} >= {"running"}  # type: ignore[union-attr]


def test_a_trial_that_waited_at_a_rung_in_an_earlier_version_had_no_slot(known: Callable[..., ReportData]) -> None:
    space = load_space("quickstart")
    events: list[Event] = [
        started(0, 0, space),
        started(1, 1, space),
        epoch(1, 1, 5),
        started(2, 6, space),
        epoch(2, 1, 10),
        ended(2, "stopped", 10),
        TrialPromoted(1, 1, T + 11),
        epoch(1, 2, 15),
        epoch(1, 3, 20),
        ended(1, "stopped", 20),
        epoch(0, 1, 30),
    ]
    of = known(events, [session(0, 30.0)], space)
    assert turns(of) == [(1, 0, 30, 0), (2, 1, 5, 1), (2, 6, 10, 2), (2, 11, 20, 1)]


def test_no_slot_has_two_trials_at_once_and_large_searches_are_capped(
    known: Callable[..., ReportData], space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    for i in range(60):
        events += [started(i, 3 * i, space), epoch(i, 1, 3 * i + 7), ended(i, "stopped", 3 * i + 7)]
    events.append(ReplicateStarted(0, 0, 1, T + 200))
    events.append(ReplicateEnded(0, "failed", "", T + 210))
    of = known(sorted(events, key=lambda event: event.at), [session(0, 300.0)])
    found = turns(of)
    assert {slot for slot, *_ in found} == {1, 2, 3}
    for slot in (1, 2, 3):
        spans = [(start, end) for own, start, end, _ in found if own == slot]
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    monkeypatch.setattr(run_plots, "MOST_POINTS", 10)
    figure = run_plots.timeline(of)
    assert figure is not None
    assert sum(len(bar.x) for bar in figure.data) == 10
    assert figure.layout.xaxis.title.text == "minutes of the search"
    assert (figure.data[-1].name, figure.data[-1].text[-1]) == ("failed or diverged", "0")
    assert run_plots.timeline(known([], [])) is None


def test_every_replicate_is_drawn_with_the_mean_and_its_interval(shown: Experiment) -> None:
    of = read_all(shown)
    figure = run_plots.replicate_plot(of)
    assert figure is not None
    means, runs, searched = figure.data
    results = replicate_results(of.history)
    assert list(means.x) == [one.mean for one in results.values()]
    assert list(means.error_x.array) == [one.half_width for one in results.values()]
    drawn: list[Any] = sorted(zip(runs.y, runs.x, strict=True))
    names = {number: next(name for name in means.y if name.split()[1] == str(number)) for number in results}
    assert drawn == sorted(
        (names[run.trial], run.epochs[-1].validation_accuracy) for run in of.history.replicates.values()
    )
    assert "trial 0 (baseline)" in means.y
    assert list(searched.x) == [of.history.trials[number].epochs[-1].validation_accuracy for number in results]
    assert run_plots.replicate_plot(replace(of, history=History())) is None
