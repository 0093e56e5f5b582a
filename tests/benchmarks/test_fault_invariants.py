"""The checks behind the fault suite: silent for sound histories, and loud for each way to break one."""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.faults.files import newest_checkpoints, proposal_problems, study_in, table_in
from benchmarks.faults.injection import kinds_in_turn, next_moment
from benchmarks.faults.invariants import (
    Asked,
    budget_problems,
    checkpoint_problems,
    events_of,
    history_problems,
    leaderboard_problems,
    lost_trials,
    prefix_problems,
    quantile,
    redone_journaled,
    redone_problems,
    redone_since,
    redone_within,
    rung_problems,
    session_problems,
    study_problems,
    trained_problems,
    trials_of,
)
from benchmarks.faults.tally import ALL_KINDS, DRIVER_KINDS, Launch, Tally, tallies, total
from search.analysis.csv_files import write_tables
from search.analysis.ranking import rank
from search.experiment.events import TrialStarted
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.journal import Journal, read_history
from search.experiment.manifest import Session, seconds_used, timestamp
from search.policy.asha import rung_rule
from search.policy.state import SearchState
from search.policy.study import write_study
from spaces import Space, load_space
from spaces.loader import dump_space
from tests.support.simulation import result, simulate

ASKED = Asked(trials=20, rung_epochs=(1, 3, 9), reduction_factor=3)
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("quickstart", ["search.trials=20"])


@pytest.fixture
def journal(space: Space, tmp_path: Path) -> bytes:
    """Of a search that broke off three times."""
    path = tmp_path / "journal.jsonl"
    for seed, max_results in enumerate((7, 9, 11, None)):
        state = SearchState(space, read_history(path), Journal(path))
        simulate(state, seed, max_results, curve=lambda trial, config, epoch: 0.3 + config.lr + 0.01 * epoch)
    return path.read_bytes()


@pytest.fixture
def events(journal: bytes) -> Events:
    return [dict(event) for event in events_of(journal)]


def all_problems(events: Events, finished: bool = True) -> list[str]:
    return [*history_problems(events, ASKED, finished), *rung_problems(events, ASKED)]


def at(events: Events, kind: str, **values: Any) -> int:
    """The first event of a kind with these values."""
    return next(
        i
        for i, event in enumerate(events)
        if event["event"] == kind and all(event[key] == value for key, value in values.items())
    )


def test_a_sound_history_has_no_problems_wherever_it_breaks_off(events: Events) -> None:
    assert {trial.status for trial in trials_of(events).values()} == {"completed", "stopped"}
    assert all_problems(events) == []
    for n in range(len(events)):
        assert all_problems(events[:n], finished=False) == []
    assert all_problems(events[:-1]), "but it is not finished there"


def without_an_epoch(events: Events) -> None:
    del events[at(events, "epoch_done", epoch=2)]


def with_an_epoch_twice(events: Events) -> None:
    position = at(events, "epoch_done", epoch=2)
    events.insert(position, events[position])


def without_a_trial(events: Events) -> None:
    events[:] = [event for event in events if event.get("trial") != 3]


def without_the_last_trial(events: Events) -> None:
    events[:] = [event for event in events if event.get("trial") != 19]


def with_a_trial_twice(events: Events) -> None:
    events += [event for event in events if event.get("trial") == 3]


def with_an_end_twice(events: Events) -> None:
    events.append(events[at(events, "trial_ended")])


def without_an_end(events: Events) -> None:
    del events[at(events, "trial_ended", status="completed")]


def stopped_without_cause(events: Events) -> None:
    events[at(events, "trial_ended", status="completed", trial=0)]["status"] = "stopped"


def stopped_a_rung_too_late(events: Events) -> None:
    end = at(events, "trial_ended", status="stopped")
    trial = events[end]["trial"]
    last = at(events, "epoch_done", trial=trial)
    events[end:end] = [{**events[last], "epoch": epoch} for epoch in (2, 3)]


