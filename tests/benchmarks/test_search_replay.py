import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.replay.__main__ import main
from benchmarks.replay.arms import ARMS, DEFAULT, REFERENCE_NAMES, OwnArm, RayArm, space_of
from benchmarks.replay.searches import HandedBack, OwnSearch, RaySearch, chance_of, drive, replay
from benchmarks.replay.surrogate import HeldOut, Surrogate, best_model, fit, held_out_scores, noise_of, ties
from benchmarks.replay.tables import Table, images_of, in_unit_cube, random_configurations, read_table, table_from_text
from benchmarks.stats import Factor, epochs_to, factor_of, geometric_mean, resampled_factors, thinned
from search.analysis.ranking import rank
from search.experiment.events import EpochDone, TrialPromoted, TrialStarted
from search.experiment.history import History
from search.experiment.journal import Journal, event_from_line, read_history
from search.policy.state import SearchState
from spaces import InputError, Space, load_space
from spaces.loader import space_from_text
from tests.support.simulation import simulate

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
    return Table("made-up", space, unit, np.round(curves * N_IMAGES) / N_IMAGES, (), N_IMAGES, {})


@pytest.fixture(scope="module")
def surrogate(table: Table) -> Surrogate:
    return fit(table, "nearest neighbours")


# The same objects as in a real search


@pytest.mark.parametrize("asha", ["stop", "promote"])
def test_the_replay_proposes_and_judges_as_the_journal_of_a_search_says(
    asha: Any, space: Space, surrogate: Surrogate, tmp_path: Path
) -> None:
    arm = OwnArm("tpe", sampler="tpe", asha=asha)
    own = OwnSearch.of(arm, surrogate, seed=5)
    path = tmp_path / "journal.jsonl"
    journaled = SearchState(own.state.space, History(), Journal(path), chance=chance_of(surrogate.table))
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
        elif isinstance(event, TrialPromoted):
            found = own.next_trial()
            assert found is not None
            assert found[0] == event.trial
        elif isinstance(event, EpochDone):
            own.record(event.trial, event.epoch, event.validation_accuracy)
    for number, trial in own.state.history.trials.items():
        assert trial.n_epochs == history.trials[number].n_epochs
        assert (trial.end and trial.end.status) == (history.trials[number].end and history.trials[number].end.status)
        n_refusals += trial.status == "stopped"
    assert n_proposals > 15
    assert n_refusals > 10 or asha == "promote"


def test_the_state_of_a_replay_is_that_of_search_run(surrogate: Surrogate) -> None:
    from search.execution import launching, ray_adapters

    assert launching.SearchState is ray_adapters.SearchState is SearchState  # type: ignore[attr-defined]
    assert type(OwnSearch.of(OwnArm("random"), surrogate, 0).state) is SearchState


def _trials_of(history: History) -> dict[int, Any]:
    return {
        number: (trial.config, trial.epochs, trial.end and trial.end.status) for number, trial in history.trials.items()
    }


def test_a_replay_that_is_journaled_can_be_gone_on_with(surrogate: Surrogate, tmp_path: Path) -> None:
    arm = OwnArm("tpe", sampler="tpe", asha="stop")
    space = space_of(arm, surrogate.table.space, EPOCHS, 2)
    cut, whole = tmp_path / "cut.jsonl", tmp_path / "whole.jsonl"
    drive(OwnSearch(SearchState(space, History(), Journal(whole))), surrogate, 2, 120, 1)
    drive(OwnSearch(SearchState(space, History(), Journal(cut))), surrogate, 2, 80, 1)
    history = read_history(cut)
    assert history.n_epochs == 80
    assert any(trial.status == "running" for trial in history.trials.values()), "nothing to go on with"
    drive(OwnSearch(SearchState(space, history, Journal(cut))), surrogate, 2, 40, 1)
    assert _trials_of(read_history(cut)) == _trials_of(read_history(whole))


