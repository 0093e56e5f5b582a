import math
import sys

import numpy as np
import pytest
from scipy.stats import qmc

from search.records import History
from search.samplers import at_share, startup_suggestion
from search.state import SearchState
from search.study import Proposer
from spaces import InputError, Space, load_space
from spaces.parameters import Choice, LogUniform, RandInt, Uniform
from tests.search.simulation import simulate

SAMPLERS = [("random", "random"), ("tpe", "random"), ("gp", "random"), ("random", "sobol"), ("tpe", "sobol")]


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["search.trials=20", "confirm.top=0", *overrides])


@pytest.mark.parametrize(("sampler", "startup"), SAMPLERS)
def test_the_same_history_gives_the_same_proposals(sampler: str, startup: str) -> None:
    chosen = [f"search.sampler={sampler}", f"search.startup={startup}", "search.startup_trials=5"]
    space = space_with(*chosen)
    state = SearchState(space, History())
    # The first few are the start's, the last few the sampler's own.
    for n_results in (4, 40):
        simulate(state, seed=0, max_results=n_results)
        number = len(state.history.trials)
        afresh = [Proposer(space, state.history).propose(number, baseline=False) for _ in range(2)]
        assert afresh[0] == afresh[1]
        if n_results == 40:
            assert state._proposer.propose(number, baseline=False) == afresh[0]
    other = space_with(*chosen, "search.seed=1")
    assert Proposer(other, History()).propose(0, baseline=False) != Proposer(space, History()).propose(0, False)


@pytest.mark.parametrize(("sampler", "startup"), SAMPLERS)
def test_the_baseline_comes_first_whoever_proposes(sampler: str, startup: str) -> None:
    space = space_with(f"search.sampler={sampler}", f"search.startup={startup}")
    state = SearchState(space, History())
    simulate(state, seed=0, max_results=12)
    trials = list(state.history.trials.values())
    assert trials[0].config == space.baseline
    assert [trial.baseline for trial in trials].count(True) == 1
    assert len({trial.config for trial in trials}) == len(trials)


def test_the_start_is_sobol_s_sequence_on_each_parameter_s_scale() -> None:
    space = space_with("search.startup=sobol", "search.startup_trials=17")
    state = SearchState(space, History())
    while len(state.history.trials) < 17:
        assert state.next_assignment() is not None
    suggested = [state.history.trials[number].suggested for number in range(1, 17)]
    assert suggested[4] == startup_suggestion(space, 5), "each by its number alone, as after a resume"
    low, high = 0.002, 0.5
    shares = [math.log(values["lr"] / low) / math.log(high / low) for values in suggested]
    # 16 points of the sequence have one in each sixteenth of every range.
    assert sorted(int(share * 16) for share in shares) == list(range(16))
    momenta = [(values["momentum"] - 0.5) / 0.48 for values in suggested]
    assert sorted(int(share * 16) for share in momenta) == list(range(16))
    points = np.array([shares, momenta]).T
    assert qmc.discrepancy(points) < qmc.discrepancy(np.random.default_rng(0).random((16, 2))) / 2
    assert startup_suggestion(space, 17) is None
    assert startup_suggestion(space_with(), 5) is None


def test_shares_cover_a_range_evenly_and_to_its_ends() -> None:
    shares = np.linspace(0, 1, 1000, endpoint=False)
    whole = [at_share(RandInt(1, 4), share) for share in shares]
    assert {value: whole.count(value) for value in set(whole)} == {1: 250, 2: 250, 3: 250, 4: 250}
    options = [at_share(Choice((16, 32)), share) for share in shares]
    assert options.count(16) == 500
    assert at_share(LogUniform(0.01, 1.0), 0.5) == pytest.approx(0.1)
    assert (at_share(Uniform(0.1, 0.7), 0.0), at_share(Uniform(0.1, 0.7), 1.0)) == (0.1, 0.7)
    assert at_share(RandInt(1, 4), 1.0) == 4
    assert at_share(Choice((16, 32)), 1.0) == 32


def test_gp_without_torch_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="is gp, which needs PyTorch"):
        Proposer(space_with("search.sampler=gp"), History()).propose(0, baseline=True)


def test_gp_learns_from_what_completed(recwarn: pytest.WarningsRecorder) -> None:
    space = space_with("search.sampler=gp", "search.startup_trials=4", "search.asha=off", "search.trials=12")
    state = SearchState(space, History())
    simulate(state, seed=0, trials_at_once=1)
    best = {
        name: max(t.epochs[-1].validation_accuracy for t in list(state.history.trials.values())[a:b])
        for name, a, b in (("start", 1, 4), ("model", 4, 12))
    }
    assert best["model"] > best["start"]
