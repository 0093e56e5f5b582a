"""Replicates: which trials get them, how many, and what they say; compared with scipy where it has the same test."""

import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from search.analysis.columns import replicate_text
from search.analysis.cost import remaining
from search.analysis.ranking import lead_sentence, rank, sort_by, winner
from search.experiment.events import Event, ReplicateEnded, ReplicateStarted, TrialEnded, TrialStarted
from search.experiment.history import History
from search.experiment.journal import Journal, read_history
from search.policy.confirmation import budget_epochs, candidates, next_run, seconds_to_confirm
from search.policy.replicate_statistics import lead, replicate_results
from search.policy.state import Assignment, SearchState, is_done
from search.terminal.tables import as_table
from spaces import Space, load_space
from tests.support.simulation import result, run_result, simulate

EPOCHS = 9
Table = dict[int, list[float]]  # accuracies of replicates in blocks 1, 2 …, by trial


def quickstart(*overrides: str) -> Space:
    return load_space("quickstart", ["search.trials=5", "confirm.budget=20", *overrides])


SPACE = quickstart()


def searched(space: Space, *accuracies: float) -> History:
    """Completed trials with these accuracies; the first is the baseline."""
    history = History()
    for number, accuracy in enumerate(accuracies):
        history.apply(TrialStarted(number, space.searched_values(space.baseline), space.baseline, number == 0, 0.0))
        for epoch in range(1, EPOCHS + 1):
            history.apply(result(number, epoch, accuracy))
        history.apply(TrialEnded(number, "completed", "", 1.0))
    return history


def with_run(history: History, trial: int, block: int, value: float | None) -> History:
    """Adds a replicate with a final accuracy; None for one that diverged."""
    number = len(history.replicates)
    history.apply(ReplicateStarted(number, trial, block, 1.0))
    if value is None:
        history.apply(run_result(number, 1, 0.1, loss=float("nan")))
    else:
        for epoch in range(1, EPOCHS + 1):
            history.apply(run_result(number, epoch, value))
    history.apply(ReplicateEnded(number, "diverged" if value is None else "completed", "", 2.0))
    return history


def with_table(history: History, table: Table) -> History:
    for block in range(max(len(values) for values in table.values())):
        for trial, values in table.items():
            if block < len(values):
                with_run(history, trial, block + 1, values[block])
    return history


def confirmed(accuracies: tuple[float, ...], table: Table) -> History:
    return with_table(searched(SPACE, *accuracies), table)


def race(history: History, space: Space, value_of: Table) -> list[tuple[int, int]]:
    """Run what is asked for until it is enough."""
    asked = []
    while chosen := next_run(history, space):
        asked.append(chosen)
        trial, block = chosen
        with_run(history, trial, block, value_of[trial][(block - 1) % len(value_of[trial])])
    return asked


# Which trials, and how many replicates

FIVE = (0.5, 0.7, 0.9, 0.8, 0.6)


def test_the_best_few_and_the_baseline_take_part_best_first() -> None:
    space = quickstart("confirm.top=2")
    assert [trial.number for trial in candidates(searched(space, *FIVE), space)] == [2, 3, 0]
    assert candidates(searched(space, *FIVE), quickstart("confirm.top=0")) == []
    assert candidates(searched(space, 0.5), space) == [], "a baseline alone has nobody to compare with"


def test_trials_that_still_run_are_not_replicated_and_those_tied_before_stay() -> None:
    space = quickstart("confirm.top=1")
    history = with_table(searched(space, *FIVE), {3: [0.81, 0.82], 2: [0.8, 0.83], 0: [0.5, 0.51]})
    assert [trial.number for trial in candidates(history, space)] == [2, 3, 0], "trial 3 is tied with trial 2"
    history.apply(TrialStarted(5, space.searched_values(space.baseline), space.baseline, False, 0.0))
    history.apply(result(5, 1, 0.99))
    assert [trial.number for trial in candidates(history, space)] == [2, 3, 0]
    history.apply(TrialEnded(5, "stopped", "why", 1.0))
    assert [trial.number for trial in candidates(history, quickstart("confirm.top=5"))][:2] == [2, 3]


