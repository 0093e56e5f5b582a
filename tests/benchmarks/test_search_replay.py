import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.replay import measure_curves, published, shipped_memory
from benchmarks.replay.__main__ import main
from benchmarks.replay.arms import ARMS, DEFAULT, REFERENCE_NAMES, OwnArm, RayArm, space_of
from benchmarks.replay.correlations import search_correlations
from benchmarks.replay.searches import OwnSearch, RaySearch, chances_of, drive, other_searches, replay
from benchmarks.replay.surrogate import FOREST, PROCESS, Surrogate, held_out_scores, noise_of
from benchmarks.replay.tables import Table, in_unit_cube, random_configurations, read_table, table_from_text
from benchmarks.stats import factor_of, geometric_mean, resampled_factors, steps_to, thinned
from search.analysis.ranking import leader, rank
from search.experiment.events import EpochDone, TrialStarted
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.journal import Journal, event_from_line, read_history
from search.policy.state import SearchState
from search.session.memory import SHIPPED_FILE
from spaces import InputError, Space, load_space
from spaces.loader import space_from_text
from tests.support.simulation import numbers, simulate

SPACE = """
dataset: {name: digits}
training: {max_epochs: 9}
search: {trials: 100, grace_epochs: 1, reduction_factor: 3}
space:
  lr: {loguniform: [0.001, 1.0]}
  momentum: {uniform: [0.0, 0.9]}
baseline: {lr: 0.01, momentum: 0.5}
"""
N_IMAGES = 100
EPOCHS = 9


@pytest.fixture(scope="module")
def space() -> Space:
    return space_from_text(SPACE, "test.yaml", "test")


@pytest.fixture(scope="module")
def table(space: Space) -> Table:
    """A third of the space never learns; the rest is best at one place."""
    configurations = random_configurations(space, 60, seed=3)
    unit = np.array([in_unit_cube(space, values) for values in configurations])
    height = np.where(unit[:, 0] < 2 / 3, 0.9 - (unit[:, 0] - 0.4) ** 2 - 0.2 * unit[:, 1], 0.1)
    curves = 0.1 + (height[:, None] - 0.1) * (1 - 0.6 ** np.arange(1, EPOCHS + 1))
    return Table("made-up", space, unit, np.round(curves * N_IMAGES) / N_IMAGES, (), N_IMAGES)


@pytest.fixture(scope="module")
def surrogate(table: Table) -> Surrogate:
    return Surrogate(table)


# The same objects as in a real search


@pytest.mark.parametrize("asha", ["adaptive", "stop"])
def test_the_replay_proposes_and_judges_as_the_journal_of_a_search_says(
    asha: Any, space: Space, surrogate: Surrogate, tmp_path: Path
) -> None:
    arm = OwnArm("tpe", sampler="tpe", asha=asha)
    own = OwnSearch.of(arm, surrogate, seed=5)
    path = tmp_path / "journal.jsonl"
    journaled = SearchState(own.state.space, History(chances=chances_of(surrogate.table)), Journal(path))
    simulate(journaled, seed=1, max_results=150)
    history = History()
    n_proposals = n_refusals = 0
    for line in path.read_bytes().splitlines():
        event = event_from_line(line)
        history.apply(event)
        if isinstance(event, TrialStarted):
            found = own.next_trial()
            assert found is not None
            assert found[:2] == (event.trial, event.suggested)
            n_proposals += 1
        elif isinstance(event, EpochDone):
            own.record(event.trial, event.epoch, event.validation_accuracy)
    for number, trial in own.state.history.trials.items():
        assert trial.n_epochs == history.trials[number].n_epochs
        assert (trial.end and trial.end.status) == (history.trials[number].end and history.trials[number].end.status)
        n_refusals += trial.status == "stopped"
    assert n_proposals > 15
    assert n_refusals > 10


