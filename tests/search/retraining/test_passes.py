"""Retraining for a number of passes: the search's schedule, at the same shares of the training."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from search.retraining import model_card, retraining, session
from search.retraining.passes import Passes
from search.retraining.retraining import Retraining
from search.retraining.session import RetrainRequest
from spaces import Space
from tests.support.foreign import Call, make_experiment

# Of 50,000 images, 45,000 are trained on: 27 epochs of 15,000 are nine passes.
CIFAR = Passes(n_passes=27, n_images=50_000, search_epochs=27, search_epoch_images=15_000, n_search_images=45_000)


def test_nine_passes_become_27() -> None:
    assert CIFAR.step_epochs(5) == 5
    assert CIFAR.sentence(5) == (
        "27 passes instead of 9: step_size 5 epochs of 15,000 images becomes 5 epochs of 50,000 images"
    )
    ten = replace(CIFAR, n_passes=10)
    assert ten.step_epochs(5) == Fraction(50, 27)
    assert "10 passes instead of 9: step_size 5 epochs of 15,000 images becomes 1.852 epochs of" in ten.sentence(5)


@pytest.mark.parametrize("n_passes", [1, 9, 10, 27, 81])
@pytest.mark.parametrize("step_size", [1, 4, 5, 27, 100])
def test_the_rate_falls_at_the_same_shares_of_the_training(n_passes: int, step_size: int) -> None:
    step_epochs = replace(CIFAR, n_passes=n_passes).step_epochs(step_size)
    for epoch in range(n_passes):
        share, share_of_a_step = Fraction(epoch, n_passes), Fraction(step_size, 27)
        assert epoch // step_epochs == share // share_of_a_step


def planned(space: Space, results: Path, n_passes: int | None) -> Retraining:
    experiment = make_experiment(results, "mine", space)
    request = RetrainRequest(experiment=experiment, seeds=1, passes=n_passes)
    return session.planned(request, experiment.history().trials[0], False)


def test_a_retraining_for_passes_takes_all_images_an_epoch_and_says_so(tiny_space: Space, tmp_path: Path) -> None:
    space = replace(tiny_space, dataset=tiny_space.dataset.model_copy(update={"images_per_epoch": 160}))
    plain = planned(space, tmp_path / "plain", None)
    assert (plain.epochs, plain.data.everything.epoch_images, plain.schedule) == (3, 160, None)
    plan = planned(space, tmp_path / "passes", 4)
    assert plan.epochs == 4
    assert plan.data.everything.epoch_images == 400
    step_size = space.baseline.step_size
    assert plan.schedule == (
        f"4 passes instead of 1.5: step_size {step_size} epochs of 160 images becomes "
        f"{4 * step_size / 3:.4g} epochs of 400 images"
    )
    (run,) = plan.runs
    assert run.step_epochs == Fraction(4 * step_size, 3)
    assert run.dataset.images_per_epoch is None
    assert plan.folder.name != plain.folder.name
    config = yaml.safe_load(retraining._config(plan))
    assert (config["passes"], config["schedule"]) == (4, plan.schedule)
    assert config["step_epochs"] == pytest.approx(4 * step_size / 3)
    facts = retraining._facts(plan, {})
    assert (facts["passes"], facts["schedule"]) == (4, plan.schedule)
    assert plan.schedule in model_card._schedule(facts)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--passes", "0"), "--passes is 0, but must be at least 1."),
        (("--passes", "2.5"), "argument --passes: invalid int value: '2.5'"),
        (("--passes", "2", "--epochs", "2"), "argument --epochs: not allowed with argument --passes"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], expected: str, on_folder: Call, tiny_space: Space, tmp_path: Path
) -> None:
    experiment = make_experiment(tmp_path / "results", "mine", tiny_space)
    code, output, errors = on_folder("retrain", experiment.folder, *arguments)
    assert (code, output) == (2, "")
    (line,) = errors.splitlines()
    assert expected in line
