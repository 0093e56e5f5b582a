"""What a diagnosis says of searches whose truth is known: learning curves made up from it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import NormalDist, fmean

import numpy as np
import pytest
from optuna.samplers import RandomSampler
from scipy.stats import spearmanr

from search.analysis import importance
from search.analysis.diagnosis import diagnose, failures, flatness
from search.analysis.findings import Finding
from search.analysis.importance import importance_at
from search.analysis.rung_statistics import rung_correlations
from search.analysis.space_findings import crowded_edges, divergences, edges, importances, widened
from search.analysis.stopping_findings import rank_correlation, savings, would_be_winners
from search.diagnose import findings_text
from search.experiment.audits import is_audit
from search.experiment.events import ReplicateEnded, ReplicateStarted, SpaceSet, TrialEnded, TrialStarted
from search.experiment.history import History
from search.policy.state import SearchState
from spaces import Hyperparameters, Space, load_space
from spaces.parameters import LogUniform, RandInt, Uniform
from tests.support.simulation import Curve, result, run_result, simulate

RUNGS = (1, 3, 9)
Values = dict[str, float]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curve here depends on what is proposed; forests are small."""
    monkeypatch.setattr("search.policy.study.sampler_for", lambda space, number, name: RandomSampler(seed=number))
    for name, value in (("N_TREES", 8), ("N_TREES_SHUFFLED", 2), ("N_SHUFFLED", 9)):
        monkeypatch.setattr(importance, name, value)


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


def made(space: Space, *trials: tuple[str, Sequence[float], Values]) -> History:
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


def with_replicates(history: History, accuracies: dict[int, list[float]]) -> History:
    """Replicates of trials, with their accuracies in blocks 1, 2 …; NaN is a diverged one."""
    for trial, values in accuracies.items():
        for block, value in enumerate(values, 1):
            number = len(history.replicates)
            history.apply(ReplicateStarted(number, trial, block, 1.0))
            history.apply(run_result(number, 1, 0.1 if math.isnan(value) else value, loss=1.0 + 0 * value))
            history.apply(ReplicateEnded(number, "diverged" if math.isnan(value) else "completed", "", 2.0))
    return history


# Rungs and the end


def test_ranks_that_never_change_give_a_correlation_of_one_and_lose_nothing() -> None:
    space = space_with("search.audit_fraction=0.3")
    history = searched(space, lambda trial, config, epoch: (trial * 17 % 40) / 40)
    finding, lost = rank_correlation(history, space), would_be_winners(history, space)
    assert [found["value"] for found in finding.numbers["audit"]] == pytest.approx([1, 1])
    assert all(found["low"] > 0.6 for found in finding.numbers["audit"])
    assert finding.verdict == lost.verdict == "fine"
    assert (lost.numbers["n_audit_refused_winners"], lost.numbers["direct_n_winners_low"]) == (0, 0)
    assert " audit trials that a rung refused, none ended above the rest: of " in lost.sentence


def test_curves_that_cross_give_a_low_correlation_and_a_later_rung_is_advised() -> None:
    space = space_with("search.audit_fraction=0.5")
    curve, _ = normal_curves(seed=3, at_1=0.0, at_3=0.99)
    history = searched(space, curve)
    first, third = rank_correlation(history, space).numbers["audit"]
    assert first["low"] < 0 < first["high"]
    assert third["value"] > 0.9
    lost = would_be_winners(history, space)
    assert lost.verdict == "change"
    assert lost.numbers["direct_n_winners_low"] < lost.numbers["direct_n_winners"] <= lost.numbers["n_stopped"]
    assert lost.advice == "Raise search.grace_epochs to 3."


