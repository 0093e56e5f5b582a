import pytest

from search.analysis.cost import expected_search, passing_of
from search.experiment.history import History
from search.policy.budget import most_epochs_over
from search.policy.state import SearchState
from spaces import Space, load_space
from tests.support.simulation import simulate


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["confirm.top=0", "search.sampler=random", *overrides])


@pytest.mark.parametrize("asha", ["stop", "promote", "off"])
def test_an_epoch_budget_comes_to_about_as_many_trials_as_expected(asha: str) -> None:
    space = space_with("search.trials=null", "search.epoch_budget=150", f"search.asha={asha}")
    n_trials = []
    for seed in range(6):
        state = SearchState(space, History())
        order = [(7919 * (trial + 1) * (seed + 1)) % 1009 / 1009 for trial in range(150)]
        simulate(state, seed, trials_at_once=1, curve=lambda trial, config, epoch, order=order: order[trial])
        n_trials.append(len(state.history.trials))
    expected = expected_search(space)
    assert expected is not None
    assert sum(n_trials) / len(n_trials) == pytest.approx(expected.trials, rel=0.15)
    assert expected.epochs == pytest.approx(150, rel=0.1)


def test_the_smaller_of_trials_and_budgets_counts() -> None:
    few = expected_search(space_with("search.trials=5", "search.epoch_budget=1000"))
    assert few is not None
    assert few.trials == 5
    short = expected_search(space_with("search.trials=500", "search.epoch_budget=1000"), time_epochs=100.0)
    budget = expected_search(space_with("search.trials=null", "search.epoch_budget=100"))
    assert short is not None
    assert budget is not None
    assert short.trials == budget.trials
    only_time = space_with("search.trials=null", "search.time_budget=1m")
    assert expected_search(only_time) is None
    timed = expected_search(only_time, time_epochs=100.0)
    assert timed is not None
    assert timed.trials == budget.trials


def test_a_budget_smaller_than_the_baseline_is_a_search_of_one_trial() -> None:
    expected = expected_search(space_with("search.trials=null", "search.epoch_budget=3"))
    assert expected is not None
    assert (expected.trials, expected.epochs) == (1, 9.0)


def test_where_trials_are_promoted_a_third_goes_on() -> None:
    space = space_with("search.asha=promote")
    assert passing_of(space, 27, 0.0) == (9 / 27, 3 / 9)
    assert passing_of(space, 2, 0.0) == (0.0, 0.0)


def test_an_overrun_is_what_those_that_run_still_train() -> None:
    stop, promote = space_with("search.asha=stop"), space_with("search.asha=promote")
    assert most_epochs_over(stop, 4) == 4 * 9 - 1
    # The baseline to its end, the others from rung 3 to rung 9.
    assert most_epochs_over(promote, 4) == 9 + 3 * 6 - 1
    assert most_epochs_over(space_with("search.asha=promote", "search.audit_fraction=0.1"), 4) == 4 * 9 - 1
