"""Proposals of `search.sampler: curves`: what they depend on, and that they are better than random ones."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from search.experiment.events import EpochDone, SpaceSet
from search.experiment.history import History
from search.policy.coordinates import from_unit, to_unit
from search.policy.curve_sampler import expected_improvement, is_random, proposal
from search.policy.state import SearchState
from spaces import Space, load_space
from spaces.parameters import Choice, Hyperparameters, LogUniform, RandInt, Uniform


def space_of(sampler: str = "curves", trials: int = 24, seed: int = 0) -> Space:
    options = ("training.max_epochs=9", "search.grace_epochs=3", f"search.sampler={sampler}", f"search.trials={trials}")
    return load_space("quickstart", (*options, f"search.seed={seed}", "confirm.top=0"))


def begun(space: Space) -> SearchState:
    return SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))


def end_of(config: Hyperparameters) -> float:
    return 0.9 - 0.2 * float(np.log10(config.lr / 0.02)) ** 2 - 0.3 * abs(config.momentum - 0.8)


def accuracy_after(config: Hyperparameters, epoch: int) -> float:
    return max(0.1, end_of(config) * float(1 - np.exp(-epoch / 3)))


def finish(state: SearchState, accuracy: Callable[[Hyperparameters, int], float] = accuracy_after) -> History:
    """Train all trials of a search one after the other."""
    while assignment := state.next_assignment():
        epoch = assignment.n_epochs_known + 1
        while state.record(_result(assignment.number, epoch, accuracy(assignment.config, epoch))):
            epoch += 1
    return state.history


def _result(trial: int, epoch: int, accuracy: float) -> EpochDone:
    loss = float("nan") if accuracy == 0 else 1 - accuracy
    return EpochDone(trial, epoch, 0.1, loss, accuracy, loss, accuracy, 1.0, 0.1, 0.0)


def test_unit_cube_is_inverted_and_covers_whole_numbers_and_choices_evenly() -> None:
    searched = {
        "lr": LogUniform(0.01, 1.0),
        "momentum": Uniform(0.5, 0.9),
        "step_size": RandInt(1, 4),
        "batch_size": Choice((32, 64, 128)),
    }
    places = np.random.default_rng(0).random((3000, 4))
    values = [from_unit(searched, place) for place in places]
    for found in values[:50]:
        assert from_unit(searched, to_unit(searched, found)) == pytest.approx(found)
        assert all(searched[name].contains(value) for name, value in found.items())
    for name in ("step_size", "batch_size"):
        _, counts = np.unique([found[name] for found in values], return_counts=True)
        assert counts.min() > 0.8 * counts.max()
    assert np.median([found["lr"] for found in values]) == pytest.approx(0.1, rel=0.15)


def test_expected_improvement_is_the_integral() -> None:
    for mean, deviation in ((0.0, 1.0), (1.5, 0.3), (0.2, 0.5)):
        integral, _ = quad(lambda x: max(x - 1, 0) * norm.pdf(x, mean, deviation), -8, 8, points=[1.0])  # noqa: B023
        found = expected_improvement(np.array([mean]), np.array([deviation]), 1.0)[0]
        assert found == pytest.approx(integral, abs=1e-7)


def test_proposals_find_better_ends_than_random_ones_in_equal_epochs() -> None:
    found = {
        sampler: [max(map(end_of, _configs(finish(begun(space_of(sampler, seed=seed)))))) for seed in range(3)]
        for sampler in ("curves", "random")
    }
    assert np.mean(found["curves"]) > np.mean(found["random"])
    assert min(found["curves"]) > 0.88


def _configs(history: History) -> list[Hyperparameters]:
    return [trial.config for trial in history.trials.values()]


def test_same_history_gives_the_same_proposal_also_to_another_process_after_a_resume() -> None:
    space = space_of()
    whole = finish(begun(space))
    half = begun(space_of(trials=16))
    finish(half)
    resumed = finish(SearchState(space, half.history))
    assert [trial.suggested for trial in resumed.trials.values()] == [
        trial.suggested for trial in whole.trials.values()
    ]


def test_first_proposals_are_random_and_so_is_one_in_five_later() -> None:
    space = space_of()
    history = finish(begun(space_of(trials=2)))
    assert all(is_random(space, history, number) for number in range(space.search.startup_trials))
    assert 160 <= sum(is_random(space, history, number) for number in range(10, 1010)) <= 240
    assert proposal(space, History(), 30) is None


def test_workers_get_different_configurations() -> None:
    space = space_of(trials=20)
    state = SearchState(space, finish(begun(space_of(trials=12))))
    given = [state.next_assignment() for _ in range(8)]
    places = np.array([to_unit(space.searched, found.config.as_dict()) for found in given if found])
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(8, 1)]
    assert apart.min() > 0.05


def test_what_a_rung_refused_is_not_proposed_again() -> None:
    def late(config: Hyperparameters, epoch: int) -> float:
        """The better the end, the worse the first epochs."""
        end = end_of(config)
        early = 0.5 * max(0.0, end - 0.6) if epoch < 3 else 0.0
        return max(0.1, 0.3 + (end - 0.3) * float(1 - np.exp(-epoch / 2)) - early)

    options = (
        "search.asha=stop",
        "search.grace_epochs=1",
        "search.sampler=curves",
        "search.trials=100",
        "confirm.top=0",
    )
    space = load_space("quickstart", ("training.max_epochs=9", *options))
    trials = finish(begun(space), late).trials
    places = [to_unit(space.searched, trial.config.as_dict()) for trial in trials.values()]
    stopped = [number for number, trial in trials.items() if trial.status == "stopped"]
    proposed = [number for number, trial in trials.items() if trial.proposed_by == "sampler"]
    nearest = [min(np.linalg.norm(places[n] - places[m]) for m in stopped if m < n) for n in proposed]
    assert len(nearest) > 25
    assert np.mean(np.array(nearest) < 0.15) < 0.05


def test_region_of_diverged_trials_is_avoided() -> None:
    def diverges_above(config: Hyperparameters, epoch: int) -> float:
        return 0.0 if config.lr > 0.05 else accuracy_after(config, epoch)

    history = finish(begun(space_of(trials=40)), diverges_above)
    share = np.mean([trial.config.lr > 0.05 for trial in history.trials.values() if trial.number >= 10])
    at_random = np.mean([trial.config.lr > 0.05 for trial in history.trials.values() if 0 < trial.number < 10])
    assert share < at_random


def test_tpe_proposes_every_other_trial_that_is_not_random() -> None:
    trials = finish(begun(space_of(trials=40))).trials
    by = {number: trial.proposed_by for number, trial in trials.items() if number >= 10}
    assert {source for number, source in by.items() if number % 2 == 0} == {"tpe", "prior"}
    assert {source for number, source in by.items() if number % 2} == {"sampler", "prior"}
