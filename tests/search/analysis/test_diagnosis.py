"""What a diagnosis says of searches whose truth is known: learning curves made up from it."""

import json
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

import numpy as np
import pytest
from optuna.samplers import RandomSampler

from search.analysis.diagnosis import diagnose, failures, flatness
from search.analysis.findings import Finding
from search.analysis.importance import importance_at
from search.analysis.rung_statistics import expected_losses, first_refusals, rung_correlations, spearman
from search.analysis.space_findings import crowded_edges, divergences, edges, importances, widened
from search.analysis.stopping_findings import rank_correlation, savings, would_be_winners
from search.diagnose import findings_text
from search.experiment.audits import is_audit
from search.experiment.events import ReplicateEnded, ReplicateStarted, SpaceSet, TrialEnded, TrialStarted
from search.experiment.history import History
from search.policy.replicate_statistics import run_sd
from search.policy.state import SearchState
from spaces import Hyperparameters, Space, load_space
from spaces.parameters import LogUniform, RandInt, Uniform
from tests.support.simulation import Curve, result, run_result, simulate

RUNGS = (1, 3, 9)


@pytest.fixture(autouse=True)
def _random_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curve here depends on what is proposed, and TPE would take most of the time."""
    monkeypatch.setattr("search.policy.study.sampler_for", lambda space, number: RandomSampler(seed=number))


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["search.trials=40", *overrides])


def searched(space: Space, curve: Curve, seed: int = 0) -> History:
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
    simulate(state, seed, trials_at_once=1, curve=curve)
    return state.history


def normal_curves(seed: int, at_1: float, at_3: float, n_trials: int = 40) -> tuple[Curve, np.ndarray]:
    """Curves whose values at epochs 1 and 3 have these normal correlations with the end.

    Returns:
        The curves, and the (n_trials,) values at the end that trials have if nothing stops them.
    """
    noise = np.random.default_rng(seed).standard_normal((3, n_trials))
    ends = noise[2]
    third = at_3 * ends + math.sqrt(1 - at_3**2) * noise[1]
    share = at_1 / at_3 if at_3 else 0.0
    first = share * third + math.sqrt(1 - share**2) * noise[0]
    to_accuracy = NormalDist().cdf

    def curve(trial: int, config: Hyperparameters, epoch: int) -> float:
        return to_accuracy(float((first if epoch < 3 else third if epoch < 9 else ends)[trial]))

    return curve, np.array([to_accuracy(float(end)) for end in ends])


def made(space: Space, *trials: tuple[str, Sequence[float], dict[str, float]]) -> History:
    """Trials with a status, their accuracy after each epoch, and what differs from the baseline's configuration."""
    found = History([SpaceSet(space.as_dict(), [], 0.0)])
    for number, (status, accuracies, values) in enumerate(trials):
        config = Hyperparameters.from_mapping({**space.baseline.as_dict(), **values})
        found.apply(TrialStarted(number, {}, config, number == 0, 0.0))
        for epoch, value in enumerate(accuracies, 1):
            loss = math.nan if status == "diverged" and epoch == len(accuracies) else 1.0
            found.apply(result(number, epoch, value, loss))
        if status != "running":
            found.apply(TrialEnded(number, status, "why", 1.0))  # type: ignore[arg-type]
    return found


# Rungs and the end


def test_ranks_that_never_change_give_a_correlation_of_one_and_lose_nothing() -> None:
    space = space_with("search.audit_fraction=0.3")
    history = searched(space, lambda trial, config, epoch: (trial * 17 % 40) / 40)
    finding = rank_correlation(history, space)
    assert [found["value"] for found in finding.numbers["audit"]] == pytest.approx([1, 1])
    assert all(found["low"] > 0.6 for found in finding.numbers["audit"])
    lost = would_be_winners(history, space)
    assert lost.verdict == "fine"
    assert lost.numbers["n_winners"] == lost.numbers["chance"] == 0
    assert lost.numbers["n_audit_refused_winners"] == 0


def test_curves_that_cross_give_a_low_correlation_and_a_later_rung_is_advised() -> None:
    space = space_with("search.audit_fraction=0.5")
    curve, _ = normal_curves(seed=3, at_1=0.0, at_3=0.99)
    history = searched(space, curve)
    first, third = rank_correlation(history, space).numbers["audit"]
    assert first["low"] < 0 < first["high"]
    assert third["value"] > 0.9
    lost = would_be_winners(history, space)
    assert lost.verdict == "change"
    assert lost.numbers["chance"] > 0.3 > lost.numbers["chance_with_next_grace"]
    assert lost.advice.startswith("Raise search.grace_epochs to 3: the chance is ")