def test_a_replay_that_is_journaled_can_be_gone_on_with(surrogate: Surrogate, tmp_path: Path) -> None:
    space = space_of(OwnArm("random", asha="stop"), surrogate.table.space, EPOCHS, 2)
    cut, whole = tmp_path / "cut.jsonl", tmp_path / "whole.jsonl"
    drive(OwnSearch(SearchState(space, History(), Journal(whole))), surrogate, 2, 60, 1)
    drive(OwnSearch(SearchState(space, History(), Journal(cut))), surrogate, 2, 40, 1)
    history = read_history(cut)
    assert history.n_epochs == 40
    assert any(trial.status == "running" for trial in history.trials.values()), "nothing to go on with"
    drive(OwnSearch(SearchState(space, history, Journal(cut))), surrogate, 2, 20, 1)

    def trials_of(path: Path) -> list[Any]:
        trials = read_history(path).trials.values()
        return [(trial.config, [replace(epoch, at=0.0) for epoch in trial.epochs], trial.status) for trial in trials]

    assert trials_of(cut) == trials_of(whole)


def test_the_stock_arm_is_rays_own_with_its_defaults(surrogate: Surrogate) -> None:
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.trial import TrialState
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    stock = RaySearch(surrogate.table, 1, random=False)
    assert type(stock.searcher) is OptunaSearch
    assert type(stock.scheduler) is ASHAScheduler
    assert type(stock.searcher._ot_study.sampler) is TPESampler
    defaults = ASHAScheduler(max_t=EPOCHS)
    assert stock.scheduler._reduction_factor == defaults._reduction_factor == 4
    assert [epoch for epoch, _ in stock.scheduler._brackets[0]._rungs] == [4, 1]
    random = RaySearch(surrogate.table, 1, random=True)
    assert type(random.searcher._ot_study.sampler) is RandomSampler
    drive(stock, surrogate, 1, 60, 2)
    # As Ray does it: a trial that was stopped early is told as complete.
    ended = [trial for trial in stock.searcher._ot_study.trials if trial.state is TrialState.COMPLETE]
    assert any(max(trial.intermediate_values, default=1) < EPOCHS - 1 for trial in ended)


# What is measured


@pytest.mark.parametrize("arm", [OwnArm("random", asha="stop"), RayArm("ray-random", random=True)])
def test_what_is_handed_back_is_what_the_ranking_says(surrogate: Surrogate, arm: Any) -> None:
    n_epochs = 150
    regret = replay(arm, surrogate, 4, n_epochs, 3).regret
    searcher = (
        RaySearch(surrogate.table, 4, random=True) if isinstance(arm, RayArm) else OwnSearch.of(arm, surrogate, 4)
    )
    drive(searcher, surrogate, 4, n_epochs, 3)
    assert searcher.history.space is not None
    assert searcher.history.space["training"]["max_epochs"] == EPOCHS, "forecasts are of the last epoch of the replay"
    first = leader(rank(searcher.history))
    assert first is not None
    assert searcher.history.n_epochs == n_epochs
    assert first.forecast is not None
    _, final = surrogate.run(in_unit_cube(surrogate.table.space, searcher.history.trials[first.trial].suggested), 4)
    assert regret[-1] == pytest.approx(100 * (surrogate.best - final))


def test_the_same_seed_gives_the_same_search_and_a_configuration_the_same_run(surrogate: Surrogate) -> None:
    arm = OwnArm("random", asha="stop")
    first, second = (replay(arm, surrogate, 7, 100) for _ in range(2))
    assert np.array_equal(first.regret, second.regret)
    assert not np.array_equal(first.regret, replay(arm, surrogate, 8, 100).regret)
    configuration = surrogate.table.unit[5]
    curve, final = surrogate.run(configuration, 7)
    assert np.array_equal(curve, surrogate.run(configuration, 7)[0])
    assert surrogate.run(configuration, 8)[1] == final
    stock = [replay(RayArm("ray-stock"), surrogate, 3, 40).regret for _ in range(2)]
    assert np.array_equal(*stock)


def test_stopping_trains_more_configurations_and_the_baseline_is_the_first(surrogate: Surrogate) -> None:
    all_to_the_end = replay(OwnArm("random"), surrogate, 0, 180)
    stopping = replay(OwnArm("random", asha="stop"), surrogate, 0, 180)
    assert stopping.n_trials > 1.5 * all_to_the_end.n_trials
    assert stopping.n_completed < all_to_the_end.n_completed
    one_worker = replay(OwnArm("random"), surrogate, 0, EPOCHS, n_workers=1)
    assert one_worker.regret == pytest.approx(100 * (surrogate.best - surrogate.baseline))