def test_audit_trials_give_the_truth_where_survivors_are_biased() -> None:
    space = space_with("search.audit_fraction=0.5", "search.trials=60", "confirm.top=0")
    truths = []
    values: dict[str, list[float]] = {"audit": [], "survivors": []}
    for seed in range(24):
        curve, ends = normal_curves(seed, at_1=0.6, at_3=0.9, n_trials=60)
        truths.append(spearmanr([curve(trial, space.baseline, 1) for trial in range(60)], ends).statistic)
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
    for _ in range(100):
        ends = generator.standard_normal(10)
        firsts = 0.8 * ends + 0.6 * generator.standard_normal(10)
        trials = [("completed", [float(a)] * 8 + [float(b)], Values()) for a, b in zip(firsts, ends, strict=True)]
        found = rung_correlations(list(made(space, *trials).trials.values()), RUNGS)[0]
        n_held += found.low <= truth <= found.high
    assert 90 <= n_held <= 99


@pytest.mark.parametrize("curves", [[[0.1] * 9] * 4, [[0.1] * 8 + [0.1 * n] for n in range(6)]], ids=["few", "tied"])
def test_few_or_tied_trials_have_no_correlation(curves: list[list[float]]) -> None:
    trials = made(space_with(), *[("completed", curve, {}) for curve in curves]).trials
    assert rung_correlations(list(trials.values()), RUNGS) == []


@pytest.mark.parametrize(("replicates", "n_winners"), [(False, 1), (True, 0)])
def test_a_refused_audit_trial_that_ends_above_the_rest_is_seen_unless_replicates_are_worse(
    replicates: bool, n_winners: int
) -> None:
    space = space_with("search.audit_fraction=0.5", "search.trials=12", "confirm.top=0")
    late = next(number for number in range(2, 12) if is_audit(number, space.search.seed, 0.5))
    rising = dict(enumerate([0.1, 0.1, 0.1, 0.4, 0.6, 0.8, 0.9, 0.95, 0.95], 1))
    history = searched(space, lambda trial, config, epoch: rising[epoch] if trial == late else 0.5 + trial / 1000)
    if replicates:
        with_replicates(history, {late: [0.4, 0.42], 11: [0.5, 0.52]})
    assert would_be_winners(history, space).numbers["n_audit_refused_winners"] == n_winners


def test_without_audits_survivors_stand_in_and_it_is_said() -> None:
    space = space_with("search.trials=60", "confirm.top=0")
    curve, _ = normal_curves(1, at_1=0.5, at_3=0.8, n_trials=60)
    history = searched(space, curve)
    correlation = rank_correlation(history, space)
    assert correlation.verdict == would_be_winners(history, space).verdict == "unknown"
    assert "that completed (biased: stopping leaves trials that are alike" in correlation.sentence
    assert "set search.audit_fraction so that 5 audit trials complete" in correlation.advice


def test_savings_are_what_stopped_trials_did_not_train() -> None:
    space = space_with("search.audit_fraction=0.3")
    history = searched(space, lambda trial, config, epoch: 0.9 - trial / 50)
    n_audits = sum(trial.audit for trial in history.trials.values())
    n_stopped = 39 - n_audits
    finding = savings(history, space)
    trained, saved = 9 * (1 + n_audits) + n_stopped, 8 * n_stopped
    assert finding.numbers == {"trained": trained, "saved": saved, "share": saved / (trained + saved)}
    assert history.n_epochs == trained


def test_a_space_without_rungs_loses_nothing() -> None:
    space = space_with("search.grace_epochs=9")
    history = made(space, *[("completed", [0.1 * n] * 9, {}) for n in range(8)])
    assert "no trial is stopped" in rank_correlation(history, space).sentence
    assert would_be_winners(history, space).verdict == "fine"


# The space


def configs(name: str, *values: float) -> list[Hyperparameters]:
    return [Hyperparameters.from_mapping({"coarse_dropout_p": 0.21, name: value}) for value in values]