def test_explored_trials_give_the_truth_where_survivors_are_biased() -> None:
    space = space_with("search.audit_fraction=0.5", "search.trials=60")
    truths = []
    values: dict[str, list[float]] = {"audit": [], "survivors": []}
    for seed in range(24):
        curve, ends = normal_curves(seed, at_1=0.6, at_3=0.9, n_trials=60)
        truths.append(spearman(np.array([curve(trial, space.baseline, 1) for trial in range(60)]), ends))
        numbers = rank_correlation(searched(space, curve, seed), space).numbers
        for group, found in values.items():
            found += [correlation["value"] for correlation in numbers[group] if correlation["epoch"] == 1]
    # So many searches of 30 audit trials leave a standard error of 0.03.
    assert fmean(values["audit"]) == pytest.approx(fmean(truths), abs=0.08)
    assert fmean(values["survivors"]) < fmean(truths) - 0.1


def test_the_interval_holds_the_truth_about_19_times_in_20() -> None:
    generator = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.8 / 2)
    space = space_with()
    n_held = 0
    for _ in range(200):
        ends = generator.standard_normal(10)
        firsts = 0.8 * ends + 0.6 * generator.standard_normal(10)
        curves = [[first] * 8 + [end] for first, end in zip(firsts, ends, strict=True)]
        history = made(space, *[("completed", [float(value) for value in curve], {}) for curve in curves])
        found = rung_correlations(list(history.trials.values()), RUNGS)[0]
        n_held += found.low <= truth <= found.high
    assert 180 <= n_held <= 198


def test_few_or_tied_trials_have_no_correlation() -> None:
    space = space_with()
    curve = [0.1] * 9
    trials = list(made(space, *[("completed", curve, {})] * 4).trials.values())
    assert rung_correlations(trials, RUNGS) == []
    trials = list(made(space, *[("completed", [*curve[:8], 0.1 * n], {}) for n in range(6)]).trials.values())
    assert rung_correlations(trials, RUNGS) == [], "tied at both rungs"


def test_expected_losses_run_from_none_to_those_of_drawing_lots() -> None:
    nothing = expected_losses(40, RUNGS, 3, [1.0, 1.0], 0.0)
    assert (nothing.n_winners, nothing.chance) == (0, 0)
    lots = expected_losses(40, RUNGS, 3, [0.0, 0.0], 0.0)
    # Drawing lots keeps a trial in some six; the best of the others is above the best of these as often.
    assert 0.7 < lots.chance < 0.9
    assert lots.n_winners > 3
    some, explored = (expected_losses(40, RUNGS, 3, [0.6, 0.9], explore) for explore in (0.0, 0.5))
    assert 0 < explored.chance < some.chance < lots.chance
    assert expected_losses(40, RUNGS, 3, [0.6, 0.9], 0.0) == some, "the same every time"


def test_expected_losses_are_those_of_real_searches() -> None:
    space = space_with()
    n_winners, best_stopped = [], []
    for seed in range(30):
        curve, ends = normal_curves(seed, at_1=0.5, at_3=0.8)
        trials = searched(space, curve, seed).trials.values()
        stopped = np.array([trial.status == "stopped" for trial in trials])
        n_winners.append(int((ends[stopped] > ends[~stopped].max()).sum()))
        best_stopped.append(bool(stopped[ends.argmax()]))
    spearman = [6 / math.pi * math.asin(r / 2) for r in (0.5, 0.8)]
    expected = expected_losses(40, RUNGS, 3, spearman, 0.0)
    error = np.std(n_winners, ddof=1) / math.sqrt(len(n_winners))
    assert fmean(n_winners) == pytest.approx(expected.n_winners, abs=3 * error)
    assert fmean(best_stopped) == pytest.approx(expected.chance, abs=0.25)


