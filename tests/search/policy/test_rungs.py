from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket
from scipy.stats import spearmanr

from search.policy.rungs import FEWEST_PAIRS, SMALLEST_CORRELATION, Rungs, chance_accuracy, quantile
from spaces.counted import duration_text


@given(
    curves=st.lists(st.lists(st.integers(0, 20), min_size=9, max_size=9), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    reduction=st.integers(2, 4),
    all_at_chance=st.booleans(),
)
def test_decisions_are_ray_s_except_that_a_tie_passes_only_while_all_are_at_chance(
    curves: list[list[int]], order: np.random.Generator, reduction: int, all_at_chance: bool
) -> None:
    max_epochs = reduction**2
    rungs = Rungs((1, reduction, max_epochs), reduction, chance=1.0 if all_at_chance else None)
    bracket = _Bracket(1, max_epochs, reduction, 0)
    before: dict[int, list[float]] = {1: [], reduction: []}
    epochs = dict.fromkeys(range(len(curves)), 0)
    while epochs:
        trial = order.choice(sorted(epochs))
        epochs[trial] += 1
        epoch = epochs[trial]
        if epoch == max_epochs:
            del epochs[trial]
            continue
        value = curves[trial][epoch % 9] / 20
        values = before.get(epoch, [])
        is_tie = bool(values) and value == np.percentile(values, (1 - 1 / reduction) * 100)
        values.append(value)
        continues_with_ray = bracket.on_result(SimpleNamespace(trial_id=trial), epoch, value) == TrialScheduler.CONTINUE
        reason = rungs.arrive(trial, epoch, value)
        assert (reason is None) == (continues_with_ray and (all_at_chance or not is_tie))
        if reason:
            del epochs[trial]


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=40), reduction=st.integers(2, 9))
def test_a_cutoff_is_numpy_s_percentile_to_the_last_bit(values: list[float], reduction: int) -> None:
    percentile = (1 - 1 / reduction) * 100
    assert quantile(sorted(values), percentile / 100) == np.percentile(values, percentile)


TIED, BELOW = "tied with the cutoff 50.00% of rung 1", "49.00% at rung 1, below its cutoff 50.00%"
AT_CHANCE = "at chance ({}) at rung {}, where others have learned"
AT_SECOND = AT_CHANCE.format("10.00%", 3)


@pytest.mark.parametrize(
    ("chance", "arrivals"),
    [
        # Trial, epoch, value, reason.
        (None, [(0, 1, 0.5, None), (1, 1, 0.5, TIED), (2, 1, 0.49, BELOW), (3, 1, 0.51, None)]),
        (0.6, [(0, 1, 0.5, None), (1, 1, 0.5, None), (2, 1, 0.49, BELOW)]),
        (
            0.12,
            [
                *((trial, 1, 0.10, None) for trial in range(9)),
                (9, 1, 0.13, None),
                (10, 1, 0.12, AT_CHANCE.format("12.00%", 1)),
                (0, 9, 0.10, None),  # trials end at the last rung anyway
            ],
        ),
        # Each rung has its own best value.
        (
            0.12,
            [(0, 3, 0.9, None), (1, 1, 0.10, None), (2, 1, 0.10, None), (1, 3, 0.10, AT_CHANCE.format("10.00%", 3))],
        ),
        # Only the first arrival of a trial counts, and only at a rung.
        (None, [(0, 2, 0.9, None), (0, 1, 0.9, None), (0, 1, 0.1, None), (1, 1, 0.9, TIED.replace("50", "90"))]),
    ],
)
def test_why_a_trial_does_not_pass(chance: float | None, arrivals: list[tuple[int, int, float, str | None]]) -> None:
    rungs = Rungs((1, 3, 9), 3, chance)
    for trial, epoch, value, reason in arrivals:
        assert rungs.arrive(trial, epoch, value) == reason


