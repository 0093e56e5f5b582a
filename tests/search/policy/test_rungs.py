from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket

from search.analysis.cost import expected_epochs, expected_epochs_left, passing_shares, seconds_left
from search.policy.rungs import RungRule, Rungs, chance_accuracy, quantile, refusal_text
from spaces.counted import duration_text


@given(
    curves=st.lists(st.lists(st.integers(0, 20), min_size=9, max_size=9), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    reduction=st.integers(2, 4),
)
def test_decisions_are_ray_s(curves: list[list[int]], order, reduction: int) -> None:  # type: ignore[no-untyped-def]
    max_epochs = reduction**2
    rungs = Rungs((1, reduction, max_epochs), reduction, RungRule.RAYS)
    bracket = _Bracket(1, max_epochs, reduction, 0)
    epochs = dict.fromkeys(range(len(curves)), 0)
    while epochs:
        trial = order.choice(sorted(epochs))
        epochs[trial] += 1
        epoch = epochs[trial]
        if epoch == max_epochs:
            del epochs[trial]
            continue
        value = curves[trial][epoch % 9] / 20
        rays = bracket.on_result(SimpleNamespace(trial_id=trial), epoch, value) == TrialScheduler.CONTINUE
        verdict = rungs.arrive(trial, epoch, value)
        assert (verdict is None or verdict.passed) == rays
        if not rays:
            del epochs[trial]


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=40), reduction=st.integers(2, 9))
def test_a_cutoff_is_numpy_s_percentile_to_the_last_bit(values: list[float], reduction: int) -> None:
    percentile = (1 - 1 / reduction) * 100
    assert quantile(sorted(values), percentile / 100) == np.percentile(values, percentile)


def test_by_ray_s_rule_the_first_arrival_and_ties_go_on() -> None:
    rungs = Rungs((1, 3), 3, RungRule.RAYS, chance=0.6)
    first = rungs.arrive(0, 1, 0.5)
    assert first is not None
    assert first.passed
    assert first.cutoff is None
    tie = rungs.arrive(1, 1, 0.5)
    assert tie is not None
    assert tie.passed
    below = rungs.arrive(2, 1, 0.49)
    assert below is not None
    assert not below.passed
    assert below.cutoff == 0.5


def test_a_tie_with_the_cutoff_does_not_pass() -> None:
    rungs = Rungs((1, 3), 3)
    assert rungs.arrive(0, 1, 0.5) is not None
    tie = rungs.arrive(1, 1, 0.5)
    assert tie is not None
    assert (tie.passed, tie.why) == (False, "tied")
    assert refusal_text(tie, 0.5, 1) == "tied with the cutoff 50.00% of rung 1"
    above = rungs.arrive(2, 1, 0.51)
    assert above is not None
    assert above.passed


def test_while_all_are_at_chance_ray_s_rule_alone_decides() -> None:
    ours, rays = Rungs((1, 3), 3, chance=0.12), Rungs((1, 3), 3, RungRule.RAYS)
    values = [0.10, 0.10, 0.11, 0.10, 0.09, 0.12, 0.11]
    for trial, value in enumerate(values):
        assert ours.arrive(trial, 1, value) == rays.arrive(trial, 1, value)


def test_what_is_at_chance_does_not_pass_where_any_run_has_learned() -> None:
    rungs = Rungs((1, 3), 3, chance=0.12)
    for trial in range(9):
        verdict = rungs.arrive(trial, 1, 0.10)
        assert verdict is not None
        assert verdict.passed
    learned = rungs.arrive(9, 1, 0.13)
    assert learned is not None
    assert learned.passed
    above_its_cutoff = rungs.arrive(10, 1, 0.12)
    assert above_its_cutoff is not None
    assert (above_its_cutoff.passed, above_its_cutoff.why) == (False, "chance")
    assert refusal_text(above_its_cutoff, 0.12, 1) == "at chance (12.00%) at rung 1, where others have learned"
    later = rungs.arrive(0, 3, 0.10)
    assert later is None, "trials end at the last rung anyway"


def test_each_rung_asks_for_itself_whether_any_run_has_learned() -> None:
    rungs = Rungs((1, 3, 9), 3, chance=0.12)
    rungs.arrive(0, 3, 0.9)
    for trial in range(1, 4):
        at_first = rungs.arrive(trial, 1, 0.10)
        assert at_first is not None
        assert at_first.passed
    at_second = rungs.arrive(1, 3, 0.10)
    assert at_second is not None
    assert at_second.why == "chance"


