"""Starts from earlier searches: which configurations are taken, and when they are tried."""

from dataclasses import replace

import numpy as np
import pytest

from search.experiment.events import ConfigurationAdded, MemoryRecalled, SpaceSet
from search.experiment.history import History
from search.policy.coordinates import features, from_unit, values_of
from search.policy.curve_model import to_z
from search.policy.memory import FEWEST_TRIALS, N_STARTS, EarlierSearch, earlier_search, starts
from search.policy.state import SearchState
from spaces import Hyperparameters, Space, load_space
from spaces.schema import MODELS
from tests.support.simulation import simulate

SPACE = load_space("cifar10")


def drawn(space: Space, n: int, seed: int = 0) -> list[Hyperparameters]:
    places = np.random.default_rng(seed).random((n, len(space.searched)))
    return [space.complete(from_unit(space.searched, place)) for place in places]


def quality(config: Hyperparameters, max_epochs: int, best: float = 0.5) -> float:
    """Final accuracy: best at one mean effective learning rate, and without holes."""
    effective = features(SPACE.searched, values_of([config]), np.array([max_epochs]))[0][1]
    return float(0.9 - 0.1 * min(2.0, abs(effective - np.log10(best))) - 0.2 * config.coarse_dropout_p)


def earlier(max_epochs: int = 27, best: float = 0.5, name: str = "earlier") -> EarlierSearch:
    space = replace(SPACE, training=SPACE.training.model_copy(update={"max_epochs": max_epochs}))
    configs = drawn(space, 60)
    scores = to_z(np.array([quality(config, max_epochs, best) for config in configs]))
    return EarlierSearch(name, max_epochs, frozenset(SPACE.searched), configs, scores)


@pytest.mark.parametrize("max_epochs", [27, 9])
def test_starts_are_among_the_best_also_where_the_earlier_trials_were_shorter(max_epochs: int) -> None:
    others = [quality(config, 27) for config in drawn(SPACE, 1000, seed=1)]
    found = [quality(config, 27) for config in starts(SPACE, [earlier(max_epochs)])]
    assert len(found) == N_STARTS
    assert found[0] > np.quantile(others, 0.95)
    assert min(found) > np.quantile(others, 0.75)


def test_starts_complement_each_other_where_earlier_searches_disagree() -> None:
    found = starts(SPACE, [earlier(best=0.03), earlier(best=3.0)])
    for best in (0.03, 3.0):
        others = [quality(config, 27, best) for config in drawn(SPACE, 1000, seed=1)]
        assert max(quality(config, 27, best) for config in found) > np.quantile(others, 0.9)


def test_starts_differ_and_depend_on_seed_and_memory_only() -> None:
    found = starts(SPACE, [earlier()])
    assert len(set(found)) == N_STARTS
    assert SPACE.baseline not in found
    assert found == starts(SPACE, [earlier()])
    other = MODELS["search"].model_validate({**SPACE.search.model_dump(), "seed": 1})
    assert found != starts(replace(SPACE, search=other), [earlier()])
    assert starts(SPACE, []) == []


def test_hyperparameters_that_the_memory_does_not_know_are_drawn_from_their_ranges() -> None:
    wide = load_space("wide", ["search.trials=8"])
    found = starts(wide, [earlier()])
    assert all(wide.contains(config) for config in found)
    assert len({config.weight_decay for config in found}) == N_STARTS
    others = [quality(config, 27) for config in drawn(wide, 1000, seed=1)]
    assert quality(found[0], 27) > np.quantile(others, 0.9)


def simulated(trials: int, memory: MemoryRecalled | None = None, max_results: int | None = None) -> History:
    space = load_space("cifar10", [f"search.trials={trials}", "search.sampler=random", "confirm.top=0"])
    events = [SpaceSet(space.as_dict(), [], 0.0), *([memory] if memory else [])]
    state = SearchState(space, History(events))
    simulate(state, max_results=max_results)
    return state.history


def test_an_earlier_search_has_forecasts_of_all_its_trials_with_results() -> None:
    history = simulated(FEWEST_TRIALS)
    found = earlier_search("mine", history)
    assert found
    assert {trial.status for trial in history.trials.values()} == {"completed", "stopped"}
    assert set(found.configs) == {trial.config for trial in history.trials.values()}
    assert (found.name, found.max_epochs, found.searched) == ("mine", 27, frozenset(SPACE.searched))
    results = {trial.config: trial.last_score or 0 for trial in history.trials.values()}
    assert np.corrcoef(found.scores, [results[config] for config in found.configs])[0, 1] > 0.8
    assert earlier_search("mine", simulated(FEWEST_TRIALS - 1)) is None
    assert earlier_search("mine", History()) is None
    history.chances = {"accuracy": max(results.values())}
    assert earlier_search("mine", history) is None, "it found nothing"


def test_they_come_after_what_the_user_gives_and_a_resumed_search_does_not_repeat_them() -> None:
    given, listed = replace(SPACE.baseline, lr=0.2), replace(SPACE.baseline, lr=0.1)
    recalled = [replace(SPACE.baseline, lr=lr) for lr in (0.01, 0.02, 0.1)] + [replace(SPACE.baseline, lr=9.0)]
    space = replace(load_space("cifar10", ["search.trials=6", "search.sampler=random"]), try_first=(listed,))
    events = [SpaceSet(space.as_dict(), [], 0.0), MemoryRecalled(["a"], recalled, 1.0), ConfigurationAdded(given, 2.0)]
    state = SearchState(space, History(events))
    simulate(state, max_results=40)
    simulate(SearchState(space, state.history), max_results=300)
    tried = [(trial.proposed_by, trial.config.lr) for trial in state.history.trials.values()]
    first = [("baseline", 0.05), ("steer", 0.2), ("try_first", 0.1), ("memory", 0.01), ("memory", 0.02)]
    assert tried[:5] == first, "one is listed already, another lies outside the space"
    assert [origin for origin, _ in tried[5:]] == ["prior", "prior"]