def test_a_small_budget_goes_to_fewer_trials_rather_than_to_fewer_seeds() -> None:
    space = quickstart("confirm.budget=0.9")
    history = searched(space, *FIVE)
    assert budget_epochs(history, space) == 40, "0.9 of 45: four runs of nine epochs"
    assert [trial.number for trial in candidates(history, space)] == [2, 0]
    assert race(history, space, {2: [0.9], 0: [0.9, 0.8]}) == [(2, 1), (0, 1), (2, 2), (0, 2)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 0.5, 1.0, 1.7, 3.0])
def test_replicates_never_take_more_epochs_than_their_share(share: float) -> None:
    space = quickstart(f"confirm.budget={share}")
    history = searched(space, *FIVE)
    noise = random.Random(0)
    race(history, space, {n: [0.9 + noise.gauss(0, 0.02) for _ in range(9)] for n in range(5)})
    assert sum(run.n_epochs for run in history.replicates.values()) <= share * history.n_epochs


@pytest.mark.parametrize(
    ("seeds", "table", "n_runs", "at_block_3"),
    [
        # Too noisy for any order: everybody stays in the race until the most that ties get.
        (3, {2: [0.8, 0.9, 0.7], 3: [0.9, 0.7, 0.8], 0: [0.7, 0.8, 0.9]}, 27, {2, 3, 0}),
        (5, {2: [0.90, 0.91], 3: [0.70, 0.712], 0: [0.50, 0.509]}, 6, set()),
        (3, {2: [0.90, 0.92, 0.90], 3: [0.91, 0.91, 0.91], 0: [0.3, 0.31, 0.3]}, 20, {2, 3}),
    ],
)
def test_each_gets_its_seeds_block_by_block_until_the_order_is_clear(
    seeds: int, table: Table, n_runs: int, at_block_3: set[int]
) -> None:
    space = quickstart("confirm.top=2", f"confirm.seeds={seeds}")
    asked = race(searched(space, *FIVE), space, table)
    assert asked[:6] == [(trial, block) for block in (1, 2) for trial in (2, 3, 0)]
    assert len(asked) == n_runs
    assert {trial for trial, block in asked if block > 2} == at_block_3


def test_the_race_goes_on_as_long_as_the_leaderboard_calls_trials_tied() -> None:
    # The replicates of the reference search, `results/cifar10`: trials 38, 34, 16 and the baseline.
    table = {1: [0.6794, 0.666], 2: [0.601, 0.6126], 3: [0.6584, 0.6448], 0: [0.5168, 0.5426]}
    space = quickstart("confirm.top=3")
    history = with_table(searched(space, 0.52, 0.68, 0.67, 0.65), table)
    assert {row.trial for row in rank(history) if row.tied} == {1, 3}
    assert race(history, space, {1: [0.672], 3: [0.651]}) == [(1, 3), (3, 3), (1, 4), (3, 4)]
    assert {row.trial for row in rank(history) if row.tied} == {1}


# Estimates


def test_a_lead_is_the_paired_t_interval_of_two_trials_that_chance_moves_alike() -> None:
    # Means of 53 and 47 %: as far from a half, so that the scale is one.
    first, second = [0.52, 0.55, 0.50, 0.55], [0.47, 0.48, 0.46, 0.47]
    found = lead(confirmed((0.5, 0.9), {1: first, 0: second}), 1, 0)
    reference = stats.ttest_rel(first, second)
    interval = reference.confidence_interval(0.95)
    assert found.half_width is not None
    assert found.mean == pytest.approx(np.mean(np.subtract(first, second)))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(interval))
    assert found.is_clear == (reference.pvalue < 0.05)