@pytest.mark.parametrize(
    ("name", "values", "end"),
    [
        ("lr", (0.5, 0.45, 0.48, 0.4, 0.01), "upper"),
        ("lr", (0.0021, 0.0022, 0.002, 0.0025, 0.0021), "lower"),
        ("momentum", (0.98, 0.97, 0.975, 0.979, 0.6), "upper"),
        ("gamma", (0.1, 0.11, 0.12, 0.1, 0.1), "lower"),
        ("batch_size", (107, 104, 103, 105, 60), "upper"),
        ("batch_size", (102, 102, 102, 105, 60), None),
        ("lr", (0.5, 0.45, 0.1, 0.05, 0.01), None),  # two of five come by chance
        ("lr", (0.3, 0.3, 0.35, 0.28, 0.32), None),  # near in lr itself, not in its logarithm
        ("flip_p", (0.0, 0.0, 0.001, 0.0, 0.0), None),  # nothing lies below a probability of 0
        ("flip_p", (0.5, 0.5, 0.5, 0.5, 0.5), None),  # p and 1 - p give the same augmentation
        ("gamma", (1.0, 1.0, 1.0, 1.0, 1.0), None),
        ("step_size", (9, 9, 9, 9, 9), None),  # never, within a trial
        ("step_size", (1, 1, 1, 1, 1), None),
        ("shift_scale_rotate_p", (1.0, 1.0, 1.0, 1.0, 1.0), None),
    ],
)
def test_values_that_crowd_at_an_end_are_found_but_not_chance_or_natural_limits(
    name: str, values: tuple[float, ...], end: str | None
) -> None:
    space = space_with("space.batch_size={randint: [8, 107]}", "baseline.batch_size=16")
    found = [edge for edge in crowded_edges(configs(name, *values), space) if edge.parameter == name]
    assert [edge.end for edge in found] == ([end] if end else [])
    for edge in found:
        assert edge.n_near >= 4
        assert edge.chance < 0.001
        assert edge.wider != space.searched[name].as_yaml()


def test_edges_are_seldom_found_where_nothing_matters() -> None:
    space = space_with()
    generator = np.random.default_rng(0)
    n_found = 0
    for _ in range(200):
        drawn = generator.random((5, 4))
        best = [
            Hyperparameters(
                lr=0.002 * 250**lr, momentum=0.5 + 0.48 * momentum, gamma=0.1 + 0.9 * gamma, coarse_dropout_p=hole / 2
            )
            for lr, momentum, gamma, hole in drawn
        ]
        n_found += bool(crowded_edges(best, space))
    assert n_found <= 200 * 0.05


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
    finding = edges(made(space, *trials, ("completed", [0.4] * 9, {"lr": 0.05})), space)
    assert finding.verdict == "change"
    assert finding.sentence.startswith("lr: 4 of the best 5 trials lie within 5% of the upper end 0.5 (p = ")
    assert finding.advice == "Widen: `lr: {loguniform: [0.002, 2]}`."
    (edge,) = asdict(finding)["numbers"]["edges"]
    assert edge["wider"] == {"loguniform": [0.002, 2.0]}


def drawn(seed: int, n: int) -> list[Values]:
    generator = np.random.default_rng(seed)
    return [
        {"lr": float(0.002 * 250 ** generator.random()), "momentum": float(generator.uniform(0.5, 0.98))}
        for _ in range(n)
    ]


def test_importance_finds_the_one_parameter_that_matters_and_nothing_in_noise() -> None:
    space, values = space_with(), drawn(1, 60)
    noise = np.random.default_rng(1).standard_normal(60) / 50
    mattering = [0.8 - abs(math.log10(v["lr"] / 0.02)) / 3 + float(n) for v, n in zip(values, noise, strict=True)]
    history = made(space, *[("stopped", [end], v) for end, v in zip(mattering, values, strict=True)])
    finding = importances(history, space)
    assert finding.verdict == "fine"
    assert finding.sentence.startswith("Of the variance of the accuracy of 60 trials after epoch 1, lr ")
    assert ", momentum" not in finding.sentence
    assert finding.sentence.endswith("Fewer than 70 trials for 7 parameters can show little.")
    assert finding.numbers["compared"][0]["shares"]["lr"] > 0.6
    pure = made(space, *[("stopped", [0.5 + float(n)], v) for n, v in zip(noise, values, strict=True)])
    assert "no parameter explains more than chance" in importances(pure, space).sentence