@pytest.mark.parametrize(("level", "n_steps"), [(1.0, 4), (0.5, 5), (9.0, 1), (0.1, math.inf)])
def test_steps_count_until_a_curve_stays_below_a_level(level: float, n_steps: float) -> None:
    assert steps_to(np.array([5.0, 0.9, 2.0, 1.0, 0.4]), level) == n_steps


@pytest.mark.parametrize(
    ("epochs_idle", "of_budget", "expected"), [(0, False, 0.5), (300, False, 0.5), (0, True, 0.5), (300, True, 0.25)]
)
def test_the_factor_of_curves_that_are_known(epochs_idle: int, of_budget: bool, expected: float) -> None:
    """An arm that is twice as fast; what the reference wastes after it has arrived is nobody's gain."""
    epochs = np.arange(1, 301)
    reference = np.array([100.0 / epochs + seed / 1000 for seed in range(20)])
    faster = np.array([100.0 / (2 * epochs) + seed / 1000 for seed in range(20)])
    reference, faster = (np.pad(curves, ((0, 0), (0, epochs_idle)), "edge") for curves in (reference, faster))
    found = factor_of(resampled_factors(faster, reference, of_budget))
    assert found.value == pytest.approx(expected, abs=0.01)
    assert expected - 0.05 < found.low <= found.value <= found.high < expected + 0.05
    assert math.isinf(factor_of(resampled_factors(reference + 1, reference)).value)


def test_an_interval_is_wide_where_seeds_disagree() -> None:
    generator = np.random.default_rng(0)
    epochs = np.arange(1, 301)
    reference = 100 / epochs + generator.normal(0, 0.3, (12, 1))
    other = 150 / epochs + generator.normal(0, 0.3, (12, 1))
    found = factor_of(resampled_factors(other, reference))
    assert found.high > found.low * 1.3


def test_means_over_tables_and_thinned_curves() -> None:
    assert thinned(np.arange(12.0)[None], 3).tolist() == [[2.0, 5.0, 8.0, 11.0]]
    # What does not get there counts as the most.
    means = geometric_mean([np.array([0.5, 1.0]), np.array([math.inf, 0.25])], most=2.0)
    assert means == pytest.approx([1.0, 0.5])


# Tables and the surrogate


def rows(*curves: tuple[float, float, list[float]]) -> str:
    lines = ["config,lr,momentum,epoch,train_loss,train_accuracy,validation_loss,validation_accuracy"]
    for number, (lr, momentum, accuracies) in enumerate(curves):
        lines += [f"{number},{lr},{momentum},{e},1,0.5,1,{a:.5f}" for e, a in enumerate(accuracies, 1)]
        lines += [] if accuracies else [f"{number},{lr},{momentum},,,,,"]
    return "\n".join(lines)


def test_a_table_tells_seeds_from_configurations_and_fills_what_diverged(space: Space) -> None:
    text = rows((0.01, 0.0, [1 / 7, 0.5]), (0.1, 0.9, [3 / 70]), (0.01, 0.0, [2 / 7, 0.7]), (0.2, 0.1, []))
    found = table_from_text("t", space, text, 70)
    assert found.curves == pytest.approx(np.array([[1 / 7, 0.5], [3 / 70, found.chance], [found.chance] * 2]))
    assert [runs.shape for runs in found.repeats] == [(2, 2)]
    assert found.unit[0] == pytest.approx([1 / 3, 0.0])


def test_a_table_with_a_gap_and_an_unknown_one_are_refused(space: Space) -> None:
    text = rows((0.01, 0.0, [0.1, 0.2, 0.3])).replace("0,0.01,0.0,2,", "0,0.01,0.0,4,")
    with pytest.raises(InputError, match="epoch 4 after 1"):
        table_from_text("t", space, text, 10)
    with pytest.raises(InputError, match=r"there are .*deepobs"):
        read_table("nowhere")


