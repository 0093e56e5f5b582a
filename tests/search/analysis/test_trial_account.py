"""`search.why`: what each rung said of a trial, replayed with the search's own rule."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from search.analysis.ranking import rank
from search.analysis.rung_statistics import rung_visits
from search.analysis.trial_account import account
from search.experiment.audits import is_audit
from search.experiment.events import ReplicateEnded, ReplicateStarted, SpaceSet
from search.experiment.folder import Experiment, create_experiment
from search.experiment.history import History
from search.experiment.manifest import Data, Device, new_manifest
from search.policy.asha import is_exempt
from search.policy.state import SearchState
from spaces import Hyperparameters, Space, load_space
from tests.support.foreign import Call
from tests.support.simulation import Curve, numbers, result, run_result, simulate

CHANCE = 0.12


def crossing(trial: int, config: Hyperparameters, epoch: int) -> float:
    """Curves that cross; some stay at chance, some are tied."""
    if trial % 5 == 4:
        return 0.1
    return round(min(0.95, 0.15 + (trial * 31) % 11 / 20 + (trial * 7919) % 13 / 20 * epoch / 9), 2)


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["search.sampler=random", "search.trials=40", "confirm.top=0", *overrides])


def searched(space: Space, seed: int = 0, curve: Curve = crossing, chance: float | None = CHANCE) -> History:
    history = History([SpaceSet(space.as_dict(), [], 0.0)], {} if chance is None else {"accuracy": chance})
    simulate(SearchState(space, history), seed, trials_at_once=3, curve=curve)
    return history


@pytest.mark.parametrize("chance", [None, CHANCE])
@pytest.mark.parametrize("asha", ["adaptive", "stop"])
def test_each_recorded_reason_is_what_the_replay_says(asha: str, chance: float | None) -> None:
    for seed in range(3):
        space = space_with(f"search.asha={asha}", "search.audit_fraction=0.2")
        history = searched(space, seed, chance=chance)
        visits = rung_visits(history, space)
        statuses = set()
        for trial in history.trials.values():
            reached = [epoch for epoch in space.rung_epochs[:-1] if epoch <= trial.n_epochs]
            assert list(visits[trial.number]) == reached
            assert trial.end is not None
            last = visits[trial.number][reached[-1]]
            if trial.status == "stopped":
                assert last.reason == trial.end.reason
                assert last.epoch == trial.n_epochs
            passed = [visit for visit in visits[trial.number].values() if visit.epoch < trial.n_epochs]
            assert is_exempt(trial) or all(visit.reason is None for visit in passed)
            statuses.add((trial.status, is_exempt(trial), last.reason is None))
        assert {("stopped", False, False), ("completed", False, True), ("completed", True, False)} <= statuses


def test_the_place_the_cutoff_and_the_margin_are_numpy_s_over_the_journal() -> None:
    space = space_with("search.audit_fraction=0.2")
    history = searched(space, chance=None)
    visits = rung_visits(history, space)
    n_compared = 0
    for i, event in enumerate(history.results_in_order):
        if event.epoch not in space.rung_epochs[:-1]:
            continue
        before = [one for one in history.results_in_order[:i] if one.epoch == event.epoch]
        visit = visits[event.trial][event.epoch]
        assert visit.value == event.validation_accuracy
        assert visit.n == 1 + len(before)
        assert visit.place == 1 + sum(one.validation_accuracy > visit.value for one in before)
        if before:
            cutoff = np.percentile([one.validation_accuracy for one in before], 200 / 3)
            assert visit.cutoff == pytest.approx(cutoff)
            assert visit.margin == pytest.approx(event.validation_accuracy - cutoff)
            n_compared += 1
        else:
            assert (visit.cutoff, visit.margin, visit.reason) == (None, None, None)
    assert n_compared > 40


def test_earlier_decisions_are_replayed_under_the_space_of_their_time() -> None:
    space = space_with("search.trials=20")
    history = searched(space)
    stricter = space_with("search.trials=40", "search.reduction_factor=9", "search.grace_epochs=1")
    excluded = [2, 3]
    history.apply(SpaceSet(stricter.as_dict(), excluded, 1.0))
    simulate(SearchState(stricter, history), 1, curve=crossing)
    visits = rung_visits(history, stricter)
    stopped = [trial for trial in history.trials.values() if trial.status == "stopped"]
    assert {trial.number < 20 for trial in stopped} == {True, False}
    for trial in stopped:
        assert trial.end is not None
        assert visits[trial.number][trial.n_epochs].reason == trial.end.reason
    arrived = [one.trial for one in history.results_in_order if one.epoch == 1]
    assert visits[arrived[19]][1].n == 20
    assert visits[arrived[-1]][1].n == len(arrived) - len(excluded)
    assert "outside the space as it was changed later" in "".join(account(history, stricter, 2).lines())


def text_of(history: History, space: Space, number: int) -> str:
    text = "\n".join(account(history, space, number).lines())
    assert len(text.splitlines()) <= 10
    return text


def test_a_state_each() -> None:
    """Of one search by hand: running, failed, diverged, stopped, at chance, and nothing compared yet."""
    space = space_with("search.trials=9")
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)], {"accuracy": CHANCE}), fails_alone=True)
    numbers(state, 8)
    for number, value in ((1, 0.5), (2, 0.7), (3, 0.6), (4, 0.1)):
        state.record(result(number, 1, value))
    state.record(result(5, 1, 0.3, math.nan))
    state.fail(6, "the worker died")
    say = {number: text_of(state.history, space, number) for number in range(8)}
    assert say[0].startswith("trial 0 (baseline: no rung stops it): running, 0 of 9 epochs\n")
    assert "no result at a rung (epochs 1, 3)" in say[0]
    assert "rung 1: passed: 50.00%; place 1 of 1" in say[1]
    assert "rung 1: passed, 20.00 points ahead: 70.00%, cutoff 50.00%; place 1 of 2" in say[2]
    assert say[3].startswith("trial 3: stopped, 1 of 9 epochs\n")
    assert "rung 1: refused, 3.33 points short: 60.00% at rung 1, below its cutoff 63.33%; place 2 of 3" in say[3]
    assert "refused, 53.33 points short: at chance (10.00%) at rung 1, where others have learned" in say[4]
    assert say[5].startswith("trial 5: diverged, 1 of 9 epochs: the loss was not finite in epoch 1\n")
    assert next(account(state.history, space, 7).lines(is_live=False)).startswith("trial 7: unfinished, 0 of 9 epochs")
    assert say[6].startswith("trial 6: failed, 0 of 9 epochs: the worker died\n")


def test_a_rung_that_stops_nobody_yet_says_so() -> None:
    space = space_with("search.asha=adaptive", "search.trials=9")
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
    numbers(state, 3)
    state.record(result(1, 1, 0.5))
    state.record(result(2, 1, 0.4))
    passed = "rung 1: passed: 40.00%, which does not count before this rung has the order of the last one"
    assert f"{passed}; place 2 of 2" in text_of(state.history, space, 2)


def test_without_asha_no_rung_is_spoken_of() -> None:
    space = space_with("search.asha=off", "search.trials=3")
    text = text_of(searched(space), space, 1)
    assert "no trial is stopped: no rung before the end" in text
    assert "rung 1" not in text
    assert "audit" not in text


def test_audit_trials_say_what_the_rung_would_have_done_and_how_often_they_came_back() -> None:
    space = space_with("search.audit_fraction=0.4", "search.trials=20", "confirm.top=3")
    late = next(number for number in range(9, 20) if is_audit(number, space.search.seed, 0.4))

    def rises_late(trial: int, config: Hyperparameters, epoch: int) -> float:
        return 0.1 + 0.1 * epoch if trial == late else crossing(trial, config, epoch)

    history = searched(space_with("search.audit_fraction=0.4", "search.trials=20"), curve=rises_late)
    audits = [trial for trial in history.trials.values() if trial.audit]
    visits = rung_visits(history, space)
    ranks = {row.trial: row.rank for row in rank(history)}
    for trial in history.trials.values():
        found = account(history, space, trial.number)
        for rung in found.as_dict()["rungs"]:
            refused = [one.number for one in audits if visits[one.number][rung["epoch"]].reason]
            places = sorted(ranks[number] for number in refused)
            assert rung["refused_audit_ranks"] == places
    assert ranks[late] <= 3
    text = text_of(history, space, late)
    assert text.startswith(f"trial {late} (audit: no rung stops it): completed, 9 of 9 epochs\n")
    assert "rung 1: refused, " in text
    places = account(history, space, late).audit_ranks[1]
    back = f"{sum(place <= 3 for place in places)} came back among the best 3 (the best is on place {min(places)})"
    assert f"of {len(places)} audit trials that it refused, {back}" in text


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    space = space_with("search.trials=12", "confirm.top=2")
    data = Data(n_train=9, n_validation=9, class_names=["0", "1"], mean=[0.3], std=[0.3], content_sha256="0" * 64)
    manifest = new_manifest(space, "mine", Device(device="cpu", name="CPU", trials_at_once=2), data)
    made = create_experiment(tmp_path / "results", "mine", space, manifest)
    with made.exclusive():
        simulate(SearchState(space, made.history(), made.journal()), curve=crossing)
    return made


def test_the_command_says_it_as_text_and_as_json(call: Call, experiment: Experiment) -> None:
    history = experiment.history()
    stopped = next(trial for trial in history.trials.values() if trial.status == "stopped")
    assert stopped.end is not None
    code, output, errors = call("why", "mine", str(stopped.number))
    assert (code, errors) == (0, "")
    assert output.startswith(f"mine, trial {stopped.number}: stopped, {stopped.n_epochs} of 9 epochs\n")
    assert output.count(stopped.end.reason) == 1
    assert "replicates: none\n" in output
    assert re.search(
        rf"leaderboard: place \d+ of {len(history.trials)} by its forecast, \d+\.\d\d% ± \d+\.\d\d\n$", output
    )
    best = history.trials[rank(history)[0].trial]
    runs = [run for run in history.replicates.values() if run.trial == best.number]
    assert runs
    code, output, _ = call("why", str(best.number), "--format", "json")
    content = json.loads(output)
    assert (code, content["experiment"], content["trial"], content["rank"]) == (0, "mine", best.number, 1)
    assert [run["value"] for run in content["replicates"]] == [run.epochs[-1].validation_accuracy for run in runs]
    assert content["replicate_accuracy"] == rank(history)[0].replicate_accuracy
    first, *_ = content["rungs"]
    assert (first["epoch"], first["metric"], first["value"]) == (1, "accuracy", best.epochs[0].validation_accuracy)
    assert first["margin"] == first["value"] - first["cutoff"]
    assert 1 <= first["place"] <= first["n"] <= len(history.trials)
    assert "by its replicates" in call("why", "mine", str(best.number))[1]


def test_replicates_that_failed_diverged_or_run_are_named() -> None:
    space, history = space_with("search.asha=off"), searched(space_with("search.asha=off", "search.trials=3"))
    for run in range(4):
        history.apply(ReplicateStarted(run, 1, run + 1, 1.0))
    for run, loss, status in ((0, 1.0, "completed"), (1, math.nan, "diverged"), (2, 1.0, "failed")):
        history.apply(run_result(run, 1, 0.5, loss))
        history.apply(ReplicateEnded(run, status, "", 1.0))
    assert "replicates: 50.00%, diverged, failed, running (mean 25.00%, 1 of 2 diverged)" in text_of(history, space, 1)
    runs = account(history, space, 1).as_dict()["replicates"]
    assert [(run["status"], run["value"]) for run in runs] == [
        ("completed", 0.5),
        ("diverged", None),
        ("failed", 0.5),
        ("running", None),
    ]


def test_a_loss_is_shown_in_nats_and_less_of_it_is_better() -> None:
    space = space_with("search.metric=loss", "search.trials=12")
    state = SearchState(space, History([SpaceSet(space.as_dict(), [], 0.0)]))
    while (assignment := state.next_assignment()) and assignment.kind == "trial":
        number, epoch, goes_on = assignment.number, 0, True
        while goes_on:
            epoch += 1
            goes_on = state.record(result(number, epoch, 0.5, loss=2.0 + (number * 7 % 12) / 10 - epoch / 10))
    visits = rung_visits(state.history, space)
    stopped = [trial for trial in state.history.trials.values() if trial.status == "stopped"]
    assert len(stopped) > 3
    for trial in stopped:
        assert trial.end is not None
        visit = visits[trial.number][trial.n_epochs]
        assert visit.reason == trial.end.reason
        rung = account(state.history, space, trial.number).as_dict()["rungs"][-1]
        assert rung["value"] > rung["cutoff"] > 0 > rung["margin"]
        size = f"{rung['value'] - rung['cutoff']:.4f} nats short"
        assert f"{size}: {rung['value']:.4f} at rung {trial.n_epochs}, above its cutoff" in text_of(
            state.history, space, trial.number
        )
