"""Trials that chance exempts from being stopped: who they are, what becomes of them, and what they cost."""

import json
from pathlib import Path

import pytest

from search.analysis.csv_files import trials_csv
from search.analysis.ranking import rank
from search.experiment.audits import is_audit, n_audits
from search.experiment.events import SpaceSet
from search.experiment.history import History
from search.experiment.journal import Journal, read_history
from search.policy.space_change import must_be_allowed
from search.policy.state import SearchState
from search.terminal import tables
from spaces import Space, load_space
from tests.support.simulation import simulate


def exploring(audit_fraction: float, *overrides: str) -> Space:
    return load_space("quickstart", ["search.trials=30", f"search.audit_fraction={audit_fraction}", *overrides])


def history_of(space: Space, path: Path | None = None) -> History:
    """A history that says what is searched, as that of every search does; in a journal where one is given."""
    begin = SpaceSet(space.as_dict(), [], 0.0)
    if path is None:
        return History([begin])
    Journal(path).append(begin)
    return read_history(path)


def test_who_is_exempt_is_a_function_of_seed_and_number_alone() -> None:
    assert not any(is_audit(trial, 0, 0.0) for trial in range(100))
    assert all(is_audit(trial, 0, 1.0) for trial in range(100))
    drawn = [[is_audit(trial, seed, 0.1) for trial in range(100)] for seed in (0, 1)]
    assert drawn[0] == [is_audit(trial, 0, 0.1) for trial in range(100)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("audit_fraction", [0.05, 0.1, 0.3, 0.7])
def test_every_trial_is_as_likely_and_no_stretch_of_a_search_goes_without(audit_fraction: float) -> None:
    drawn = [[is_audit(trial, seed, audit_fraction) for trial in range(60)] for seed in range(2000)]
    shares = [sum(trials) / 2000 for trials in zip(*drawn, strict=True)]
    assert all(share == pytest.approx(audit_fraction, abs=0.05) for share in shares)
    stretches = [sum(trials[first : first + 20]) for trials in drawn for first in (0, 13, 40)]
    assert all(abs(n - 20 * audit_fraction) < 1 + 1e-9 for n in stretches)


def test_their_number_is_known_beforehand() -> None:
    for seed in range(20):
        space = exploring(0.3, f"search.seed={seed}")
        assert n_audits(space, 30) == sum(is_audit(trial, seed, 0.3) for trial in range(1, 30))


def test_exempt_trials_go_to_the_end_and_nobody_else_notices_at_the_first_rung() -> None:
    without, space = exploring(0.0), exploring(0.3)
    searched = []
    for one in (without, space):
        state = SearchState(one, history_of(one))
        # Each trial is worse than those before it: all but the baseline would be stopped at once.
        simulate(state, seed=0, trials_at_once=1, curve=lambda trial, config, epoch: 0.9 - trial / 50)
        searched.append(state.history.trials)
    audits = [number for number, trial in searched[1].items() if trial.audit]
    assert audits == [number for number in range(1, 30) if is_audit(number, 0, 0.3)]
    assert len(audits) == n_audits(space, 30) > 3
    assert [n for n, trial in searched[0].items() if trial.status == "completed"] == [0]
    assert [n for n, trial in searched[1].items() if trial.status == "completed"] == [0, *audits]
    first_rung = [{n: t.end.reason for n, t in trials.items() if n not in audits} for trials in searched]  # type: ignore[union-attr]
    assert first_rung[0] == first_rung[1], "they arrive there as they would have"


@pytest.mark.parametrize("broke_off_after", [1, 7, 20, 45])
def test_they_are_the_same_after_a_resume(tmp_path: Path, broke_off_after: int) -> None:
    space, path = exploring(0.3), tmp_path / "journal.jsonl"
    simulate(SearchState(space, history_of(space, path), Journal(path)), seed=4, max_results=broke_off_after)
    simulate(SearchState(space, read_history(path), Journal(path)), seed=5)
    trials = read_history(path).trials
    assert {n for n, t in trials.items() if t.audit} == {n for n in range(1, 30) if is_audit(n, 0, 0.3)}
    assert all(trial.status == "completed" for trial in trials.values() if trial.audit)


def test_a_change_of_it_needs_no_flag_and_holds_for_later_trials_only() -> None:
    before, after = exploring(0.0, "search.trials=15"), exploring(1.0)
    assert must_be_allowed(before.as_dict(), after, allowed=False, folder=Path("results/mine"))
    history = history_of(before)
    simulate(SearchState(before, history), seed=0)
    ended = {number: trial.status for number, trial in history.trials.items()}
    history.apply(SpaceSet(after.as_dict(), [], 1.0))
    simulate(SearchState(after, history), seed=0)
    assert {number: history.trials[number].status for number in ended} == ended
    assert [trial.audit for trial in history.trials.values()] == [False] * 15 + [True] * 15
    assert all(trial.status == "completed" for number, trial in history.trials.items() if number >= 15)


def test_a_journal_from_before_there_was_such_a_thing_can_be_gone_on_with() -> None:
    space = exploring(0.0)
    content = space.as_dict()
    del content["search"]["audit_fraction"]
    assert must_be_allowed(content, space, allowed=False, folder=Path("results/mine"))
    state = SearchState(space, History([SpaceSet(content, [], 0.0)]))
    simulate(state, seed=0)
    assert not any(trial.audit for trial in state.history.trials.values())


def test_the_leaderboard_s_json_and_csv_say_who_was() -> None:
    space = exploring(0.3)
    state = SearchState(space, history_of(space))
    simulate(state, seed=0)
    rows = json.loads(tables.as_json("mine", rank(state.history), state.history.metric))["trials"]
    assert {row["trial"] for row in rows if row["audit"]} == {n for n in range(1, 30) if is_audit(n, 0, 0.3)}
    assert "audit" in trials_csv(rank(state.history), []).splitlines()[0]
    assert tables.as_table(rank(state.history), []).count("(audit)") == n_audits(space, 30)
