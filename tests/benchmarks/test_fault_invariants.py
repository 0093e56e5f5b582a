"""The checks of the fault suite: no problem in sound experiments, and one for each way to break them."""

import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from benchmarks.faults import files
from benchmarks.faults.files import ALL_KINDS, DRIVER_KINDS, proposal_problems, study_in, table_in
from benchmarks.faults.injection import kinds_in_turn, next_moment
from benchmarks.faults.invariants import (
    checkpoint_problems,
    events_of,
    history_problems,
    leaderboard_problems,
    prefix_problems,
    rung_problems,
    session_problems,
    study_problems,
    time_problems,
    training_problems,
)
from search.analysis.csv_files import write_tables
from search.analysis.ranking import rank
from search.experiment.events import EpochDone, EpochRedone, Event, TrialEnded, TrialStarted
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.journal import Journal, event_line, read_history
from search.experiment.manifest import Session
from search.policy.asha import StoppingRule
from search.policy.state import SearchState
from search.policy.study import write_study
from spaces import Hyperparameters, Space, load_space
from spaces.loader import dump_space
from tests.support.simulation import result, simulate


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("quickstart", ["search.trials=20", "confirm.top=0"])


@pytest.fixture(scope="module")
def folder(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that was interrupted three times; its study and table are up to date."""
    folder = tmp_path_factory.mktemp("experiment")
    path = folder / "journal.jsonl"
    for seed, max_results in enumerate((7, 9, 11, None)):
        state = SearchState(space, read_history(path), Journal(path))
        simulate(state, seed, max_results, curve=lambda trial, config, epoch: 0.3 + config.lr + 0.01 * epoch)
    (folder / "experiment.yaml").write_text(dump_space(space))
    write_study(folder / "study.db", space, read_history(path))
    write_tables(Experiment(folder), read_history(path))
    return folder


@pytest.fixture
def journal(folder: Path) -> bytes:
    return (folder / "journal.jsonl").read_bytes()


@pytest.fixture
def events(journal: bytes) -> list[Event]:
    return events_of(journal)


@pytest.fixture(scope="module")
def earlier(folder: Path, space: Space, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Study and table of the experiment as they were after 31 lines of the journal."""
    earlier = tmp_path_factory.mktemp("earlier")
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (earlier / "journal.jsonl").write_bytes(b"".join(lines[:31]))
    write_study(earlier / "study.db", space, read_history(earlier / "journal.jsonl"))
    write_tables(Experiment(earlier), read_history(earlier / "journal.jsonl"))
    return earlier


def ends(events: list[Event], status: str) -> list[int]:
    return [i for i, event in enumerate(events) if isinstance(event, TrialEnded) and event.status == status]


def until(events: list[Event], trial: int, epoch: int) -> list[Event]:
    """The events up to an epoch of a trial."""
    position = next(
        i
        for i, event in enumerate(events)
        if isinstance(event, EpochDone) and (event.trial, event.epoch) == (trial, epoch)
    )
    return events[: position + 1]


def test_a_sound_history_has_no_problems_wherever_it_breaks_off(events: list[Event], space: Space) -> None:
    assert {trial.status for trial in History(events).trials.values()} == {"completed", "stopped"}
    for n in range(len(events)):
        assert history_problems(events[:n], space, None, finished=False) == []
    assert history_problems(events, space, None, finished=True) == []
    assert history_problems(events[:-1], space, None, finished=True) != []


def without_the_last_trial(events: list[Event]) -> None:
    events[:] = [event for event in events if getattr(event, "trial", None) != 19]


def with_other_status(events: list[Event], status: str, other: str) -> None:
    position = ends(events, status)[-1]
    events[position] = replace(events[position], status=other)  # type: ignore[call-arg]


def with_late_stop(events: list[Event]) -> None:
    position = ends(events, "stopped")[0]
    trial = events[position].trial  # type: ignore[union-attr]
    events[position:position] = [result(trial, epoch, 0.1) for epoch in (2, 3)]


def with_an_empty_rung(events: list[Event]) -> None:
    for i, event in enumerate(events):
        if isinstance(event, EpochDone) and event.epoch == 1 and event.trial < 10:
            events[i] = replace(event, validation_accuracy=0.0)


@pytest.mark.parametrize(
    "problem, damage",
    [
        ("has epoch 3 after 1", lambda events: events.remove(next(e for e in events if getattr(e, "epoch", 0) == 2))),
        ("has ended already", lambda events: events.append(events[ends(events, "stopped")[0]])),
        ("19 trials were started, but the space has 20", without_the_last_trial),
        ("has not ended", lambda events: events.pop(ends(events, "completed")[-1])),
        ("ends as stopped, but had to", lambda events: with_other_status(events, "completed", "stopped")),
        ("ends as completed, but had to", lambda events: with_other_status(events, "stopped", "completed")),
        ("ends as failed, but had to", lambda events: with_other_status(events, "stopped", "failed")),
        ("but had to end as stopped", with_late_stop),
        ("but had to", with_an_empty_rung),
    ],
)
def test_each_damage_of_a_history_is_a_problem(
    events: list[Event], space: Space, problem: str, damage: Callable[[list[Event]], object]
) -> None:
    damage(events)
    assert problem in " ".join(history_problems(events, space, None, finished=True))


def test_a_search_that_forgets_its_rungs_is_a_problem(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    simulate(SearchState(space, History(), Journal(path)), 0, 25)
    state = SearchState(space, read_history(path), Journal(path))
    state._rule = StoppingRule(space, state.history)
    simulate(state, 1)
    assert "but had to" in " ".join(rung_problems(events_of(path.read_bytes()), space, None))


def test_a_diverged_trial_counts_as_worst_and_a_failed_one_must_be_expected(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    state = SearchState(space, History(), Journal(path))
    for _ in range(3):
        state.next_assignment()
    state.record(result(1, 1, 0.1, loss=float("nan")))
    state.fail(2, "The actor died.")
    simulate(SearchState(space, read_history(path), Journal(path)), 0)
    events = events_of(path.read_bytes())
    assert history_problems(events, space, None, finished=True) == ["trial 2 failed (The actor died.)"]
    assert history_problems(events, space, None, finished=True, may_fail=frozenset({2})) == []
    with_other_status(events, "diverged", "stopped")
    assert rung_problems(events, space, None) == ["trial 1 ends as stopped, but had to end as diverged"]


def test_a_journal_may_only_grow(journal: bytes) -> None:
    lines = journal.splitlines(keepends=True)
    before = b"".join(lines[:20])
    assert prefix_problems(before, journal) == []
    assert prefix_problems(before + lines[20][:30], before) == [], "a torn line may be cut off"
    assert prefix_problems(before, journal[:100]) == ["the journal's line 1 is changed or missing"]
    changed = b"".join([*lines[:4], lines[4].replace(b"0.", b"1."), *lines[5:]])
    assert prefix_problems(before, changed) == ["the journal's line 5 is changed or missing"]


def test_a_checkpoint_may_be_one_epoch_behind(events: list[Event]) -> None:
    history = History(until(events, trial=0, epoch=5))
    epochs = {trial.number: trial.n_epochs for trial in history.unfinished}
    assert checkpoint_problems(history, epochs) == []
    assert checkpoint_problems(history, {**epochs, 0: 4}) == []
    assert len(checkpoint_problems(history, {**epochs, 0: 3})) == 1
    assert checkpoint_problems(History(events), {}) == [], "ended trials need none"


@pytest.mark.parametrize(
    "trained, redone, n_workers_killed, problem",
    [
        ([6, 7], [], 0, None),
        ([5, 6], [5], 0, None),
        ([], [5], 0, None),  # the last line of Ray's log may be missing
        ([6, 6], [6], 1, None),
        ([5, 6, 6], [5, 6], 1, None),
        ([7], [], 0, "trial 0 is trained in epoch 7 without the one before it"),
        ([5, 6], [], 0, "trial 0 repeats 0 epochs by the journal and 1 by Ray's logs"),
        ([4, 5, 6], [4, 5], 0, "trial 0 repeats 2 epochs in a session"),
    ],
)
def test_a_session_repeats_at_most_one_epoch_of_a_trial_and_journals_it(
    events: list[Event], trained: list[int], redone: list[int], n_workers_killed: int, problem: str | None
) -> None:
    before = History(until(events, trial=0, epoch=5))
    new = [EpochRedone(0, epoch, 0.0) for epoch in redone]
    assert training_problems(before, new, {0: trained}, n_workers_killed) == ([problem] if problem else [])


def test_no_session_trains_an_ended_trial(events: list[Event]) -> None:
    ended = next(trial.number for trial in History(events).trials.values() if trial.status == "stopped")
    assert training_problems(History(events), [], {ended: [1]}) == [f"trial {ended} was stopped and is trained again"]


def test_a_study_may_be_older_but_not_contradict(folder: Path, earlier: Path, events: list[Event]) -> None:
    history, study, old_study = History(events), study_in(folder / "study.db"), study_in(earlier / "study.db")
    assert study is not None
    assert old_study is not None
    assert study_problems(study, history, current=True) == []
    assert study_problems(study[:-1], history, current=True) != []
    assert study_problems(study[1:], history, current=False) != []
    other_state = TrialState.COMPLETE if study[3].state == TrialState.PRUNED else TrialState.PRUNED
    for name, value in (("params", {}), ("state", other_state), ("intermediate_values", {}), ("value", 0.123)):
        changed = copy.deepcopy(study)
        setattr(changed[3], name, value)
        assert study_problems(changed, history, current=False) != [], name
    assert TrialState.RUNNING in {trial.state for trial in old_study}
    assert study_problems(old_study, history, current=False) == []
    assert study_problems(old_study, history, current=True) != []
    assert study_in(folder / "missing.db") is None


def test_a_leaderboard_may_be_older_but_not_contradict(folder: Path, earlier: Path, events: list[Event]) -> None:
    history, table, old_table = History(events), table_in(folder / "trials.csv"), table_in(earlier / "trials.csv")
    rows = [row.as_dict() for row in rank(history)]
    assert table is not None
    assert old_table is not None
    assert leaderboard_problems(rows, history, current=True) == leaderboard_problems(table, history, True) == []
    assert leaderboard_problems(rows[:-1], history, current=True) != []
    for change in ({"status": "running"}, {"epochs": 2}, {"validation_accuracy": 0.99}, {"rank": 3}):
        assert leaderboard_problems([{**rows[0], **change}, *rows[1:]], history, current=True) != [], change
    assert leaderboard_problems(old_table, history, current=False) == []
    assert leaderboard_problems(old_table, history, current=True) != []


def test_sessions_may_end_and_be_followed_but_not_change() -> None:
    first = Session(started_at="2026-01-01T00:00:00+00:00", seconds=10.0, end="interrupted")
    killed = Session(started_at="2026-01-01T01:00:00+00:00")
    assert session_problems([], [first]) == []
    assert session_problems([first, killed], [first, killed, killed]) == []
    assert session_problems([first, killed], [first, killed.model_copy(update={"seconds": 3.0})]) == []
    assert session_problems([first, killed], [first]) != []
    assert session_problems([first], [first.model_copy(update={"seconds": 0.0})]) != []
    assert session_problems([killed], [killed.model_copy(update={"started_at": "2026-01-01T02:00:00+00:00"})]) != []


@pytest.mark.parametrize("used_s, before_s, sound", [(35, 10, True), (24, 10, False), (40, 10, False), (30, 32, False)])
def test_used_time_lies_between_the_events_and_the_processes(used_s: float, before_s: float, sound: bool) -> None:
    start = TrialStarted(0, {}, Hyperparameters(), True, 105.0)
    times = enumerate((110.0, 205.0, 225.0), 1)
    history = History([start, *(replace(result(0, epoch, 0.5), at=at) for epoch, at in times)])
    assert (time_problems(used_s, before_s, [(100.0, 111.0), (200.0, 226.0)], history) == []) is sound


def test_each_proposal_must_be_that_of_the_events_before_it(
    folder: Path, space: Space, events: list[Event], tmp_path: Path
) -> None:
    assert proposal_problems(folder) == []
    # As if the study had been resumed with other results.
    changed = [
        replace(event, validation_accuracy=1 - event.validation_accuracy) if isinstance(event, EpochDone) else event
        for event in events
    ]
    (tmp_path / "experiment.yaml").write_text(dump_space(space))
    (tmp_path / "journal.jsonl").write_bytes(b"".join(map(event_line, changed)))
    assert proposal_problems(tmp_path) != []


def test_the_newest_intact_checkpoint_of_each_trial_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = {"1/trial_0007": 2, "2/trial_0007_2": 3, "3/trial_0007": None, "1/trial_0008": None}
    for path in epochs:
        (tmp_path / "ray" / f"session_{path}" / "checkpoint_000000").mkdir(parents=True)

    def checkpoint_epoch(path: Path) -> int | None:
        return epochs["/".join(path.parts[-3:-1]).removeprefix("session_")]

    monkeypatch.setattr(files, "checkpoint_epoch", checkpoint_epoch)
    assert files.newest_checkpoints(tmp_path) == {7: 3}


def test_faults_are_drawn_by_the_seed_and_in_start_up_only_where_allowed() -> None:
    def drawn(seed: int, may_be_in_start_up: bool) -> list[tuple[str, int, float]]:
        generator = random.Random(seed)
        kinds = itertools.islice(kinds_in_turn(generator, ALL_KINDS), 200)
        return [(kind, *next_moment(generator, kind, may_be_in_start_up)) for kind in kinds]

    assert drawn(1, True) == drawn(1, True) != drawn(2, True)
    assert {kind for kind, _, _ in drawn(1, True)[: len(ALL_KINDS)]} == set(ALL_KINDS)
    in_start_up = [kind for kind, new_lines, _ in drawn(1, True) if new_lines == 0]
    assert 10 < len(in_start_up) < 60
    assert set(in_start_up) == set(DRIVER_KINDS)
    assert all(new_lines >= 1 for _, new_lines, _ in drawn(1, False))