def test_the_stock_arm_is_rays_own_with_its_defaults(surrogate: Surrogate) -> None:
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.trial import TrialState
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    stock = RaySearch(surrogate.table.space, EPOCHS, 1, random=False)
    assert type(stock.searcher) is OptunaSearch
    assert type(stock.scheduler) is ASHAScheduler
    assert type(stock.searcher._ot_study.sampler) is TPESampler
    defaults = ASHAScheduler(max_t=EPOCHS)
    assert stock.scheduler._reduction_factor == defaults._reduction_factor == 4
    assert [epoch for epoch, _ in stock.scheduler._brackets[0]._rungs] == [4, 1]
    random = RaySearch(surrogate.table.space, EPOCHS, 1, random=True)
    assert type(random.searcher._ot_study.sampler) is RandomSampler
    drive(stock, surrogate, 1, 60, 2)
    # As Ray does it: a trial that was stopped early is told as complete.
    ended = [trial for trial in stock.searcher._ot_study.trials if trial.state is TrialState.COMPLETE]
    assert any(max(trial.intermediate_values, default=1) < EPOCHS - 1 for trial in ended)


# What is measured


def test_what_is_handed_back_is_what_the_ranking_says(surrogate: Surrogate) -> None:
    class Watched(OwnSearch):
        leader = HandedBack(EPOCHS)

        def record(self, trial: int, epoch: int, accuracy: float) -> bool:
            goes_on = super().record(trial, epoch, accuracy)
            assert self.leader.take_in(trial, epoch, accuracy) == rank(self.state.history)[0].trial
            return goes_on

    arm = OwnArm("random", asha="stop")
    drive(Watched(OwnSearch.of(arm, surrogate, 4).state), surrogate, 4, 150, 3)


def test_the_same_seed_gives_the_same_search_and_a_configuration_the_same_run(surrogate: Surrogate) -> None:
    arm = OwnArm("random", asha="stop")
    first, second = (replay(arm, surrogate, 7, 100) for _ in range(2))
    assert np.array_equal(first.regret, second.regret)
    assert not np.array_equal(first.regret, replay(arm, surrogate, 8, 100).regret)
    configuration = surrogate.table.unit[5]
    curve, final = surrogate.run(configuration, 7)
    assert np.array_equal(curve, surrogate.run(configuration, 7)[0])
    assert surrogate.run(configuration, 8)[1] == final


def test_stopping_trains_more_configurations_and_the_baseline_is_the_first(surrogate: Surrogate) -> None:
    all_to_the_end = replay(OwnArm("random"), surrogate, 0, 180)
    stopping = replay(OwnArm("random", asha="stop"), surrogate, 0, 180)
    assert stopping.n_trials > 1.5 * all_to_the_end.n_trials
    assert stopping.n_completed < all_to_the_end.n_completed
    one_worker = replay(OwnArm("random"), surrogate, 0, EPOCHS, n_workers=1)
    assert one_worker.regret == pytest.approx(100 * (surrogate.best - surrogate.baseline))


def test_epochs_count_until_a_curve_stays_below_a_level() -> None:
    medians = np.array([5.0, 0.9, 2.0, 1.0, 0.4])
    assert epochs_to(medians, 1.0) == 4
    assert epochs_to(medians, 0.5, step=3) == 15
    assert epochs_to(medians, 9.0) == 1
    assert math.isinf(epochs_to(medians, 0.1))


def factor(regrets: Any, reference: Any, of_budget: bool = False) -> Factor:
    return factor_of(resampled_factors(regrets, reference, of_budget))


def test_the_factor_of_curves_that_are_known() -> None:
    epochs = np.arange(1, 301)
    reference = np.array([100.0 / epochs + seed / 1000 for seed in range(20)])
    faster = np.array([100.0 / (2 * epochs) + seed / 1000 for seed in range(20)])
    found = factor(faster, reference)
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert found.low <= found.value <= found.high
    assert found.low > 0.45
    assert found.high < 0.55
    # What the reference wastes after it has arrived is nobody's gain.
    idle = np.hstack([reference, np.repeat(reference[:, -1:], 300, axis=1)])
    assert factor(np.hstack([faster, faster[:, -1:].repeat(300, 1)]), idle).value == pytest.approx(0.5, abs=0.01)
    assert factor(faster, reference, of_budget=True).value == pytest.approx(0.5, abs=0.01)
    assert factor(faster, idle[:, :600], of_budget=True).value == pytest.approx(0.25, abs=0.01)
    assert math.isinf(factor(reference + 1, reference).value)