def test_a_diverged_run_is_the_worst_at_the_rung_that_it_would_have_come_to() -> None:
    rungs = Rungs((1, 3, 9, 27), 3)
    rungs.diverge(0, 2, goes_to_the_end=False)
    second, third = rungs.arrive(1, 3, 0.2), rungs.arrive(1, 9, 0.2)
    assert second is not None
    assert third is not None
    assert (second.cutoff, third.cutoff) == (0.0, None)
    rungs.diverge(2, 4, goes_to_the_end=True)
    at_third = rungs.arrive(3, 9, 0.2)
    assert at_third is not None
    assert at_third.cutoff == pytest.approx(0.2 * 2 / 3), "between the run with 0.2 and the worst"


def test_chance_is_the_commonest_class_and_the_luck_of_one_run_in_twenty() -> None:
    labels = np.repeat(np.arange(10), 1000)
    assert chance_accuracy(labels) == pytest.approx(0.1 + 1.645 * (0.1 * 0.9 / 10_000) ** 0.5)
    uneven = np.array([0] * 30 + [1] * 10)
    assert chance_accuracy(uneven) == pytest.approx(0.75 + 1.645 * (0.75 * 0.25 / 40) ** 0.5)
    assert chance_accuracy(np.zeros(5, np.int64)) == 1.0
    guesses = np.random.default_rng(0).binomial(10_000, 0.1, 4000) / 10_000
    assert (guesses > chance_accuracy(labels)).mean() == pytest.approx(0.05, abs=0.01)


def test_only_the_first_arrival_of_a_trial_counts_and_only_at_a_rung() -> None:
    rungs = Rungs((2, 6), 3)
    assert rungs.arrive(0, 1, 0.9) is None
    assert rungs.arrive(0, 2, 0.9) is not None
    assert rungs.arrive(0, 2, 0.1) is None
    assert rungs.arrive(0, 6, 0.9) is None, "trials end at the last rung anyway"
    verdict = rungs.arrive(1, 2, 0.5)
    assert verdict is not None
    assert verdict.cutoff == 0.9


def test_expected_epochs_lie_between_grace_for_all_and_everything() -> None:
    assert expected_epochs(1, (1, 3, 9), 3) == 9
    assert expected_epochs(20, (9,), 3) == 180
    assert 9 + 19 < expected_epochs(20, (1, 3, 9), 3) < 100
    assert expected_epochs(20, (1, 4, 16), 4) < expected_epochs(20, (4, 16), 4)


def test_epochs_left_are_weighted_with_the_share_that_passes() -> None:
    rungs, passing = (1, 3, 9), (0.5, 0.25)
    assert expected_epochs_left(0, rungs, passing) == 1 + 0.5 * 2 + 0.125 * 6
    assert expected_epochs_left(1, rungs, passing) == 2 + 0.25 * 6
    assert expected_epochs_left(2, rungs, passing) == 1 + 0.25 * 6
    assert expected_epochs_left(5, rungs, passing) == 4
    assert expected_epochs_left(9, rungs, passing) == 0


def test_the_time_left_is_never_less_than_the_longest_trial_s() -> None:
    assert seconds_left([1, 1, 1, 1], [], 2.0, 2) == 4
    assert seconds_left([9, 1], [], 2.0, 2) == 18
    assert seconds_left([], [], 2.0, 2) == 0
    assert seconds_left([1, 1], [3, 3, 3], 2.0, 2) == 14, "the third run has no other beside it"


def test_about_one_trial_in_reduction_factor_passes_and_early_ones_more() -> None:
    few, many = passing_shares(12, (1, 3, 9), 3), passing_shares(400, (1, 3, 9), 3)
    assert all(1 / 3 < share < 0.45 for share in many)
    assert few[0] > many[0]
    assert passing_shares(1, (9,), 3) == ()


def test_a_huge_search_is_estimated_at_once() -> None:
    million, hundred = expected_epochs(1_000_000, (1, 3, 9, 27), 3), expected_epochs(1000, (1, 3, 9, 27), 3)
    assert million == pytest.approx(1000 * hundred, rel=0.2)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "1 second"), (89.4, "89 seconds"), (600, "10 minutes"), (9000, "2.5 hours")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
