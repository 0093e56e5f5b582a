"""Retraining for a number of passes: the search's schedule, at the same shares of the training."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.retraining import retraining, session
from search.retraining.retraining import Retraining
from spaces import Space
from tests.support.foreign import make_experiment


@pytest.fixture
def cifar(tiny_space: Space, tmp_path: Path) -> Retraining:
    """27 passes. Of 50,000 images, 45,000 are searched on: the search's 27 epochs of 15,000 are nine passes."""
    training = tiny_space.training.model_copy(update={"max_epochs": 27})
    dataset = tiny_space.dataset.model_copy(update={"images_per_epoch": 15_000})
    images: Any = SimpleNamespace(train=range(45_000), everything=range(50_000))
    plan = session.planned(make_experiment(tmp_path, "mine", tiny_space), 0, n_passes=27)
    return replace(plan, space=replace(tiny_space, training=training, dataset=dataset), data=images)


def test_the_schedule_is_stretched_and_says_so(cifar: Retraining) -> None:
    step_size = cifar.trial.config.step_size
    for n_passes, step_epochs in ((27, Fraction(step_size)), (10, Fraction(10 * step_size, 27))):
        plan = replace(cifar, n_passes=n_passes)
        assert plan.step_epochs == step_epochs
        assert plan.schedule == (
            f"{n_passes} passes instead of 9: step_size {step_size} epochs of 15,000 images becomes "
            f"{float(step_epochs):.4g} epochs of 50,000 images"
        )


@pytest.mark.parametrize("step_size", [1, 4, 5, 27, 100])
def test_the_rate_falls_at_the_same_shares_of_the_training(cifar: Retraining, step_size: int) -> None:
    trial: Any = SimpleNamespace(config=SimpleNamespace(step_size=step_size))
    for n_passes in (1, 9, 10, 27, 81):
        step_epochs = replace(cifar, n_passes=n_passes, trial=trial).step_epochs
        assert step_epochs is not None
        for epoch in range(n_passes):
            share, share_of_a_step = Fraction(epoch, n_passes), Fraction(step_size, 27)
            assert epoch // step_epochs == share // share_of_a_step


def test_a_retraining_for_passes_takes_all_images_an_epoch(tiny_space: Space, tmp_path: Path) -> None:
    space = replace(tiny_space, dataset=tiny_space.dataset.model_copy(update={"images_per_epoch": 160}))
    experiment = make_experiment(tmp_path, "mine", space)
    plain, plan = session.planned(experiment, 0, n_seeds=1), session.planned(experiment, 0, n_seeds=1, n_passes=4)
    assert (plain.epochs, plain.data.everything.epoch_images, plain.schedule) == (3, 160, None)
    assert (plan.epochs, plan.data.everything.epoch_images) == (4, 400)
    assert plan.folder.name != plain.folder.name
    (run,) = plan.runs
    assert (run.step_epochs, run.dataset.images_per_epoch) == (plan.step_epochs, None)
    config, facts = retraining._config(plan), retraining._facts(plan, {})
    for written in (config, facts):
        assert (written["passes"], written["schedule"]) == (4, plan.schedule)
    assert config["step_epochs"] == pytest.approx(4 * plan.trial.config.step_size / 3)