def test_a_refused_explored_trial_that_ends_above_the_rest_is_seen() -> None:
    space = space_with("search.audit_fraction=0.5", "search.trials=12", "confirm.top=0")
    late = next(number for number in range(2, 12) if is_audit(number, space.search.seed, 0.5))

    def curve(trial: int, config: Hyperparameters, epoch: int) -> float:
        if trial == late:
            return 0.95 if epoch == 9 else 0.1
        return 0.5 + trial / 1000  # each better than those before it, so that rungs refuse none

    history = searched(space, curve)
    assert first_refusals(history, RUNGS, 3)[late] == 1
    lost = would_be_winners(history, space)
    assert lost.numbers["n_audit_refused_winners"] == 1
    assert lost.numbers["n_audit_refused"] == 1


def test_a_refused_explored_trial_whose_replicates_are_worse_is_no_winner() -> None:
    space = space_with("search.audit_fraction=0.5", "search.trials=12", "confirm.top=0")
    late = next(number for number in range(2, 12) if is_audit(number, space.search.seed, 0.5))
    history = searched(
        space, lambda trial, config, epoch: (0.95 if epoch == 9 else 0.1) if trial == late else 0.5 + trial / 1000
    )
    with_replicates(history, {late: [0.4, 0.42], 11: [0.5, 0.52]})
    assert would_be_winners(history, space).numbers["n_audit_refused_winners"] == 0


def with_replicates(history: History, accuracies: dict[int, list[float]]) -> History:
    """Replicates of trials, with their accuracies in blocks 1, 2 …"""
    for trial, values in accuracies.items():
        for block, value in enumerate(values, 1):
            number = len(history.replicates)
            history.apply(ReplicateStarted(number, trial, block, 1.0))
            history.apply(run_result(number, 1, value))
            history.apply(ReplicateEnded(number, "completed", "", 2.0))
    return history


def test_without_exploration_survivors_stand_in_and_it_is_said() -> None:
    space = space_with("search.trials=60")
    curve, _ = normal_curves(1, at_1=0.5, at_3=0.8, n_trials=60)
    history = searched(space, curve)
    correlation, lost = rank_correlation(history, space), would_be_winners(history, space)
    assert correlation.verdict == "unknown"
    assert "others that got there (biased: stopping leaves trials alike" in correlation.sentence
    assert correlation.advice.startswith("To measure it without bias: search.audit_fraction: 0.1, about ")
    assert lost.numbers["from"] == "survivors"
    assert "rather too many, for the correlation is that of survivors" in lost.sentence


def test_savings_are_what_stopped_trials_did_not_train_and_exploring_gave_back() -> None:
    space = space_with("search.audit_fraction=0.3")
    history = searched(space, lambda trial, config, epoch: 0.9 - trial / 50)
    numbers = savings(history, space).numbers
    audits = [trial for trial in history.trials.values() if trial.audit]
    n_stopped = 39 - len(audits)
    assert numbers["trained"] == history.n_epochs == 9 * (1 + len(audits)) + n_stopped
    assert numbers["saved"] == 8 * n_stopped
    assert numbers["spent_on_audits"] == 8 * len(audits)


# The space


def configs(name: str, *values: float) -> list[Hyperparameters]:
    return [Hyperparameters.from_mapping({name: value}) for value in values]