def test_a_mean_has_the_t_interval_of_the_spread_within_trials() -> None:
    values = [0.90, 0.93, 0.88]
    fresh = replicate_results(confirmed((0.5, 0.9), {1: values}))[1]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert fresh.mean == pytest.approx(np.mean(values))
    assert (fresh.mean - fresh.half_width, fresh.mean + fresh.half_width) == pytest.approx((low, high))  # type: ignore[operator]
    pooled = replicate_results(confirmed((0.5, 0.9), {1: values, 0: [0.5, 0.51, 0.5]}))
    widths = {number: fresh.half_width or 0.0 for number, fresh in pooled.items()}
    scales = {number: fresh.mean * (1 - fresh.mean) for number, fresh in pooled.items()}
    assert widths[1] / widths[0] == pytest.approx(scales[1] / scales[0])
    assert widths[1] < fresh.half_width  # type: ignore[operator]


def test_intervals_hold_what_they_promise_where_chance_moves_weak_trials_more() -> None:
    """Trials at 97, 95 and 85 %, in blocks that are easy or hard; 95 % intervals, 400 searches."""
    truth, generator = {1: 0.97, 2: 0.95, 0: 0.85}, np.random.default_rng(5)
    n_covered, n_leads = dict.fromkeys(truth, 0), 0
    history = searched(SPACE, 0.5, 0.9, 0.8)
    for _ in range(400):
        blocks = generator.normal(0, 0.15, size=4)
        history.replicates.clear()
        for number, mean in truth.items():
            for block, luck in enumerate(blocks, 1):
                run = len(history.replicates)
                history.apply(ReplicateStarted(run, number, block, 1.0))
                value = mean + mean * (1 - mean) * (luck + generator.normal(0, 0.25))
                history.apply(run_result(run, 1, value))
                history.apply(ReplicateEnded(run, "completed", "", 2.0))
        fresh, ahead = replicate_results(history), lead(history, 1, 0)
        for number, mean in truth.items():
            n_covered[number] += abs(fresh[number].mean - mean) <= (fresh[number].half_width or 0.0)
        n_leads += abs(ahead.mean - 0.12) <= (ahead.half_width or 0.0)
    assert all(0.91 <= n / 400 <= 0.99 for n in (*n_covered.values(), n_leads))


def test_a_trial_that_left_early_is_not_ahead_for_having_missed_the_hard_blocks() -> None:
    # Blocks 3 and 4 cost everybody 10 points; trial 0 was in the easy ones only, and behind in both.
    table = {1: [0.90, 0.92, 0.80, 0.82], 2: [0.91, 0.91, 0.81, 0.81], 0: [0.88, 0.89]}
    history = confirmed((0.5, 0.9, 0.8), table)
    fresh = replicate_results(history)
    assert list(fresh)[-1] == 0
    assert fresh[1].mean == pytest.approx(0.86), "the plain mean of a trial that was in all blocks"
    assert fresh[0].mean < 0.85, "not 88.5 %"
    assert lead(history, 1, 0).mean == pytest.approx(fresh[1].mean - fresh[0].mean), "as shown"


def test_a_run_that_diverged_counts_as_nothing_and_one_that_failed_does_not_count() -> None:
    history = with_run(confirmed((0.5, 0.9, 0.8), {1: [0.9, 0.9], 2: [0.8]}), 2, 2, None)
    history.apply(ReplicateStarted(4, 1, 3, 1.0))
    history.apply(ReplicateEnded(4, "failed", "no memory", 2.0))
    fresh = replicate_results(history)
    assert (fresh[1].n_runs, fresh[1].n_diverged, fresh[1].is_tied) == (2, 0, True)
    assert (fresh[2].n_runs, fresh[2].n_diverged, fresh[2].is_tied) == (2, 1, False)
    assert (fresh[2].mean, fresh[2].half_width) == (pytest.approx(0.4), None)
    assert "40.00%, 1 of 2 diverged" in replicate_text(fresh[2])


def test_a_run_that_diverged_widens_nobody_else_s_interval() -> None:
    space = quickstart("confirm.top=3", "confirm.seeds=4")
    table = {1: [0.93, 0.94, 0.93], 2: [0.93, 0.92, 0.92], 0: [0.85, 0.86, 0.85]}
    before = replicate_results(confirmed((0.5, 0.9, 0.8, 0.9), table))
    shaken = with_run(confirmed((0.5, 0.9, 0.8, 0.9), {**table, 3: [0.94]}), 3, 2, None)
    after = replicate_results(shaken)
    for number in (0, 1, 2):
        assert after[number].mean == pytest.approx(before[number].mean)
        assert after[number].half_width == pytest.approx(before[number].half_width)
    assert list(after)[-1] == 3, "its mean is 47 %"
    assert lead(shaken, 1, 0).is_clear
    assert next_run(shaken, space) == (1, 4), "trial 3 is out of the race, and in the way of nobody"