def test_a_small_learning_rate_counts_as_much_as_a_large_one() -> None:
    """Optuna's evaluator weighs a loguniform range linearly: all that happens below 0.05 would be a tenth of it."""
    space = space_with()
    values = [(0.9 if v["lr"] > 0.02 else 0.2 + 0.1 * v["momentum"], v) for v in drawn(2, 80)]
    found = importance_at(1, made(space, *[("stopped", [value], v) for value, v in values]).counting, space)
    assert found is not None
    assert found.shares["lr"] > 0.9


def test_importance_needs_trials_parameters_and_differences() -> None:
    space = space_with()
    assert importance_at(1, made(space, *[("stopped", [0.1 * n], {}) for n in range(9)]).counting, space) is None
    assert importance_at(1, made(space, *[("stopped", [0.1], {})] * 30).counting, space) is None
    fixed = [f"space.{name}={getattr(space.baseline, name)}" for name in space.searched if name != "lr"]
    only_lr = load_space("quickstart", fixed)
    history = made(only_lr, *[("stopped", [0.03 * n], {}) for n in range(30)])
    assert "cannot be told from one parameter" in importances(history, only_lr).sentence


def test_a_diverged_trial_counts_as_the_worst_that_did_not() -> None:
    space = space_with()
    lrs = np.random.default_rng(3).uniform(0.01, 0.5, 20)
    good = [("stopped", [0.5 + 0.001 * n], {"lr": float(lr)}) for n, lr in enumerate(lrs) if lr <= 0.3]
    bad = [("diverged", [0.99], {"lr": float(lr)}) for lr in lrs if lr > 0.3]
    later = [("diverged", [0.5, 0.1], {"lr": 0.05})]
    as_worst = [("stopped", [0.5], values) for _, _, values in [*bad, *later]]
    found, expected = (
        importance_at(1, made(space, *good, *rest).counting, space) for rest in ([*bad, *later], as_worst)
    )
    assert found == expected
    assert found is not None
    assert found.n == 21


GOOD = [("stopped", [0.5], {"lr": lr}) for lr in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.4)]


@pytest.mark.parametrize(
    ("n_good", "lrs", "verdict", "advice"),
    [
        (
            1,
            (0.25, 0.3, 0.45),
            "change",
            "Lower the upper end of lr to 0.2: 3 of the diverged lie above it, and 1 of the 7 others.",
        ),
        (1, (0.01, 0.1, 0.3), "change", "Lower lr or momentum, or the upper ends of both."),
        (3, (0.25,), "fine", ""),  # one in twenty
    ],
)
def test_divergence_is_laid_to_the_learning_rates_that_part_it(
    n_good: int, lrs: tuple[float, ...], verdict: str, advice: str
) -> None:
    bad = [("diverged", [0.1], {"lr": lr}) for lr in lrs]
    finding = divergences(made(space_with(), *GOOD * n_good, *bad), space_with())
    assert (finding.verdict, finding.advice) == (verdict, advice)
    n = 7 * n_good + len(bad)
    assert finding.sentence == f"{len(bad)} of {n} trials ({len(bad) / n:.0%}) diverged."


def test_replicates_that_diverged_are_said() -> None:
    history = with_replicates(with_ends(0.5, 0.7), {1: [0.7, math.nan]})
    assert divergences(history, space_with()).sentence == "Of 2 trials, none diverged; of 2 replicates, 1 diverged."


def test_failures_send_to_their_reasons() -> None:
    finding = failures(made(space_with(), ("completed", [0.5] * 9, {}), ("failed", [], {})))
    assert finding.sentence == "1 of 2 trials (50%) failed."
    assert "search.leaderboard" in finding.advice


# The course


def with_ends(*ends: float) -> History:
    return made(space_with(), *[("completed", [0.1] * 8 + [end], {}) for end in ends])


LATE = (*[0.3] * 7, 0.40, *[0.3] * 2, 0.5444, 0.3)  # trial 10 is the best, in the last third; before it trial 7
RISING = (*[0.8] * 11, 0.81)