@pytest.mark.parametrize(
    ("name", "values", "upper"),
    [
        ("lr", (0.5, 0.45, 0.48, 0.4, 0.01), True),
        ("lr", (0.0021, 0.0022, 0.002, 0.0025, 0.0021), False),
        ("momentum", (0.98, 0.97, 0.975, 0.979, 0.6), True),
        ("gamma", (0.1, 0.11, 0.12, 0.1, 0.1), False),
    ],
)
def test_values_that_crowd_at_an_end_are_found(name: str, values: tuple[float, ...], upper: bool) -> None:
    near = [edge for edge in crowded_edges(configs(name, *values), space_with()) if edge.name == name]
    assert [edge.upper for edge in near] == [upper]
    assert near[0].n_near >= 4
    assert near[0].chance < 0.001
    assert near[0].wider != space_with().searched[name]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", (0.5, 0.45, 0.1, 0.05, 0.01)),  # two of five come by chance
        ("lr", (0.3, 0.3, 0.35, 0.28, 0.32)),  # near in lr itself, not in its logarithm
        ("flip_p", (0.0, 0.0, 0.001, 0.0, 0.0)),  # nothing lies below a probability of 0
        ("flip_p", (0.5, 0.5, 0.5, 0.5, 0.5)),  # more flips than that are fewer
        ("gamma", (1.0, 1.0, 1.0, 1.0, 1.0)),
        ("step_size", (9, 9, 9, 9, 9)),  # never, within a trial
        ("step_size", (1, 1, 1, 1, 1)),
        ("shift_scale_rotate_p", (1.0, 1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_chance_and_natural_limits_are_no_findings(name: str, values: tuple[float, ...]) -> None:
    others = {"lr": 0.05, "coarse_dropout_p": 0.2}
    best = [Hyperparameters.from_mapping({**others, name: value}) for value in values]
    assert [edge for edge in crowded_edges(best, space_with()) if edge.name == name] == []


def test_whole_numbers_have_whole_edges() -> None:
    space = space_with("space.batch_size={randint: [8, 107]}", "baseline.batch_size=16")
    assert [edge.name for edge in crowded_edges(configs("batch_size", 107, 104, 103, 105, 60), space)] == ["batch_size"]
    assert crowded_edges(configs("batch_size", 102, 102, 102, 105, 60), space) == []


def test_edges_are_seldom_found_where_nothing_matters() -> None:
    space = space_with()
    generator = np.random.default_rng(0)
    n_found = 0
    for _ in range(400):
        drawn = generator.random((5, 4))
        best = [
            Hyperparameters(
                lr=0.002 * 250**lr, momentum=0.5 + 0.48 * momentum, gamma=0.1 + 0.9 * gamma, coarse_dropout_p=hole / 2
            )
            for lr, momentum, gamma, hole in drawn
        ]
        n_found += bool(crowded_edges(best, space))
    assert n_found <= 400 * 0.05


@pytest.mark.parametrize(
    ("name", "parameter", "upper", "wider"),
    [
        ("lr", LogUniform(0.002, 0.5), True, LogUniform(0.002, 2.0)),
        ("lr", LogUniform(0.002, 0.5), False, LogUniform(0.0005, 0.5)),
        ("lr", LogUniform(0.1, 9.0), True, LogUniform(0.1, 10)),
        ("lr", Uniform(0.01, 0.5), False, Uniform(0.005, 0.5)),
        ("momentum", Uniform(0.5, 0.98), True, Uniform(0.5, 0.99)),
        ("coarse_dropout_p", Uniform(0.0, 0.5), True, Uniform(0.0, 0.62)),
        ("step_size", RandInt(2, 5), True, RandInt(2, 6)),
        ("step_size", RandInt(2, 5), False, RandInt(1, 5)),
    ],
)
def test_a_range_is_widened_within_what_is_allowed(name, parameter, upper, wider) -> None:  # type: ignore[no-untyped-def]
    found = widened(name, parameter, upper)
    assert found == type(wider)(pytest.approx(wider.low), pytest.approx(wider.high))


def test_an_edge_is_said_with_its_numbers_and_the_range_to_take() -> None:
    space = space_with()
    trials = [("completed", [0.5 + lr] * 9, {"lr": lr}) for lr in (0.01, 0.02, 0.03, 0.1, 0.2, 0.42, 0.44, 0.46, 0.5)]
    history = made(space, *trials, ("completed", [0.4] * 9, {"lr": 0.05}))
    finding = edges(history, space)
    assert finding.verdict == "change"
    assert finding.sentence.startswith(
        "lr: 4 of the best 5 trials lie within 5% of the upper end 0.5 (by chance in 1 of "
    )
    assert finding.advice == "Widen: `lr: {loguniform: [0.002, 2]}`."
    json.dumps(finding.as_dict(), allow_nan=False)


def test_importance_finds_the_one_parameter_that_matters_and_nothing_in_noise() -> None:
    space = space_with()
    generator = np.random.default_rng(1)
    drawn = [
        {"lr": float(0.002 * 250 ** generator.random()), "momentum": float(generator.uniform(0.5, 0.98))}
        for _ in range(60)
    ]
    noise = generator.standard_normal(60) / 50
    mattering = [0.8 - abs(math.log10(v["lr"] / 0.02)) / 3 + float(n) for v, n in zip(drawn, noise, strict=True)]
    history = made(space, *[("stopped", [value], values) for value, values in zip(mattering, drawn, strict=True)])
    found = importance_at(1, history.counting, space)
    assert found is not None
    assert list(found.found) == ["lr"]
    assert found.shares["lr"] > 0.6
    finding = importances(history, space)
    assert finding.verdict == "fine"
    assert finding.sentence.startswith("In the accuracy of all 60 trials after epoch 1: lr ")
    assert "(fewer than 70 trials for 7 parameters can show little)." in finding.sentence

    pure = made(space, *[("stopped", [0.5 + float(n)], values) for n, values in zip(noise, drawn, strict=True)])
    assert importances(pure, space).sentence.startswith("Nothing stands out in the accuracy of all 60 trials")


def test_a_small_learning_rate_counts_as_much_as_a_large_one() -> None:
    """Optuna's evaluator weighs a loguniform range linearly: all that happens below 0.05 would be a tenth of it."""
    space = space_with()
    generator = np.random.default_rng(2)
    drawn = [
        {"lr": float(0.002 * 250 ** generator.random()), "momentum": float(generator.uniform(0.5, 0.98))}
        for _ in range(80)
    ]
    values = [0.9 if v["lr"] > 0.02 else 0.2 + 0.1 * v["momentum"] for v in drawn]
    history = made(space, *[("stopped", [value], v) for value, v in zip(values, drawn, strict=True)])
    found = importance_at(1, history.counting, space)
    assert found is not None
    assert found.shares["lr"] > 0.9


def test_importance_needs_trials_parameters_and_differences() -> None:
    space = space_with()
    assert importance_at(1, made(space, *[("stopped", [0.1 * n], {}) for n in range(9)]).counting, space) is None
    assert importance_at(1, made(space, *[("stopped", [0.1], {})] * 30).counting, space) is None
    fixed = [f"space.{name}={getattr(space.baseline, name)}" for name in space.searched if name != "lr"]
    only_lr = load_space("quickstart", fixed)
    assert list(only_lr.searched) == ["lr"]
    history = made(only_lr, *[("stopped", [0.03 * n], {}) for n in range(30)])
    assert "cannot be told from one parameter" in importances(history, only_lr).sentence


def test_a_diverged_trial_counts_as_the_worst_that_did_not() -> None:
    space = space_with()
    drawn = np.random.default_rng(3).uniform(0.01, 0.5, 40)
    good = [("stopped", [0.5 + 0.001 * n], {"lr": float(lr)}) for n, lr in enumerate(drawn) if lr <= 0.3]
    bad = [("diverged", [0.99], {"lr": float(lr)}) for lr in drawn if lr > 0.3]
    later = [("diverged", [0.5, 0.1], {"lr": 0.05})]
    as_worst = [("stopped", [0.5], values) for _, _, values in [*bad, *later]]
    found, expected = (
        importance_at(1, made(space, *good, *rest).counting, space) for rest in ([*bad, *later], as_worst)
    )
    assert found == expected
    assert found is not None
    assert found.n == 41


def test_divergence_is_laid_to_the_learning_rates_that_part_it() -> None:
    space = space_with()
    good = [("stopped", [0.5], {"lr": lr}) for lr in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.4)]
    bad = [("diverged", [0.1], {"lr": lr}) for lr in (0.25, 0.3, 0.45)]
    finding = divergences(made(space, *good, *bad), space)
    assert finding.verdict == "change"
    assert finding.sentence == "3 of 10 trials (30%) diverged."
    assert finding.advice == (
        "Lower the upper end of lr to 0.2: 3 of the diverged lie above it, and 1 of the 7 others."
    )
    anywhere = [("diverged", [0.1], {"lr": lr}) for lr in (0.01, 0.1, 0.3)]
    assert divergences(made(space, *good, *anywhere), space).advice == "Lower the upper end of lr and momentum."
    assert divergences(made(space, *good * 3, bad[0]), space).verdict == "fine", "one in twenty"


def test_failures_send_to_their_reasons() -> None:
    space = space_with()
    finding = failures(made(space, ("completed", [0.5] * 9, {}), ("failed", [], {})))
    assert finding.sentence == "1 of 2 trials (50%) failed."
    assert "search.leaderboard" in finding.advice


# The course


def with_ends(*ends: float) -> History:
    return made(space_with(), *[("completed", [0.1] * 8 + [end], {}) for end in ends])


def test_a_search_that_gained_nothing_in_its_last_third_has_flattened() -> None:
    flat = flatness(with_ends(*[0.5, 0.7, 0.9] * 4), None)
    assert flat.numbers["gained"] == 0
    assert "it has flattened" in flat.sentence
    rising = flatness(with_ends(*[0.05 * n for n in range(12)]), None)
    assert rising.verdict == "change"
    assert rising.numbers["before"] == pytest.approx(0.35)
    assert rising.numbers["now"] == pytest.approx(0.55)
    assert rising.sentence == (
        "The last third of the 108 epochs brought the best from 35.00% to 55.00%: it still improves."
    )


def test_a_gain_within_the_noise_of_a_run_is_none() -> None:
    history = with_ends(*[0.8] * 11, 0.81)
    assert "it still improves" in flatness(history, None).sentence
    assert "standard error of 288 images: 2.31 points): it has flattened" in flatness(history, 288).sentence
    again = with_replicates(history, {11: [0.816, 0.824, 0.816, 0.824]})
    assert "over replicates: 0.46 points): it still improves" in flatness(again, 288).sentence


def test_a_best_run_that_replicates_do_not_bear_out_is_no_reason_for_more_trials() -> None:
    history = with_ends(*[0.3] * 7, 0.40, *[0.3] * 2, 0.5444, 0.3)
    assert flatness(history, 288).verdict == "change"
    flat = flatness(with_replicates(history, {10: [0.33, 0.36, 0.39], 7: [0.34, 0.37, 0.38], 0: [0.3, 0.3, 0.3]}), 288)
    assert flat.verdict == "fine"
    assert "from 36.00% ± " not in flat.sentence, "trial 7, the best by its replicates, was there before"
    assert flat.numbers["gained"] == 0
    assert "More trials may bring more" not in flat.advice


def test_a_gain_in_replicates_must_be_clear_of_its_interval() -> None:
    ends = [*[0.3] * 7, 0.40, *[0.3] * 2, 0.5444, 0.3]
    noisy = flatness(with_replicates(with_ends(*ends), {10: [0.33, 0.45, 0.42], 7: [0.34, 0.37, 0.38]}), 288)
    assert noisy.verdict == "fine"
    assert "half of the difference's 95 % interval" in noisy.sentence
    clear = flatness(with_replicates(with_ends(*ends), {10: [0.53, 0.54, 0.55], 7: [0.34, 0.37, 0.38]}), 288)
    assert clear.verdict == "change"
    assert clear.numbers["gained"] == pytest.approx(0.54 - 1.09 / 3)


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ({10: [0.35, 0.36]}, "best before the last third of the epochs, 40.00%, but was not trained again"),
        ({7: [0.35, 0.36]}, "trial 10, the best of the search with 54.44%, was not trained again"),
        ({10: [0.5], 7: [0.4]}, "trials 10 and 7 have too few replicates"),
    ],
)
def test_whether_a_search_improves_is_open_where_replicates_leave_it_open(
    runs: dict[int, list[float]], why: str
) -> None:
    flat = flatness(with_replicates(with_ends(*[0.3] * 7, 0.40, *[0.3] * 2, 0.5444, 0.3), runs), 288)
    assert flat.verdict == "unknown"
    assert why in flat.sentence
    assert flat.advice == ""