def test_an_interval_is_wide_where_seeds_disagree() -> None:
    generator = np.random.default_rng(0)
    epochs = np.arange(1, 301)
    reference = 100 / epochs + generator.normal(0, 0.3, (12, 1))
    other = 150 / epochs + generator.normal(0, 0.3, (12, 1))
    found = factor(other, reference)
    assert found.high > found.low * 1.3


def test_thinned_curves_end_where_they_ended() -> None:
    curves = np.arange(12.0)[None]
    assert thinned(curves, 3).tolist() == [[2.0, 5.0, 8.0, 11.0]]


def test_what_does_not_get_there_counts_as_the_most() -> None:
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
    found = table_from_text("t", space, text, {})
    assert found.n_images == 70
    assert found.curves.shape == (3, 2)
    assert found.curves[0] == pytest.approx([1 / 7, 0.5])
    assert found.curves[1] == pytest.approx([3 / 70, found.chance])
    assert found.curves[2] == pytest.approx([found.chance] * 2)
    assert [runs.shape for runs in found.repeats] == [(2, 2)]
    assert found.unit[0] == pytest.approx([1 / 3, 0.0])


def test_a_table_with_a_gap_is_refused(space: Space) -> None:
    text = rows((0.01, 0.0, [0.1, 0.2, 0.3])).replace("0,0.01,0.0,2,", "0,0.01,0.0,4,")
    with pytest.raises(InputError, match="epoch 4 after 1"):
        table_from_text("t", space, text, {})


def test_the_number_of_images_is_found_from_rounded_accuracies() -> None:
    generator = np.random.default_rng(0)
    for n_images in (288, 1000, 9984):
        assert images_of(np.round(generator.integers(0, n_images, 2000) / n_images, 5)) == n_images
    with pytest.raises(InputError):
        images_of(generator.random(500))


def test_the_stored_table_of_deepobs_is_complete() -> None:
    found = read_table("deepobs")
    assert found.curves.shape == (108, 81)
    assert found.unit.shape == (108, 4)
    assert [runs.shape for runs in found.repeats] == [(10, 81)] * 3
    assert found.n_images == 9984
    assert found.facts["licence"] == "MIT"
    # Real ties: a third of the runs has one exact value after the first epoch.
    assert np.unique(found.curves[:, 0], return_counts=True)[1].max() > 30


def test_an_unknown_table_is_one_line() -> None:
    with pytest.raises(InputError, match=r"there are .*deepobs"):
        read_table("nowhere")


def test_the_surrogate_keeps_the_ties_of_its_table(table: Table, surrogate: Surrogate) -> None:
    for found in ties(surrogate, n=300):
        assert found.surrogate_at_chance == pytest.approx(found.table_at_chance, abs=0.12)
    last = ties(surrogate, n=300)[-1]
    assert last.surrogate_tied > 0.15


def test_the_surrogate_knows_its_own_rows(table: Table, surrogate: Surrogate) -> None:
    final = surrogate.answer(table.unit).final
    assert np.abs(final - table.curves[:, -1]).max() < 0.03
    assert surrogate.best == pytest.approx(float(final.max()), abs=0.05)


def test_regressions_are_scored_on_rows_that_they_were_not_given(table: Table) -> None:
    scores = held_out_scores(table, ("nearest neighbours", "gaussian process of logits"))
    assert {score.epoch for score in scores} == {1, 3, 9}
    taken = [score for score in scores if score.model == best_model(scores)]
    assert all(0.3 < score.r2 < 1 for score in taken)


