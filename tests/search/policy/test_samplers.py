import sys

import pytest

from search.experiment.history import History
from search.policy.state import SearchState
from search.policy.study import Proposer
from spaces import InputError, Space, load_space
from tests.support.simulation import simulate

SAMPLERS = ["random", "tpe", "gp"]


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["search.trials=20", "confirm.top=0", *overrides])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_history_gives_the_same_proposals(sampler: str) -> None:
    chosen = [f"search.sampler={sampler}", "search.startup_trials=5"]
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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_baseline_comes_first_whoever_proposes(sampler: str) -> None:
    space = space_with(f"search.sampler={sampler}")
    state = SearchState(space, History())
    simulate(state, seed=0, max_results=12)
    trials = list(state.history.trials.values())
    assert trials[0].config == space.baseline
    assert [trial.baseline for trial in trials].count(True) == 1
    assert len({trial.config for trial in trials}) == len(trials)


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