def test_where_the_best_is_at_chance_nothing_was_learned_and_nothing_else_is_compared() -> None:
    space = space_with()
    history = made(space, *[("completed", [0.74] * 9, {"lr": 0.01 * (n + 1)}) for n in range(12)])
    findings = {finding.name: finding for finding in diagnose(history, space, 50, chance=0.842)}
    assert findings["learning"].verdict == "change"
    assert "nothing was learned: 12 of 12 trials are at chance (at most 84.20%" in findings["learning"].sentence
    assert findings["learning"].numbers == {"n": 12, "n_at_chance": 12, "chance": 0.842}
    assert findings.keys() == {"learning", "divergences", "failures", "savings"}
    ends = [0.74] * 10 + [0.85, 0.9]
    history = made(space, *[("completed", [end] * 9, {"lr": 0.01 * (n + 1)}) for n, end in enumerate(ends)])
    learned = {finding.name: finding for finding in diagnose(history, space, 50, chance=0.842)}
    assert learned["learning"].verdict == "fine"
    assert learned["learning"].sentence.startswith("10 of 12 trials are at chance")
    assert "edges" in learned


def test_replicates_that_diverged_are_said() -> None:
    history = with_replicates(with_ends(*[0.5, 0.7]), {1: [0.7]})
    history.apply(ReplicateStarted(1, 1, 2, 1.0))
    history.apply(run_result(1, 1, 0.1, loss=math.nan))
    history.apply(ReplicateEnded(1, "diverged", "", 2.0))
    assert divergences(history, space_with()).sentence == "Of 2 trials, none diverged; of 2 replicates, 1 diverged."