def test_the_regression_with_the_lowest_mean_error_is_taken() -> None:
    scores = [HeldOut("a", 1, 0.9, 0.01, 0.9), HeldOut("a", 3, 0.9, 0.09, 0.9)]
    assert best_model([*scores, HeldOut("b", 1, 0.1, 0.03, 0.1), HeldOut("b", 3, 0.1, 0.03, 0.1)]) == "b"


def test_noise_is_found_from_repeated_seeds_and_from_raggedness(table: Table) -> None:
    generator = np.random.default_rng(1)
    level = 0.5
    repeats = tuple(level + 0.5 * 0.04 * generator.standard_normal((40, EPOCHS)) for _ in range(3))
    found = noise_of(replace(table, repeats=repeats))
    assert found.from_seeds
    assert found.scale == pytest.approx(np.full(EPOCHS, 0.04), rel=0.15)
    assert found.correlation < 0.1
    together = tuple(level + 0.02 * generator.standard_normal((40, 1)) + np.zeros((1, EPOCHS)) for _ in range(3))
    assert noise_of(replace(table, repeats=together)).correlation > 0.9
    ragged = replace(table, curves=0.5 + 0.02 * generator.standard_normal((300, EPOCHS)))
    assert noise_of(ragged).scale == pytest.approx(np.full(EPOCHS, 0.04), rel=0.25)


# The command


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


def test_an_unknown_arm_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--arm", "best"]) == 2
    assert "--arm is `best`, but must be one of" in capsys.readouterr().err


def test_ray_arms_take_a_seed(surrogate: Surrogate) -> None:
    first, second = (replay(RayArm("ray-stock"), surrogate, 3, 60) for _ in range(2))
    assert np.array_equal(first.regret, second.regret)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_is_drawn(ending: str, tmp_path: Path) -> None:
    from benchmarks.replay.plot import draw

    regrets = np.full((3, 200), 2.0)
    draw(tmp_path / "plot", ending, [("one", "random", regrets), ("two", "random", regrets), ("two", "tpe", regrets)])
    assert (tmp_path / "plot").read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_bad_options_are_one_line_before_anything_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plot", "plot.jpg"]) == 2
    assert "--plot is plot.jpg, but must end with .png or .svg" in capsys.readouterr().err
    assert main(["--curves", "nowhere/curves.npz"]) == 2
    assert "--curves is nowhere/curves.npz, but must lie in a folder that there is" in capsys.readouterr().err
    assert main(["--surrogate", "crystal ball"]) == 2
    assert "--surrogate is `crystal ball`, but must be one of nearest neighbours" in capsys.readouterr().err


@pytest.mark.long
def test_a_whole_run_ends_with_one_json_line(table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "config,lr,momentum,epoch,train_loss,train_accuracy,validation_loss,validation_accuracy"
    configurations = random_configurations(table.space, 60, seed=3)
    lines = [
        f"{number},{values['lr']:.9g},{values['momentum']:.9g},{epoch},1,0.5,1,{accuracy:.6f}"
        for number, (values, curve) in enumerate(zip(configurations, table.curves, strict=True))
        for epoch, accuracy in enumerate(curve, 1)
    ]
    (tmp_path / "small.csv.gz").write_bytes(gzip.compress("\n".join([header, *lines]).encode()))
    (tmp_path / "small.json").write_text(json.dumps({"space": yaml.safe_load(SPACE)}))
    arguments = ["--folder", str(tmp_path), "--seeds", "6", "--arm", "tpe", "--at-once", "2"]
    assert main([*arguments, "--curves", str(tmp_path / "curves.npz")]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    rows = {row["arm"]: row for row in json.loads(last)["rows"]}
    assert set(rows) == {*REFERENCE_NAMES, "tpe"}
    assert all(row["n_seeds"] == 6 for row in rows.values())
    assert rows["random"]["factors"]["× random"]["value"] == 1
    assert any(line.startswith("tpe") for line in text)
    with np.load(tmp_path / "curves.npz") as curves:
        assert curves["small, 9 epochs/ray-stock"].shape == (6, 120)
