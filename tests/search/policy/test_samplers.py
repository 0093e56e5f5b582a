import pytest

from search.experiment.history import History
from search.policy.state import SearchState
from search.policy.study import Proposer
from spaces import Space, load_space
from spaces.loader import space_from_text
from tests.support.simulation import simulate

SAMPLERS = ["random", "tpe", "gp"]


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["search.trials=20", "confirm.top=0", *overrides])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_baseline_comes_first_and_the_same_history_gives_the_same_proposals(sampler: str) -> None:
    chosen = [f"search.sampler={sampler}", "search.startup_trials=5"]
    space = space_with(*chosen)
    state = SearchState(space, History())
    # The first few are the start's, the last few the sampler's own.
    for n_results in (4, 40):
        simulate(state, max_results=n_results)
        number = len(state.history.trials)
        afresh = [Proposer(space, state.history).propose(number) for _ in range(2)]
        assert afresh[0] == afresh[1]
    assert number > 5
    assert state._proposer.propose(number) == afresh[0]
    trials = list(state.history.trials.values())
    assert trials[0].config == space.baseline
    assert [trial.baseline for trial in trials].count(True) == 1
    assert len({trial.config for trial in trials}) == len(trials)

    other = space_with(*chosen, "search.seed=1")
    first, second = Proposer(space, History()), Proposer(other, History())
    assert (
        first.propose(0, space.baseline) == second.propose(0, space.baseline) == space.searched_values(space.baseline)
    )
    assert first.propose(1) != second.propose(1)


GP = """
dataset: {name: digits}
training: {max_epochs: 1}
search: {trials: 9, sampler: gp, startup_trials: 4, asha: "off"}
space: {lr: {loguniform: [0.002, 0.5]}, flip_p: {uniform: [0.0, 0.5]}}
baseline: {lr: 0.3, flip_p: 0.4}
"""


@pytest.mark.filterwarnings("error")
def test_gp_learns_from_what_completed_and_repeats_its_proposal() -> None:
    space = space_from_text(GP, "gp.yaml", "gp")
    state = SearchState(space, History())
    simulate(state, trials_at_once=1, max_results=6)
    *trials, last = state.history.trials.values()
    accuracies = [trial.epochs[-1].validation_accuracy for trial in trials]
    assert max(accuracies[4:]) > max(accuracies[:4])
    del state.history.trials[last.number]
    assert Proposer(space, state.history).propose(last.number) == last.suggested