def completed_too_early(events: Events) -> None:
    events[at(events, "trial_ended", status="stopped")]["status"] = "completed"


def failed_without_cause(events: Events) -> None:
    events[at(events, "trial_ended", status="stopped")]["status"] = "failed"


def with_an_empty_rung(events: Events) -> None:
    """As a search would decide that forgot its rungs."""
    for event in events:
        if event["event"] == "epoch_done" and event["epoch"] == 1 and event["trial"] < 10:
            event["validation_accuracy"] = 0.0


@pytest.mark.parametrize(
    "damage",
    [
        without_an_epoch,
        with_an_epoch_twice,
        without_a_trial,
        without_the_last_trial,
        with_a_trial_twice,
        with_an_end_twice,
        without_an_end,
        stopped_without_cause,
        stopped_a_rung_too_late,
        completed_too_early,
        failed_without_cause,
        with_an_empty_rung,
    ],
    ids=lambda damage: damage.__name__,
)
def test_each_way_to_break_a_history_is_noticed(events: Events, damage: Callable[[Events], None]) -> None:
    damage(events)
    assert all_problems(events)


def test_a_search_that_forgets_its_rungs_is_noticed(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    simulate(SearchState(space, History(), Journal(path)), 0, 25)
    state = SearchState(space, read_history(path), Journal(path))
    state._rule = rung_rule(space)
    simulate(state, 1)
    problems = rung_problems(events_of(path.read_bytes()), ASKED)
    assert any("but was to be stopped" in problem or "but was not to end" in problem for problem in problems)


def test_a_diverged_trial_counts_as_worst_and_must_fail(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    state = SearchState(space, History(), Journal(path))
    for _ in range(3):
        state.next_assignment()
    state.record(result(1, 1, 0.1, loss=float("nan")))
    state.record(result(2, 1, 0.05))
    simulate(SearchState(space, read_history(path), Journal(path)), 0)
    events = [dict(event) for event in events_of(path.read_bytes())]
    assert all_problems(events) == []
    events[at(events, "trial_ended", trial=1)]["status"] = "stopped"
    assert rung_problems(events, ASKED) == [
        "trial 1 is stopped, but was to end as diverged",
    ]


def test_a_trial_that_lost_its_worker_again_and_again_may_fail_where_that_is_expected(
    space: Space, tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    state = SearchState(space, History(), Journal(path))
    for _ in range(2):
        state.next_assignment()
    state.record(result(0, 1, 0.5))
    state.fail(1, "The actor died.")
    simulate(SearchState(space, read_history(path), Journal(path)), 0)
    events = events_of(path.read_bytes())
    assert history_problems(events, ASKED, True) == ["trial 1 failed (The actor died.)"]
    assert history_problems(events, ASKED, True, may_fail=frozenset({1})) == []
    assert rung_problems(events, ASKED) == []


def test_what_was_journaled_may_only_be_added_to(journal: bytes) -> None:
    lines = journal.splitlines(keepends=True)
    before = b"".join(lines[:20])
    assert prefix_problems(before, journal) == []
    assert prefix_problems(before + lines[20][:30], journal) == [], "a torn line may be cut off"
    assert prefix_problems(before + lines[20][:30], before) == []
    assert prefix_problems(before, journal[:100]) == ["the journal's line 1 is not what it was before"]
    changed = b"".join([*lines[:4], lines[4].replace(b"0.", b"1."), *lines[5:]])
    assert prefix_problems(before, changed) == ["the journal's line 5 is not what it was before"]


def test_lost_trials_are_those_with_a_line_less(events: Events) -> None:
    assert lost_trials(events[:30], events) == []
    fewer = [event for event in events if (event.get("trial"), event.get("epoch")) not in ((0, 2), (4, 1))]
    assert lost_trials(events, fewer) == [0, 4]


def test_a_quantile_is_numpy_s() -> None:
    generator = np.random.default_rng(0)
    for n in range(1, 30):
        values = generator.random(n).tolist()
        for reduction in (2, 3, 4):
            expected = np.percentile(values, 100 * (1 - 1 / reduction))
            assert quantile(values, 1 - 1 / reduction) == pytest.approx(expected, abs=1e-12)


def test_a_checkpoint_may_be_one_epoch_behind_and_no_more(events: Events) -> None:
    position = at(events, "epoch_done", trial=0, epoch=5)
    running = {n: len(t.epochs) for n, t in trials_of(events[: position + 1]).items() if t.end is None}
    assert running[0] == 5
    assert checkpoint_problems(events[: position + 1], running) == []
    assert checkpoint_problems(events[: position + 1], {**running, 0: 4}) == []
    assert checkpoint_problems(events[: position + 1], {**running, 0: 3})
    assert checkpoint_problems(events, {}) == [], "trials that have ended need none"


def test_a_session_may_train_one_known_epoch_again_and_leave_none_out(events: Events) -> None:
    before = events[: at(events, "epoch_done", trial=0, epoch=5) + 1]
    assert trained_problems(before, {0: [6, 7]}) == []
    assert trained_problems(before, {0: [5, 6]}) == []
    assert redone_since(before, {0: [5, 6], 19: [1]}) == {0: 1, 19: 0}
    assert trained_problems(before, {0: [4, 5, 6]}) == ["trial 0 has 5 epochs, and 2 of them are trained again"]
    assert trained_problems(before, {0: [7]}) == ["trial 0 is trained in epoch 7 without the one before it"]
    assert trained_problems(before, {0: [6, 6]}) == ["trial 0 trains 1 epochs twice in a session"]
    assert trained_problems(before, {0: [6, 6]}, n_workers_killed=1) == []
    assert redone_within({0: [6, 6, 7, 7, 8]}) == {0: 2}
    ended = next(number for number, trial in trials_of(before).items() if trial.end)
    assert "is trained again" in trained_problems(before, {ended: [1]})[0]


def test_a_study_may_lag_behind_but_not_contradict(
    space: Space, journal: bytes, events: Events, tmp_path: Path
) -> None:
    path = tmp_path / "study.db"
    write_study(path, space, read_history(tmp_path / "journal.jsonl"))
    study = study_in(path)
    assert study is not None
    assert study_problems(study, events, current=True) == []
    assert study_problems(study[:-1], events, current=True)
    assert study_problems(study[1:], events, current=False)
    for changed in (
        replace(study[3], params={"lr": 0.1}),
        replace(study[3], state="COMPLETE" if study[3].state == "PRUNED" else "PRUNED"),
        replace(study[3], values={}),
        replace(study[3], value=0.123),
    ):
        assert study_problems([*study[:3], changed, *study[4:]], events, current=False)

    (tmp_path / "earlier.jsonl").write_bytes(b"".join(journal.splitlines(keepends=True)[:31]))
    write_study(path, space, read_history(tmp_path / "earlier.jsonl"))
    earlier = study_in(path)
    assert earlier is not None
    assert "RUNNING" in {trial.state for trial in earlier}
    assert study_problems(earlier, events, current=False) == []
    assert study_problems(earlier, events, current=True)


def test_a_leaderboard_may_lag_behind_but_not_contradict(journal: bytes, events: Events, tmp_path: Path) -> None:
    history = read_history(tmp_path / "journal.jsonl")
    rows = [row.as_dict() for row in rank(history)]
    assert leaderboard_problems(rows, events, current=True) == []
    assert leaderboard_problems(rows[:-1], events, current=True)
    assert leaderboard_problems([rows[1], rows[0], *rows[2:]], events, current=True)
    for change in ({"status": "running"}, {"epochs": 2}, {"validation_accuracy": 0.99}, {"rank": 3}):
        assert leaderboard_problems([{**rows[0], **change}, *rows[1:]], events, current=True), change

    (tmp_path / "earlier.jsonl").write_bytes(b"".join(journal.splitlines(keepends=True)[:31]))
    write_tables(Experiment(tmp_path), read_history(tmp_path / "earlier.jsonl"))
    earlier = table_in(tmp_path / "trials.csv")
    assert earlier is not None
    assert leaderboard_problems(earlier, events, current=False) == []
    assert leaderboard_problems(earlier, events, current=True)


def test_sessions_may_be_ended_and_followed_but_not_changed() -> None:
    first = {"started_at": "2026-01-01T00:00:00+00:00", "seconds": 10.0, "end": "interrupted"}
    killed = {"started_at": "2026-01-01T01:00:00+00:00", "seconds": None, "end": None}
    assert session_problems([], [first]) == []
    assert session_problems([first, killed], [first, killed, killed]) == []
    assert session_problems([first, killed], [first, {**killed, "seconds": 3.0, "end": "finished"}]) == []
    assert session_problems([first, killed], [first])
    assert session_problems([first], [{**first, "seconds": 0.0}])
    assert session_problems([killed], [{**killed, "started_at": "2026-01-01T02:00:00+00:00"}])


def test_time_used_lies_between_the_events_and_the_processes() -> None:
    events = [{"event": "epoch_done", "at": at} for at in (105.0, 110.0, 205.0, 225.0)]
    launches = [(100.0, 111.0), (200.0, 226.0)]
    assert budget_problems(35.0, 10.0, launches, events) == []
    assert budget_problems(24.0, 10.0, launches, events), "less than what the events span"
    assert budget_problems(40.0, 10.0, launches, events), "more than the processes took"
    assert budget_problems(30.0, 32.0, launches, events), "less than before"


def test_a_search_that_is_resumed_within_the_second_of_its_kill_keeps_its_time(space: Space) -> None:
    killed_at, resumed_at = 1_800_000_100.2, 1_800_000_100.7
    sessions = [Session(started_at=timestamp(1_800_000_000.0)), Session(started_at=timestamp(resumed_at))]
    times = [1_800_000_040.0, killed_at]
    events = [TrialStarted(n, space.baseline_suggestion(), space.baseline, n == 0, at) for n, at in enumerate(times)]
    assert seconds_used(sessions, History(events)) == pytest.approx(100.2, abs=0.01)


def test_each_proposal_must_be_that_of_the_lines_before_it(space: Space, journal: bytes, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(dump_space(space))
    assert proposal_problems(tmp_path) == []
    # As if the study had come back with other results than those that the later trials were proposed from.
    events = [
        {**event, "validation_accuracy": 1 - event["validation_accuracy"]} if "epoch" in event else event
        for event in events_of(journal)
    ]
    (tmp_path / "journal.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    assert proposal_problems(tmp_path)


def test_damaged_checkpoints_do_not_count(tmp_path: Path) -> None:
    import hashlib

    for session, name, epoch, intact in ((1, "000003", 4, True), (1, "000004", 5, False), (2, "000000", 3, True)):
        folder = tmp_path / f"ray/session_{session}/trial_0007/checkpoint_{name}"
        folder.mkdir(parents=True)
        (folder / "tensors.safetensors").write_bytes(b"tensors" if intact else b"tens")
        state = {"epoch": epoch, "tensors_sha256": hashlib.sha256(b"tensors").hexdigest()}
        (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "ray/session_2/trial_0008/checkpoint_000000").mkdir(parents=True)
    assert newest_checkpoints(tmp_path) == {7: 4}


def redone_line(trial: int, epoch: int) -> bytes:
    return json.dumps({"event": "epoch_redone", "trial": trial, "epoch": epoch, "at": 0.0}).encode() + b"\n"


def test_what_was_redone_stands_in_the_journal_and_in_ray_s_logs(journal: bytes) -> None:
    lines = journal.splitlines(keepends=True)
    n = at([dict(event) for event in events_of(journal)], "epoch_done", trial=0, epoch=5) + 1
    before, rest = b"".join(lines[:n]), b"".join(lines[n:])
    after = before + redone_line(0, 5) + rest
    assert redone_journaled(before, after) == {0: 1}
    assert redone_problems(before, after, {0: [5, 6]}, 0) == []
    assert redone_problems(before, after, {0: []}, 0) == [], "the log's last line may be missing"
    assert redone_problems(before, before + rest, {0: [5, 6]}, 0) == [
        "trial 0 redid 0 epochs by the journal and 1 by Ray's logs"
    ]
    twice = after.replace(rest, redone_line(0, 5) + rest)
    assert redone_problems(before, twice, {0: [5, 5, 6]}, 1) == []
    assert redone_problems(before, twice, {0: [5, 5, 6]}, 0) == ["trial 0 redid 2 epochs in a session"]


def test_faults_are_counted_by_kind(journal: bytes) -> None:
    lines = journal.splitlines(keepends=True)
    n = at([dict(event) for event in events_of(journal)], "epoch_done", trial=0, epoch=5) + 1
    killed = b"".join(lines[:n])
    killed_later = killed + redone_line(0, 5)
    ended = killed_later + redone_line(0, 5) + b"".join(lines[n:])
    launches = [
        Launch(b"", b"", killed_by="driver alone", in_start_up=True),
        Launch(b"", killed, {0: [1, 2, 3, 4, 5]}, "driver and workers"),
        Launch(killed, killed_later, {0: [5]}, "driver alone", workers_killed=[killed]),
        Launch(killed_later, ended, {0: [5, 6, 7, 8, 9]}),
    ]
    counted = tallies(launches)
    known = trials_of(events_of(killed))
    running = sum(trial.end is None for trial in known.values())
    each = Tally(faults=1, expected=len(known), found=len(known), running=running)
    assert counted["worker only"] == each
    assert counted["driver and workers"] == replace(each, redone=1, most_redone=1)
    twice = replace(each, faults=2, in_start_up=1, redone=1, most_redone=1)
    assert counted["driver alone"] == twice
    ends = total(launches, ASKED)
    assert (ends.faults, ends.expected, ends.found, ends.repeated, ends.lost) == (4, 20, 20, 0, 0)
    assert (ends.redone, ends.most_redone) == (2, 1)


def test_lost_and_repeated_trials_are_counted(journal: bytes) -> None:
    lines = journal.splitlines(keepends=True)
    fewer = b"".join(line for line in lines if json.loads(line).get("trial") != 19)
    ended = json.loads(next(line for line in lines if b"trial_ended" in line))["trial"]
    launches = [Launch(b"", journal, killed_by="driver alone"), Launch(journal, fewer, {ended: [1]})]
    counted = tallies(launches)["driver alone"]
    assert (counted.expected, counted.found, counted.lost, counted.repeated) == (20, 19, 1, 1)
    assert total(launches, ASKED).lost == 1


def test_faults_are_drawn_by_the_seed_and_never_twice_in_a_row_in_start_up() -> None:
    def drawn(seed: int, may_be_in_start_up: bool) -> list[tuple[str, int, float]]:
        generator = random.Random(seed)
        kinds = itertools.islice(kinds_in_turn(generator, ALL_KINDS), 200)
        moments = [next_moment(generator, kind, may_be_in_start_up, 12.0) for kind in kinds]
        return [(moment.kind, moment.new_lines, moment.delay_s) for moment in moments]

    assert drawn(1, True) == drawn(1, True) != drawn(2, True)
    assert {kind for kind, _, _ in drawn(1, True)[: len(ALL_KINDS)]} == set(ALL_KINDS)
    in_start_up = [moment for moment in drawn(1, True) if moment[1] == 0]
    assert 10 < len(in_start_up) < 60
    assert all(kind in DRIVER_KINDS and delay <= 12 for kind, _, delay in in_start_up)
    assert all(new_lines >= 1 for _, new_lines, _ in drawn(1, False))