@pytest.mark.parametrize(
    ("ends", "replicates", "n_validation", "verdict", "said"),
    [
        ((*[0.5, 0.7, 0.9] * 4,), {}, None, "fine", "it has flattened"),
        (
            [0.05 * n for n in range(12)],
            {},
            None,
            "change",
            "(forecast): it still improves.",
        ),
        (RISING, {}, None, "change", "it still improves"),
        (RISING, {}, 288, "fine", "standard error of 288 images: 2.35 points): it has flattened"),
        (LATE, {}, 288, "change", "it still improves"),
        # Trial 7, the best by its replicates, was there before.
        (LATE, {10: [0.33, 0.36, 0.39], 7: [0.34, 0.37, 0.38], 0: [0.3, 0.3, 0.3]}, 288, "fine", "it has flattened"),
        (LATE, {10: [0.33, 0.45, 0.42], 7: [0.34, 0.37, 0.38]}, 288, "fine", "half of the difference's 95 % interval"),
        (LATE, {10: [0.53, 0.54, 0.55], 7: [0.34, 0.37, 0.38]}, 288, "change", "it still improves"),
        *[
            (
                LATE,
                replicates,
                288,
                "unknown",
                "cannot be told: trials 10 and 7, the best now and before its last third",
            )
            for replicates in ({10: [0.35, 0.36]}, {7: [0.35, 0.36]}, {10: [0.5], 7: [0.4]})
        ],
    ],
)
def test_a_search_improves_where_its_last_third_gained_more_than_noise(
    ends: Sequence[float], replicates: dict[int, list[float]], n_validation: int | None, verdict: str, said: str
) -> None:
    finding = flatness(with_replicates(with_ends(*ends), replicates), n_validation)
    assert finding.verdict == verdict
    assert said in finding.sentence
    assert ("--add-trials" in finding.advice) == (verdict == "change")


def test_where_the_best_is_at_chance_nothing_was_learned_and_nothing_else_is_compared() -> None:
    space = space_with()

    def found(*ends: float) -> dict[str, Finding]:
        history = made(space, *[("completed", [end] * 9, {"lr": 0.01 * (n + 1)}) for n, end in enumerate(ends)])
        history.chances = {"accuracy": 0.842}
        return {finding.name: finding for finding in diagnose(history, space, 50)}

    guessing = found(*[0.74] * 12)
    assert guessing.keys() == {"learning", "divergences", "failures", "savings"}
    assert guessing["learning"].verdict == "change"
    assert guessing["learning"].sentence.startswith("No trial wins: 12 of 12 trials are at chance (at most 84.20%")
    assert guessing["learning"].numbers == {"n": 12, "n_at_chance": 12, "chance": 0.842}
    learned = found(*[0.74] * 10, 0.85, 0.9)
    assert learned["learning"].verdict == "fine"
    assert learned["learning"].sentence.startswith("10 of 12 trials are at chance")
    assert "edges" in learned


# All of it


@pytest.mark.parametrize("n_results", [0, 1, 12, 30])
def test_a_search_that_has_hardly_begun_says_what_cannot_be_told(n_results: int) -> None:
    space = space_with()
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
    simulate(state, seed=0, max_results=n_results)
    findings = diagnose(state.history, space, 288)
    assert len({finding.name for finding in findings}) == len(findings) == 9
    unknown = {finding.name for finding in findings if finding.verdict == "unknown"}
    assert {"rank_correlation", "would_be_winners", "flatness"} <= unknown
    assert all(finding.sentence.endswith(".") for finding in findings)
    json.dumps([asdict(finding) for finding in findings], allow_nan=False)


def test_excluded_trials_do_not_count() -> None:
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
    assert "0 others that completed" in findings["rank_correlation"].sentence
    assert findings["edges"].numbers["n"] == 14
    json.dumps([asdict(finding) for finding in findings.values()], allow_nan=False)
    shorter = space_with("training.max_epochs=3")
    assert {f.name: f for f in diagnose(history, shorter, -1)}["savings"].numbers["saved"] == 0


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
    rising = searched(space, lambda trial, config, epoch: min(0.99, 0.02 * trial + 0.01 * epoch))
    order = [finding.verdict for finding in diagnose(rising, space)]
    assert order == sorted(order, key=("change", "fine", "unknown").index)