def test_the_noise_is_that_of_replicates_where_there_are_any() -> None:
    space = space_with("search.trials=14")
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
    simulate(state, 0, curve=_rising, replicate_curve=lambda trial, block, epoch: 0.5 + trial / 1000 + block / 100)
    n_blocks = max(run.block for run in state.history.replicates.values())
    assert n_blocks > 1
    assert run_sd(state.history, 0.5) == pytest.approx(0.01 * np.std(range(n_blocks), ddof=1), rel=0.3)
    flat = flatness(with_replicates(with_ends(*[0.8] * 11, 0.81), {11: [0.82, 0.84]}), 288)
    assert flat.numbers["noise"] == pytest.approx(np.std([0.82, 0.84], ddof=1))
    assert flat.numbers["noise_is"] == "a configuration's standard deviation over replicates"
    assert run_sd(with_ends(0.5, 0.6), 0.6) is None


# All of it


@pytest.mark.parametrize("n_results", [0, 1, 5, 12, 30])
def test_a_search_that_has_hardly_begun_says_what_cannot_be_told(n_results: int) -> None:
    space = space_with()
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
    simulate(state, seed=0, max_results=n_results)
    findings = diagnose(state.history, space, 288)
    assert len({finding.name for finding in findings}) == len(findings) == 9
    unknown = {finding.name for finding in findings if finding.verdict == "unknown"}
    assert {"rank_correlation", "would_be_winners", "flatness"} <= unknown
    assert all(finding.sentence.endswith(".") for finding in findings)
    json.dumps([finding.as_dict() for finding in findings], allow_nan=False)