def test_the_stored_table_of_deepobs_is_complete() -> None:
    found = read_table("deepobs")
    assert found.curves.shape == (108, 81)
    assert found.unit.shape == (108, 4)
    assert [runs.shape for runs in found.repeats] == [(10, 81)] * 3
    assert found.n_images == 9984
    # Real ties: a third of the runs has one exact value after the first epoch.
    assert np.unique(found.curves[:, 0], return_counts=True)[1].max() > 30


def test_the_surrogate_knows_its_own_rows_and_keeps_their_ties(table: Table, surrogate: Surrogate) -> None:
    final = surrogate.answer(table.unit).final
    assert np.quantile(np.abs(final - table.curves[:, -1]), 0.9) < 0.03
    assert surrogate.best == pytest.approx(float(final.max()), abs=0.05)
    drawn = random_configurations(table.space, 300, seed=1)
    seen = np.array([surrogate.run(in_unit_cube(table.space, values), 0)[0] for values in drawn])
    at_chance = [table.is_at_chance(curves).mean(axis=0) for curves in (table.curves, seen)]
    assert at_chance[1] == pytest.approx(at_chance[0], abs=0.12)
    assert np.unique(seen[:, -1], return_counts=True)[1].max() > 0.15 * 300


@pytest.mark.parametrize("model", [PROCESS, FOREST])
def test_regressions_are_scored_on_rows_that_they_were_not_given(
    table: Table, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.replay.surrogate.N_FOLDS", 3)
    monkeypatch.setattr("benchmarks.replay.surrogate.N_TREES", 10)
    scores = held_out_scores(table, model)
    assert [score.epoch for score in scores] == [1, 3, 9]
    assert all(0.3 < score.r2 < 1 for score in scores)


def test_noise_is_found_from_repeated_seeds_and_from_raggedness(table: Table) -> None:
    generator = np.random.default_rng(1)
    level = 0.5
    repeats = tuple(level + 0.5 * 0.04 * generator.standard_normal((40, EPOCHS)) for _ in range(3))
    found = noise_of(replace(table, repeats=repeats))
    assert found.scale == pytest.approx(np.full(EPOCHS, 0.04), rel=0.15)
    assert found.correlation < 0.1
    together = tuple(level + 0.02 * generator.standard_normal((40, 1)) + np.zeros((1, EPOCHS)) for _ in range(3))
    assert noise_of(replace(table, repeats=together)).correlation > 0.9
    ragged = replace(table, curves=0.5 + 0.02 * generator.standard_normal((300, EPOCHS)))
    assert noise_of(ragged).scale == pytest.approx(np.full(EPOCHS, 0.04), rel=0.25)


# The command


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_the_noise_of_two_epochs_has_the_wanted_correlation(table: Table, correlation: float) -> None:
    together = [np.stack([row - 0.01, row + 0.01]) for row in table.curves[table.curves[:, -1] > 0.2][:3]]
    noisy = Surrogate(replace(table, repeats=tuple(together)), PROCESS, correlation)
    runs = np.array([noisy.run(table.unit[0], seed)[0] for seed in range(500)])
    found = np.corrcoef(runs[:, -6:].T)[np.triu_indices(6, 1)].mean()
    assert found == pytest.approx(correlation, abs=0.1)


def test_names_of_arms_are_unique_and_every_space_is_valid(space: Space) -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        if isinstance(arm, OwnArm):
            rungs = space_of(arm, space, 27, 0).rung_epochs
            assert rungs[-1] == 27
            assert (len(rungs) == 1) == (arm.asha == "off")


def test_the_default_arm_is_what_a_space_file_gets(space: Space) -> None:
    (default,) = (arm for arm in ARMS if arm.name == DEFAULT)
    assert isinstance(default, OwnArm)
    text = (
        "{dataset: {name: digits}, training: {max_epochs: 27}, search: {trials: 1}, space: {lr: {uniform: [0.01, 1]}}}"
    )
    for shipped in (load_space("cifar10").search, space_from_text(text, "some.yaml", "some").search):
        replayed = space_of(default, space, 27, 0).search
        for key in ("asha", "sampler", "startup_trials", "grace_epochs", "reduction_factor"):
            assert getattr(shipped, key) == getattr(replayed, key), key


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (["--seeds", "0"], "--seeds, --workers and --trials must be at least 1."),
        (["--noise-correlation", "1.5"], "--noise-correlation 1.5 is not between 0 and 1."),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"{reason}\n"


def test_measured_curves_can_be_read_as_a_table(space: Space) -> None:
    words = measure_curves.search_settings(["training.max_epochs=3", "search.grace_epochs=1"], 4)
    searched = load_space("quickstart", words[1::2])
    state = SearchState(searched, History())
    numbers(state, 1)
    simulate(state, curve=lambda trial, config, epoch: (trial + epoch) / 10)
    text = measure_curves.table_text(searched, list(state.history.trials.values()))
    found = table_from_text("t", searched, text, 10)
    # The baseline was dispatched and never trained.
    assert found.curves == pytest.approx(np.array([[0.2, 0.3, 0.4], [0.3, 0.4, 0.5], [0.4, 0.5, 0.6]]))
    assert found.unit.min() >= 0
    assert found.unit.max() <= 1

    trials = list(state.history.trials.values())
    other = load_space("quickstart", [*words[1::2], "search.seed=1"])
    both = measure_curves.table_text(other, trials[:2], text)
    assert both.count("1.1,") == 3
    assert measure_curves.table_text(other, trials[:2], both) == both
    assert len(table_from_text("t", searched, both, 10).repeats) == 1, "the same configuration with another seed"
    of_old_version = text.replace("\n0.", "\n")
    assert of_old_version != text
    assert measure_curves.table_text(searched, trials, of_old_version) == text


@pytest.mark.long
def test_a_whole_run_ends_with_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    conditions = ["--workers", "2", "--trials", "15", "--noise-correlation", "0.5"]
    assert main(["--table", "deepobs", "--seeds", "6", "--arm", "tpe", *conditions]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    rows = {row["arm"]: row for row in json.loads(last)["rows"]}
    assert set(rows) == {*REFERENCE_NAMES, "tpe"}
    assert all(len(row["last_regret_by_seed"]) == 6 for row in rows.values())
    assert 15 <= rows["random"]["trials"] <= 17
    assert rows["random"]["factors"]["× random"]["value"] == 1
    assert any(line.startswith("tpe") for line in text)


def test_the_shipped_searches_agree_and_the_file_is_what_its_program_makes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert all(correlation > 0.8 for correlation in search_correlations().values())
    monkeypatch.setattr(shipped_memory, "SHIPPED_FILE", tmp_path / "memory.json")
    assert shipped_memory.main([]) == 0
    assert (tmp_path / "memory.json").read_text() == SHIPPED_FILE.read_text()


def test_the_published_search_as_a_table_keeps_what_was_seen_and_fills_in_the_rest() -> None:
    history = Experiment(published.FOLDER).history()
    table = published.published_table()
    assert table.curves.shape == (len(history.trials), 27)
    for number, trial in history.trials.items():
        seen = [epoch.validation_accuracy for epoch in trial.epochs]
        assert table.curves[number, : len(seen)] == pytest.approx(seen)
    ends = np.array([trial.n_epochs for trial in history.trials.values()])
    last_seen = table.curves[np.arange(len(ends)), ends - 1]
    assert (table.curves[ends < 27, -1] > last_seen[ends < 27] + 0.05).all(), (
        "a stopped trial would have gone on to learn"
    )
    assert [len(runs) for runs in table.repeats] == [3, 3, 3, 3], "each replicated trial and its two replicates"


def test_a_memory_of_a_replay_leaves_out_the_table_s_images() -> None:
    tables = ("cifar10", "cifar10-published", "digits", "deepobs")
    names = {table: [one.name for one in other_searches(table, 1)] for table in tables}
    assert names["cifar10"] == names["cifar10-published"] == ["shipped:digits"]
    assert names["digits"] == ["shipped:cifar10-small", "shipped:cifar10"]
    assert len(names["deepobs"]) == 3
