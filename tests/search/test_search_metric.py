"""`search.metric` from the rungs to the tables: a search ranks by it, tests it, and shows it by its name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from search.analysis.importance import importance_at
from search.analysis.ranking import chance_sentence, lead_sentence, points_text, rank, winner
from search.experiment.events import (
    EpochDone,
    ReplicateEnded,
    ReplicateEpochDone,
    ReplicateStarted,
    SpaceSet,
    TrialEnded,
    TrialStarted,
)
from search.experiment.folder import Experiment, create_experiment
from search.experiment.history import History
from search.experiment.manifest import Data, Device, new_manifest
from search.policy.curve_model import to_z
from search.policy.forecasts import model_of
from search.policy.replicate_statistics import lead, replicate_results
from search.policy.rungs import Rungs, chance_levels
from search.policy.state import SearchState
from search.policy.study import study_of
from search.session.resume import ResumeRequest, changed_space
from spaces import InputError, Space, load_space
from tests.support.foreign import Call
from trainable.metric import METRICS

OLD = Path(__file__).parents[1] / "data" / "old_experiment"
NAMES = list(METRICS)
# Value of each metric by trial: each metric has another best trial, and trial 0 is the baseline.
VALUES = {
    "accuracy": [0.5, 0.9, 0.8, 0.7, 0.6],
    "balanced_accuracy": [0.5, 0.6, 0.9, 0.7, 0.8],
    "macro_f1": [0.5, 0.6, 0.7, 0.9, 0.8],
    "loss": [0.5, 0.4, 0.3, 0.2, 0.1],
}
BEST = {"accuracy": 1, "balanced_accuracy": 2, "macro_f1": 3, "loss": 4}


def space_by(metric: str, *more: str) -> Space:
    return load_space("quickstart", [f"search.metric={metric}", "search.trials=5", *more])


def epoch_of(trial: int, epoch: int, values: dict[str, float]) -> EpochDone:
    accuracy, balanced, f1, loss = (values[name] for name in NAMES)
    return EpochDone(trial, epoch, 0.01, 1.0, 0.5, loss, accuracy, 0.5, 0.1, 10.0 * trial + epoch, balanced, f1)


def searched(space: Space, values: dict[str, list[float]] = VALUES) -> History:
    history = History([SpaceSet(space.as_dict(), [], 0.0)])
    for number in range(len(values["loss"])):
        history.apply(TrialStarted(number, space.searched_values(space.baseline), space.baseline, number == 0, 0.0))
        for epoch in range(1, space.training.max_epochs + 1):
            history.apply(epoch_of(number, epoch, {name: values[name][number] for name in NAMES}))
        history.apply(TrialEnded(number, "completed", "", 1.0))
    return history


def with_losses(history: History, losses: dict[int, list[float | None]], max_epochs: int) -> History:
    """Adds replicates with these final losses in blocks 1, 2 …; None for one that diverged."""
    for block in range(max(map(len, losses.values()))):
        for trial, values in losses.items():
            run, loss = len(history.replicates), values[block]
            history.apply(ReplicateStarted(run, trial, block + 1, 1.0))
            for epoch in range(1, max_epochs + 1 if loss else 2):
                train_loss, known = (1.0, loss) if loss else (math.nan, math.nan)
                history.apply(ReplicateEpochDone(run, epoch, train_loss, known, 0.5, 0.5, 0.1, 9.0, 0.5, 0.5))
            history.apply(ReplicateEnded(run, "completed" if loss else "diverged", "", 2.0))
    return history


@pytest.mark.parametrize("name", NAMES)
def test_each_metric_has_its_own_winner_and_is_called_by_its_name(name: str) -> None:
    space = space_by(name)
    history = searched(space)
    best = winner(rank(history))
    assert best is not None
    assert best.trial == BEST[name]
    sentence = lead_sentence(history, rank(history))
    text = "0.1000" if name == "loss" else "90.00%"
    assert f"leads with {text} validation {METRICS[name].title} (forecast " in sentence
    assert (" nats below the baseline" if name == "loss" else " points above the baseline") in sentence
    study = study_of(space, history)
    assert study.best_trial.number == BEST[name]
    assert study.best_value == VALUES[name][BEST[name]]
    assert study.direction.name == ("MINIMIZE" if name == "loss" else "MAXIMIZE")


@pytest.mark.parametrize("name", NAMES)
def test_rungs_pass_the_trial_that_is_best_by_the_metric(name: str) -> None:
    space = space_by(name, "search.reduction_factor=3", "training.max_epochs=3", "confirm.top=0")
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
    worst_of_searched = sorted(range(1, 5), key=lambda number: VALUES[name][number], reverse=name == "loss")[0]
    assert [assignment and assignment.number for assignment in (state.next_assignment() for _ in range(5))] == [
        *range(5)
    ]
    for number in (0, BEST[name], worst_of_searched):
        state.record(epoch_of(number, 1, {metric: VALUES[metric][number] for metric in NAMES}))
    stopped = state.history.trials[worst_of_searched].end
    assert stopped is not None
    assert f" at rung 1, {METRICS[name].worse} its cutoff" in stopped.reason
    assert state.history.trials[BEST[name]].end is None


def test_a_diverged_trial_is_the_worst_at_a_rung_of_losses() -> None:
    rungs = Rungs((1, 3), 3, metric=METRICS["loss"])
    rungs.diverge(0, 1, goes_to_the_end=False)
    assert rungs.arrive(1, 1, -50.0) is None, "any loss is better than divergence"
    assert rungs.arrive(2, 1, -0.5) is None
    assert rungs.arrive(3, 1, -60.0) == "60.0000 at rung 1, above its cutoff 33.5000"


def test_replicates_of_equal_scatter_are_judged_as_scipy_does() -> None:
    space = space_by("loss", "confirm.seeds=3")
    losses: dict[int, list[float | None]] = {4: [0.10, 0.11, 0.105], 0: [0.30, 0.33, 0.315]}
    history = with_losses(searched(space), losses, space.training.max_epochs)
    found = replicate_results(history)
    assert [one.trial for one in found.values()] == [4, 0], "the lowest loss is first"
    assert found[4].mean == pytest.approx(-0.105)
    # The scatter is proportional to the loss, so that it is pooled as a share of the mean.
    shares = np.array([[value / np.mean(values) for value in values] for values in losses.values()])  # type: ignore[arg-type]
    sd = math.sqrt(((shares - 1) ** 2).sum() / 4)
    half_width = stats.t.ppf(0.975, 4) * sd / math.sqrt(3)
    assert found[4].half_width == pytest.approx(0.105 * half_width)
    assert found[0].half_width == pytest.approx(0.315 * half_width)
    ahead = lead(history, 4, 0)
    assert ahead.mean == pytest.approx(0.21)
    assert ahead.is_clear
    assert points_text(ahead).startswith("+0.2100 ± ")
    assert points_text(ahead).endswith(" nats")
    (row, *_) = rank(history)
    assert (row.trial, row.replicate_mean, row.replicate_accuracy) == (4, pytest.approx(0.105), None)


@pytest.mark.parametrize(("means", "alternative"), [((0.1, 0.1), "two-sided"), ((0.1, 0.2), "less")])
def test_coverage_of_the_interval_of_a_lead_in_loss(means: tuple[float, float], alternative: str) -> None:
    """Scatter proportional to the loss: 95 % of the intervals hold the true lead, or more for unequal means."""
    generator, space = np.random.default_rng(0), space_by("loss", "training.max_epochs=3", "search.grace_epochs=1")
    n_held, n = 0, 200
    for _ in range(n):
        blocks = generator.normal(0, 0.05, 3)
        draws = [mean * (1 + blocks + generator.normal(0, 0.05, 3)) for mean in means]
        ahead = lead(with_losses(searched(space), {4: list(draws[0]), 0: list(draws[1])}, 3), 4, 0)
        assert ahead.half_width is not None
        n_held += abs(ahead.mean - (means[1] - means[0])) <= ahead.half_width
    assert stats.binomtest(n_held, n, 0.95, alternative).pvalue > 0.01, n_held


def test_a_diverged_replicate_counts_as_the_highest_finite_loss() -> None:
    space = space_by("loss")
    history = with_losses(searched(space), {4: [0.1, None], 3: [0.2, 0.2]}, space.training.max_epochs)
    found = replicate_results(history)
    assert [one.trial for one in found.values()] == [3, 4]
    assert found[4].mean == pytest.approx(-(0.1 + max(VALUES["loss"])) / 2)
    assert json.dumps([row.as_dict() for row in rank(history)], allow_nan=False)


def test_guessing_on_unequal_classes() -> None:
    labels = np.repeat([0, 1, 4], [80, 10, 10])
    levels = chance_levels(labels)
    assert levels["loss"] == pytest.approx(stats.entropy([0.8, 0.1, 0.1]))
    generator = np.random.default_rng(1)
    said = generator.integers(0, 3, (2000, 100))
    true = np.repeat([0, 1, 2], [80, 10, 10])
    recalls = np.stack([(said[:, true == label] == label).mean(axis=1) for label in range(3)]).mean(axis=0)
    assert (recalls > levels["balanced_accuracy"]).mean() == pytest.approx(0.05, abs=0.015)
    history = searched(space_by("loss"))
    history.chances = {"loss": 0.45}
    ranked = rank(history)
    assert [row.trial for row in ranked if row.at_chance] == [0]
    assert "1 of 5 trials is at chance (at least 0.4500:" in chance_sentence(history, ranked)


def test_the_curve_model_and_the_importances_take_losses_as_logarithms() -> None:
    np.testing.assert_allclose(to_z(np.array([-0.1, -1.0, -1e39]), is_loss=True), -np.log([0.1, 1.0, 100.0]))
    space = space_by("loss")
    configs = [replace(space.baseline, lr=0.002 * 1.5**i) for i in range(12)]
    history = History([SpaceSet(space.as_dict(), [], 0.0)])
    for number, config in enumerate(configs):
        history.apply(TrialStarted(number, space.searched_values(space.baseline), config, number == 0, 0.0))
        values = dict.fromkeys(NAMES, 0.5) | {"loss": 1e30 if number == 11 else 2.0 - 0.1 * number}
        history.apply(epoch_of(number, 1, values))
    trials, model = model_of(history)
    means, _ = model.of_curves()
    assert int(np.argmin(means)) == 11
    assert 7 <= int(np.argmax(means)) <= 10, "near the lowest losses, though the highest is 1e30"
    assert len(trials) == 12
    found = importance_at(1, list(history.trials.values()), space)
    assert found is not None
    assert next(iter(found.shares)) == "lr"


@pytest.fixture
def by_loss(tmp_path: Path) -> Experiment:
    space = space_by("loss")
    device, chances = Device(device="cpu", name="CPU", trials_at_once=2), {"loss": 2.3}
    data = Data(n_train=9, n_validation=9, class_names=["0", "1"], mean=[0.3], std=[0.3], content_sha256="0" * 64)
    data = data.model_copy(update={"chance": 0.2, "chances": chances})
    made = create_experiment(tmp_path / "results", "mine", space, new_manifest(space, "mine", device, data))
    history = with_losses(searched(space), {4: [0.1, 0.12], 0: [0.5, 0.52]}, space.training.max_epochs)
    for event in list(history.events)[1:]:
        made.journal().append(event)
    return made


def test_every_command_speaks_of_the_loss(by_loss: Experiment, call: Call) -> None:
    folder = str(by_loss.folder)
    for command, said in {
        "leaderboard": "Trial 4 wins by validation loss: the search said 0.1000, 2 replicates say 0.1100 ± ",
        "diagnose": "none is at chance",
        "why": "leaderboard: place 1 of 5 by its replicates",
    }.items():
        code, output, errors = call(command, folder, *(["4"] if command == "why" else []))
        assert (code, errors) == (0, "")
        assert said in output, command
    _, output, _ = call("compare", folder, folder)
    assert "validation loss" in output
    content = json.loads(call("leaderboard", folder, "--format", "json")[1])
    assert content["metric"] == "validation_loss"
    assert (content["trials"][0]["trial"], content["trials"][0]["replicate_mean"]) == (4, pytest.approx(0.11))
    rows = json.loads(call("leaderboard", folder, "--format", "json", "--sort", "replicates")[1])["trials"]
    assert rows[0]["trial"] == 4, "the lowest loss is first"
    assert call("report", folder)[0] == 0
    page = (by_loss.folder / "report.html").read_text()
    assert "Validation loss" in page
    assert "validation accuracy" not in page


@pytest.mark.parametrize(("name", "heading"), [("accuracy", None), ("macro_f1", "macro F1"), ("loss", None)])
def test_the_leaderboard_has_at_most_one_more_column(name: str, heading: str | None) -> None:
    from search.terminal.tables import as_table

    first = as_table(rank(searched(space_by(name))), []).splitlines()[0]
    assert "accuracy" in first
    assert (heading or "loss") in first
    assert len(first.split()) <= 9 + len((heading or "").split())
    narrow = as_table(rank(searched(space_by(name))), [], width=34).splitlines()[0]
    assert (heading or name) in narrow, "the metric is left out last"


def test_a_journal_without_the_metric_is_refused_in_one_line(tmp_path: Path) -> None:
    old = Experiment(OLD)

    def resumed(override: str) -> ResumeRequest:
        where = {"started_s": 0.0, "results": tmp_path}
        return ResumeRequest(experiment=old, overrides=[override], allow_changed_space=True, **where)  # type: ignore[arg-type]

    assert all(trial.epochs[0].validation_macro_f1 is None for trial in old.history().trials.values())
    for name in ("macro_f1", "balanced_accuracy"):
        request = resumed(f"search.metric={name}")
        with pytest.raises(InputError, match=f"`search.metric` is {name}, but .* did not compute it") as refused:
            changed_space(request, old.history())
        assert len(refused.value.lines) == 1
    by = resumed("search.metric=loss")
    assert changed_space(by, old.history()).search.metric == "loss"
    with pytest.raises(InputError, match=r"`search.metric` was accuracy and is loss"):
        changed_space(replace(by, allow_changed_space=False), old.history())
    with pytest.raises(InputError, match=r"`training.class_weights` was none and is balanced"):
        changed_space(resumed("training.class_weights=balanced"), old.history())
    assert old.space.training.pooling == "max", "a search of version 0.1 goes on with its network"
    with pytest.raises(InputError, match=r"`training.pooling` was max and is average"):
        changed_space(resumed("training.pooling=average"), old.history())


def test_a_changed_metric_ranks_earlier_results_too() -> None:
    history = searched(space_by("accuracy"))
    history.apply(SpaceSet(space_by("macro_f1").as_dict(), [], 5.0))
    best = winner(rank(history))
    assert best is not None
    assert best.trial == BEST["macro_f1"]
    damaged = replace(epoch_of(5, 1, dict.fromkeys(NAMES, 0.5)), validation_macro_f1=None)
    history.apply(TrialStarted(5, {}, space_by("macro_f1").baseline, False, 0.0))
    with pytest.raises(ValueError, match="no macro F1, by which the search ranks"):
        history.apply(damaged)