def test_a_diverged_run_is_the_worst_at_the_rung_that_it_would_have_come_to() -> None:
    rungs = Rungs((1, 3, 9, 27), 3)
    rungs.diverge(0, 2, goes_to_the_end=False)
    assert rungs.arrive(1, 3, 0.0) == "tied with the cutoff 0.00% of rung 3"
    assert rungs.arrive(1, 9, 0.2) is None, "the first there"
    rungs.diverge(2, 4, goes_to_the_end=True)
    cutoff = "13.33%"  # between the run with 0.2 and the worst
    assert rungs.arrive(3, 9, 0.1) == f"10.00% at rung 9, below its cutoff {cutoff}"


def test_chance_is_the_commonest_class_and_the_luck_of_one_run_in_twenty() -> None:
    labels = np.repeat(np.arange(10), 1000)
    assert chance_accuracy(labels) == pytest.approx(0.1 + 1.645 * (0.1 * 0.9 / 10_000) ** 0.5)
    uneven = np.array([0] * 30 + [1] * 10)
    assert chance_accuracy(uneven) == pytest.approx(0.75 + 1.645 * (0.75 * 0.25 / 40) ** 0.5)
    assert chance_accuracy(np.zeros(5, np.int64)) == 1.0
    guesses = np.random.default_rng(0).binomial(10_000, 0.1, 4000) / 10_000
    assert (guesses > chance_accuracy(labels)).mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "1 second"), (89.4, "89 seconds"), (600, "10 minutes"), (9000, "2.5 hours")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def trained(rungs: Rungs, trial: int, early: float, late: float) -> list[str | None]:
    """Reasons of a trial at the rungs of epochs 1 and 3, where it continues whatever the first one says."""
    return [rungs.arrive(trial, 1, early), rungs.arrive(trial, 3, late)]


def test_an_early_rung_stops_nobody_until_enough_trials_have_the_same_order_at_the_last_one() -> None:
    rungs = Rungs((1, 3, 9), 3, adaptive=True)
    for trial in range(FEWEST_PAIRS):
        visit = rungs.visit(1, 0.0)
        assert (visit.is_open, visit.reason, visit.cutoff) == (False, None, None)
        assert trained(rungs, trial, 0.1 + trial / 100, 0.5 + trial / 100) == [None, None]
    assert rungs.visit(1, 0.1).is_open
    assert rungs.arrive(90, 1, 0.1) == "10.00% at rung 1, below its cutoff 13.33%"
    assert rungs.arrive(91, 1, 0.9) is None


@pytest.mark.parametrize("early", [lambda trial: 0.5 - trial / 100, lambda trial: 0.1])
def test_a_rung_of_another_order_or_of_none_stays_closed_and_the_last_one_decides(
    early: Callable[[int], float],
) -> None:
    rungs = Rungs((1, 3, 9), 3, adaptive=True)
    for trial in range(20):
        assert trained(rungs, trial, early(trial), 0.5 + trial / 100) == [None, None]
    assert trained(rungs, 20, 0.0, 0.5) == [None, "50.00% at rung 3, below its cutoff 62.67%"]


@given(
    curves=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25),
    order=st.randoms(use_true_random=False),
)
def test_each_decision_is_that_of_a_rule_that_reads_all_results_anew(
    curves: list[tuple[int, int, int]], order: np.random.Generator
) -> None:
    rungs, epochs = Rungs((1, 3, 9, 27), 3, adaptive=True), (1, 3, 9)
    known: dict[int, dict[int, float]] = {epoch: {} for epoch in epochs}
    left = dict.fromkeys(range(len(curves)), 0)
    while left:
        trial = order.choice(sorted(left))
        epoch, value = epochs[left[trial]], curves[trial][left[trial]] / 10
        pairs = [(known[epoch][one], last) for one, last in known[9].items()]
        is_open = epoch == 9 or (
            len(pairs) >= FEWEST_PAIRS
            and all(len(set(values)) > 1 for values in zip(*pairs, strict=True))
            and spearmanr(pairs).statistic >= SMALLEST_CORRELATION
        )
        values = list(known[epoch].values())
        passes = not is_open or not values or value > np.percentile(values, 200 / 3)
        assert (rungs.arrive(trial, epoch, value) is None) == passes
        known[epoch][trial] = value
        left[trial] += 1
        if not passes or left[trial] == len(epochs):
            del left[trial]