def test_trials_that_are_set_aside_do_not_count() -> None:
    space = space_with("search.audit_fraction=0.3")
    curve, _ = normal_curves(5, at_1=0.5, at_3=0.8)
    history = searched(space, curve)
    history.apply(SpaceSet(space.as_dict(), list(history.trials), 1.0))
    assert diagnose(history, space) == diagnose(made(space), space)


def test_a_space_file_that_was_edited_since_is_no_trap() -> None:
    space = space_with()
    history = made(space, *[("completed", [0.1 * n] * 9, {"lr": 0.01 * (n + 1)}) for n in range(8)] * 2)
    edited = space_with("training.max_epochs=27", "space.lr={loguniform: [0.02, 0.5]}", "baseline.lr=0.03")
    findings = {finding.name: finding for finding in diagnose(history, edited, 288)}
    assert "from 0 trials that went all the way" in findings["would_be_winners"].sentence
    assert findings["edges"].numbers["n"] == 14
    json.dumps([finding.as_dict() for finding in findings.values()], allow_nan=False)
    shorter = space_with("training.max_epochs=3")
    assert {f.name: f for f in diagnose(history, shorter, -1)}["savings"].numbers["saved"] == 0


def test_a_space_without_rungs_loses_nothing() -> None:
    space = space_with("search.grace_epochs=9")
    history = made(space, *[("completed", [0.1 * n] * 9, {}) for n in range(8)])
    assert "no trial is stopped" in rank_correlation(history, space).sentence
    assert would_be_winners(history, space).verdict == "fine"


def test_findings_are_in_order_of_use_and_wrapped_to_a_terminal() -> None:
    findings = [
        Finding("edges", "change", "One two three four five.", "Widen it.", {}),
        Finding("savings", "fine", "Saved.", "", {}),
    ]
    assert findings_text(findings, None) == (
        "\nTo change:\n- One two three four five. Widen it.\n\nFine as it is:\n- Saved."
    )
    wrapped = findings_text(findings, 20).splitlines()
    assert max(map(len, wrapped)) <= 20
    assert "  five. Widen it." in wrapped
    space = space_with("search.trials=14")
    order = [finding.verdict for finding in diagnose(searched(space, _rising), space)]
    assert order == sorted(order, key=("change", "fine", "unknown").index)


def _rising(trial: int, config: Hyperparameters, epoch: int) -> float:
    return min(0.99, 0.02 * trial + 0.01 * epoch)