def test_one_run_has_no_interval_whatever_others_spread_and_is_tied() -> None:
    history = confirmed((0.5, 0.9, 0.8), {1: [0.74], 2: [0.74, 0.73, 0.72], 0: [0.5, 0.52]})
    fresh = replicate_results(history)
    assert fresh[1].half_width is None
    assert fresh[2].half_width is not None
    assert fresh[2].is_tied
    assert "±" not in replicate_text(fresh[1])
    assert lead(history, 1, 0).half_width is None
    assert lead(history, 2, 0).half_width is not None


def test_runs_that_are_all_equal_have_no_interval_and_are_tied() -> None:
    fresh = replicate_results(confirmed((0.74, 0.74, 0.7), {1: [0.74] * 3, 0: [0.74] * 4, 2: [0.74] * 3})).values()
    assert [(replicate_text(one), one.is_tied) for one in fresh] == [("74.00%", True)] * 3


# What the leaderboard says


@pytest.mark.parametrize(
    ("accuracies", "table", "order", "tied", "sentences"),
    [
        (
            (0.50, 0.95, 0.90),
            {1: [0.88, 0.89, 0.87], 2: [0.91, 0.92, 0.90], 0: [0.50, 0.51, 0.49]},
            [2, 1, 0],
            {2},
            (
                "Trial 2 wins: the search said 90.00%, 3 replicates say 91.00% ± ",
                "It is 41.00 ± 2.83 points above the baseline (trial 0, 50.00% ± ",
            ),
        ),
        (
            (0.80, 0.90),
            {1: [0.88, 0.80, 0.90], 0: [0.82, 0.88, 0.84]},
            [1, 0],
            {1, 0},
            ("; which may be luck. Not distinguishable from it: trial 0.",),
        ),
        (
            (0.80, 0.90),
            {1: [0.7, 0.7, 0.71], 0: [0.82, 0.81, 0.82]},
            [0, 1],
            {0},
            ("It is the baseline: no searched configuration ranks above it.",),
        ),
        (
            (0.80, 0.96, 0.95, 0.94),
            {1: [0.70, 0.72, 0.71], 0: [0.82, 0.81, 0.82]},
            [0, 1, 2, 3],
            {0},
            ("no searched configuration ranks above it, though 2 trials had a higher accuracy in the search.",),
        ),
        ((0.5, 0.9), {1: [0.9], 0: [0.5]}, [1, 0], {1, 0}, ("too few replicates to say how surely",)),
    ],
)
def test_the_winner_has_the_best_mean_and_its_luck_and_lead_are_said(
    accuracies: tuple[float, ...], table: Table, order: list[int], tied: set[int], sentences: tuple[str, ...]
) -> None:
    history = confirmed(accuracies, table)
    ranked = rank(history)
    assert [row.trial for row in ranked] == order
    assert winner(ranked).trial == order[0]  # type: ignore[union-attr]
    sentence = lead_sentence(history, ranked)
    assert [text for text in sentences if text not in sentence] == []
    assert {row.trial for row in ranked if row.tied} == tied


def test_where_the_hand_picked_configuration_diverged_it_is_said() -> None:
    history = with_run(confirmed((0.5, 0.9), {1: [0.9, 0.91], 0: [0.5]}), 0, 2, None)
    sentence = lead_sentence(history, rank(history))
    assert "A replicate of the baseline diverged." in sentence


def test_while_replicates_are_under_way_the_search_s_order_stands() -> None:
    history = with_run(searched(SPACE, 0.80, 0.90, 0.85), 2, 1, 0.99)
    assert [row.trial for row in rank(history)] == [1, 2, 0], "the best of the search has no replicate yet"
    with_run(history, 0, 1, 0.99)
    with_run(history, 1, 1, 0.89)
    assert [row.trial for row in rank(history)][2] == 1


@pytest.mark.parametrize(
    ("baseline", "order"),
    [
        (0.90, [0, 1, 2, 3, 4]),
        (0.82, [1, 0, 2, 3, 4]),
        (0.78, [1, 2, 3, 4, 0]),  # its mean is 79 %, less than the 80 % of trial 4
        (0.795, [1, 2, 3, 0, 4]),  # 80.5 %, less than the 81 % of trial 2
    ],
)
def test_the_baseline_that_nobody_chose_stands_where_its_mean_is(baseline: float, order: list[int]) -> None:
    # Chosen for replicates: trials 1 and 2. Trials 3 and 4 were not.
    table = {1: [0.85, 0.87], 2: [0.80, 0.82], 0: [baseline, baseline + 0.02]}
    assert [row.trial for row in rank(confirmed((0.97, 0.96, 0.95, 0.94, 0.80), table))] == order


def test_the_table_parts_ranks_by_replicates_from_the_others_and_cuts_no_figure() -> None:
    history = searched(SPACE, 0.97, 0.96, 0.95, 0.94)
    assert "above the line" not in as_table(rank(history), ())
    ranked = rank(with_table(history, {1: [0.85, 0.87], 2: [0.80, 0.82], 0: [0.5, 0.52]}))
    lines = as_table(ranked, ()).splitlines()
    assert [row.trial for row in ranked] == [1, 2, 3, 0]
    (line,) = (i for i, text in enumerate(lines[2:], 2) if set(text.strip()) == {"─"})
    assert lines[line - 1].split()[:2] == ["2", "2"]
    assert lines[line + 1].split()[:2] == ["3", "3"]
    assert lines[-1] == (
        "(above the line: ranked by replicates; below it: by forecasts from the search, the baseline by its replicates)"
    )
    assert "above the line" not in as_table(sort_by(ranked, "lr")[::-1], ()), "not in the order of ranks"
    for width in (50, 60, 70, 80):
        text = as_table(ranked, ("lr",), width)
        assert "…" not in text
        for row in ranked:
            assert row.replicates is None or f"{replicate_text(row.replicates)} ({row.n_replicates})" in text
    assert "seconds" not in text
    assert "seconds" in as_table(ranked, ("lr",), 120)


# Whole searches


def noisy(trial: int, block: int, epoch: int) -> float:
    return 0.8 + random.Random(trial * 100 + block).gauss(0, 0.02)


def with_trials(n: int) -> Space:
    return load_space("quickstart", [f"search.trials={n}", "search.sampler=random"])


def starts_of(history: History) -> list[tuple[int, int]]:
    """Trial and block of each replicate; no two are equal."""
    starts = [(run.trial, run.block) for run in history.replicates.values()]
    assert len(starts) == len(set(starts))
    return starts


def test_a_search_goes_on_to_replicates_and_ends_also_when_it_is_extended() -> None:
    history = History()
    for space in (with_trials(6), with_trials(14)):
        assert not is_done(history, space)
        state = SearchState(space, history)
        simulate(state, replicate_curve=noisy)
        assert is_done(history, space)
        assert not history.unfinished_replicates
        assert all(run.n_epochs == 9 for run in history.replicates.values())
        assert 0 < sum(run.n_epochs for run in history.replicates.values()) <= 1.8 * history.n_epochs
        assert {trial for trial, _ in starts_of(history)} >= {trial.number for trial in candidates(history, space)}


def test_with_many_slots_the_race_waits_for_the_blocks_before() -> None:
    began: list[tuple[int, int]] = []

    def observe(event: Event, history: History) -> None:
        if isinstance(event, ReplicateStarted):
            began.append((event.trial, event.block))
            assert not history.unfinished, "the best are known when the last trial has ended"
            if event.block > 2:
                assert all(run.end for run in history.replicates.values() if run.block < event.block)

    # Trial 0, the baseline, is clearly behind after two blocks.
    space = with_trials(12)
    state = SearchState(space, History(), observe=observe)
    simulate(state, trials_at_once=16, replicate_curve=lambda *at: noisy(*at) if at[0] else 0.2)
    assert is_done(state.history, space)
    assert (0, 2) in began
    assert max(block for _, block in began) > 2
    assert (0, 3) not in began


def test_blocks_that_wait_count_in_the_time_left() -> None:
    space = quickstart("confirm.top=2", "confirm.seeds=3")

    def with_started(*starts: tuple[int, int]) -> History:
        history = with_table(searched(space, 0.5, 0.7, 0.9), {2: [0.8, 0.9], 1: [0.9, 0.7], 0: [0.7, 0.8]})
        for trial, block in starts:
            history.apply(ReplicateStarted(len(history.replicates), trial, block, 1.0))
        return history

    both = with_started((2, 3), (1, 3))
    assert sum(remaining(both, space).of_runs) == 3 * EPOCHS, "two that run, and one that was not given out"
    waiting = with_started((2, 2))
    assert next_run(waiting, space) is None, "block 3 waits for block 2"
    assert sum(remaining(waiting, space).of_runs) == 3 * EPOCHS


@pytest.mark.parametrize("asha", ["adaptive", "stop"])
def test_when_the_time_for_trials_is_over_the_best_are_trained_again(asha: str) -> None:
    limits = ["search.trials=null", "search.time_budget=1h", f"search.asha={asha}", "search.sampler=random"]
    space = load_space("quickstart", limits)
    assert seconds_to_confirm(space) == pytest.approx(3600 * 1.8 / 2.8), "the quickstart's share is 1.8"
    history = History()
    simulate(SearchState(space, history, is_late=lambda: history.n_epochs >= 60), replicate_curve=noisy)
    assert history.n_epochs < 60 + 2 * EPOCHS, "no more than what ran then"
    assert not history.unfinished_replicates
    assert not is_done(history, space), "a longer time goes on"
    n_trials, n_runs = len(history.trials), len(starts_of(history))
    simulate(SearchState(space, history, is_late=lambda: history.n_epochs >= 120), seed=1, replicate_curve=noisy)
    assert len(history.trials) > n_trials
    assert len(starts_of(history)) > n_runs > 0


def test_a_search_that_has_nobody_to_train_again_uses_its_time_for_trials() -> None:
    space = load_space("quickstart", ["search.trials=4", "search.time_budget=1h"])
    state = SearchState(space, History(), is_late=lambda: True)
    simulate(state, replicate_curve=noisy)
    assert len(state.history.trials) > 1
    assert seconds_to_confirm(load_space("quickstart", ["search.time_budget=1h", "confirm.top=0"])) == 0
    assert seconds_to_confirm(load_space("quickstart")) == 0


@pytest.mark.parametrize("broke_off_after", [40, 50, 55, 61, 70])
def test_replicates_are_resumed_and_none_is_repeated(tmp_path: Path, broke_off_after: int) -> None:
    space = with_trials(8)
    path = tmp_path / "journal.jsonl"
    simulate(SearchState(space, History(), Journal(path)), seed=1, max_results=broke_off_after, replicate_curve=noisy)
    before = read_history(path)
    simulate(SearchState(space, read_history(path), Journal(path)), seed=2, replicate_curve=noisy)
    after = read_history(path)
    assert is_done(after, space)
    for number, run in before.replicates.items():
        assert after.replicates[number].epochs[: run.n_epochs] == run.epochs
    assert starts_of(after)


def test_replicates_of_one_block_differ_from_the_trial_s_and_share_their_streams() -> None:
    given: list[Assignment] = []

    class Watched(SearchState):
        def next_assignment(self) -> Assignment | None:
            assignment = super().next_assignment()
            if assignment and assignment.kind == "run":
                given.append(assignment)
            return assignment

    state = Watched(with_trials(4), History())
    simulate(state, replicate_curve=noisy)
    assert len({a.seed_number for a in given if a.trial == given[0].trial}) >= 2
    assert len({a.trial for a in given if a.seed_number == 1}) >= 2
    assert all(a.config == state.history.trials[a.trial].config for a in given)
