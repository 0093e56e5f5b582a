"""What the benchmarks compute and print, with made-up numbers; no timing is asserted."""

import json
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.speed import proposals, same_learning, trial_throughput, whole_search
from benchmarks.speed.images import Images, folder_settings, noise
from benchmarks.speed.report import machine, number_text, print_json, table_text
from benchmarks.speed.same_learning import ALL_OFF, RECIPE, compare
from benchmarks.speed.textbook import PlainNet, TextbookImages, TextbookTraining
from benchmarks.speed.trial_throughput import TEXTBOOK, Setup, Work, images_per_s, variants
from benchmarks.speed.whole_search import OURS, SearchRun, summary
from benchmarks.stats import difference
from spaces import Dataset, Hyperparameters, InputError, load_space
from trainable.compute import Compute
from trainable.data.datasets import TrainingData, prepare_training_data
from trainable.network.model import DepthwiseSeparableNet, Normalise


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return Images(Dataset(name="digits", image_size=18, validation_fraction=0.25), n_noise=40).open()


def test_the_textbooks_network_is_the_projects_network() -> None:
    torch.manual_seed(0)
    plain, ours = PlainNet(7, 0.1).eval(), DepthwiseSeparableNet(7, 0.1).eval()
    for name, statistic in plain.named_buffers():  # batch norm that does something
        if name.endswith(("running_mean", "running_var")):
            statistic.uniform_(0.5, 1.5)
    ours.load_state_dict(plain.state_dict(), strict=True)
    images = torch.randn(3, 3, 24, 24)
    torch.testing.assert_close(ours(images), plain(images))


def test_the_textbooks_images_are_the_projects_images(data: TrainingData) -> None:
    unchanged = Hyperparameters(flip_p=0.0, shift_scale_rotate_p=0.0, coarse_dropout_p=0.0, batch_size=4)
    training = TextbookTraining(TextbookImages.of(data), unchanged, n_loader_workers=0)
    expected, labels = data.validation.gather(slice(0, 4))
    found, found_labels = next(iter(training.validation_loader))
    normalise = Normalise(data.decoded.mean, data.decoded.std)
    torch.testing.assert_close(found, normalise(torch.from_numpy(expected)).contiguous(), atol=1e-5, rtol=1e-5)
    assert found_labels.tolist() == labels.tolist()


def test_the_textbooks_loop_trains_and_evaluates(data: TrainingData) -> None:
    n_steps = []
    training = TextbookTraining(TextbookImages.of(data), Hyperparameters(batch_size=8, step_size=1, gamma=0.5), 0)
    before = training.model.classifier.weight.detach().clone()
    train_loss = training.train_epoch(lambda: n_steps.append(1))
    validation_loss, accuracy = training.evaluate()
    assert math.isfinite(train_loss)
    assert math.isfinite(validation_loss)
    assert 0 <= accuracy <= 1
    assert len(n_steps) == math.ceil(len(data.train) / 8)
    assert not torch.equal(before, training.model.classifier.weight)
    assert training.scheduler.get_last_lr() == [0.025]


def test_images_per_second_count_only_what_lies_in_the_window_in_which_all_work() -> None:
    # The second process starts a second later and ends two seconds earlier: the window is seconds 1 to 4.
    first = Work(started_s=0.0, ended_s=[2.0, 4.0, 6.0], images_per_step=64)
    second = Work(started_s=1.0, ended_s=[2.0, 3.0, 4.0], images_per_step=10)
    assert images_per_s([first, second]) == pytest.approx((1.5 * 64 + 3 * 10) / 3)
    assert images_per_s([first]) == pytest.approx(32)


def test_the_output_is_an_aligned_table_and_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = table_text(("variant", "images/s"), [("one", number_text(1234.4)), ("another", number_text(math.nan))])
    assert text.splitlines() == [
        "variant  images/s",
        "-------  --------",
        "one         1,234",
        "another         -",
    ]
    facts = machine()
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["processor"]
    assert facts["cores"] >= 1
    print_json({"loss": math.nan, "runs": (1.0, math.inf), "inner": {1: "x\ny"}, "machine": facts})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert json.loads(printed) == {"loss": None, "runs": [1.0, None], "inner": {"1": "x\ny"}, "machine": facts}


def test_each_variant_leaves_one_thing_out() -> None:
    listed = variants(2, Compute(precision="bf16"))
    full = listed["full recipe"]
    assert full == Setup("ours", 2, 1, Compute(precision="bf16"))
    left_out = {"fp32": "precision", "no channels_last": "channels_last", "torch's own layers": "fused"}
    for name, field in left_out.items():
        differing = [f for f in Compute.__slots__ if getattr(listed[name].compute, f) != getattr(full.compute, f)]
        assert differing == [field]
    assert not listed["no allocator settings"].keep_memory
    assert listed[TEXTBOOK].n_threads is None
    assert "fp32" not in variants(2, Compute(precision="fp32"))


def test_the_throughput_table_has_the_factors_of_what_was_measured() -> None:
    runs = {TEXTBOOK: [100.0, 110.0, 90.0], "full recipe": [400.0]}
    text = trial_throughput.table(variants(2, Compute(precision="bf16")), runs)
    lines = {line.partition("  ")[0]: line for line in text.splitlines()}
    assert "4.00x" in lines["full recipe"]
    assert "0.25x" in lines[TEXTBOOK]
    assert "fp32" not in lines


def test_searches_are_compared_by_medians() -> None:
    runs = {
        TEXTBOOK: [SearchRun(wall_s, 0.0, 12, epochs, 0.5) for wall_s, epochs in ((300, 30), (200, 25), (400, 20))],
        OURS: [SearchRun(wall_s, 0.0, 12, epochs, 0.6, 0.1) for wall_s, epochs in ((100, 50), (90, 30), (110, 55))],
    }
    found = summary(runs)
    assert found["wall_s"] == {TEXTBOOK: 300, OURS: 100}
    assert found["ratio"] == 3
    assert found["ratio_per_epoch"] == pytest.approx(10 / 2)
    text = whole_search.table(runs)
    assert "60.00 %" in text
    assert "10.0 %" in text


def test_both_searches_get_the_same_space(tmp_path: Path) -> None:
    options = Namespace(images=None, train_limit=2560, trials=4, max_epochs=3, set=["training.batch_size=8"])
    space = load_space(*whole_search.choice(options, seed=2))
    assert (space.search.trials, space.search.seed, space.training.max_epochs) == (4, 2, 3)
    assert space.training.batch_size == 8
    options.images = str(tmp_path)
    space = load_space(*whole_search.choice(options, seed=1))
    assert (space.dataset.name, space.dataset.train_limit, space.dataset.root) == ("folder", 2560, str(tmp_path))
    with pytest.raises(InputError, match="--images is"):
        folder_settings(str(tmp_path / "nowhere"), None)


def test_differences_are_paired_and_may_be_negative() -> None:
    found = difference([0.70, 0.72, 0.71], [0.71, 0.74, 0.72])
    assert found.mean == pytest.approx(-4 / 300)
    assert found.interval is not None
    assert found.interval[0] < found.mean < found.interval[1]
    assert difference([0.7, 0.6, 0.8], [0.7, 0.65, 0.75]).includes_zero
    assert difference([0.5], [0.4]).includes_zero is None


def test_variants_are_compared_with_everything_off() -> None:
    compared = compare({RECIPE: [0.8, 0.9], ALL_OFF: [0.6, 0.7]})
    assert compared[RECIPE]["mean"] == pytest.approx(0.85)
    assert compared[RECIPE]["difference"] == pytest.approx(0.2)
    assert compared[ALL_OFF]["difference"] is None
    text = same_learning.table("trained with", compared)
    assert "+20.00" in text
    assert "NO" in text


def test_noise_has_every_class_and_digits_are_real() -> None:
    assert np.bincount(noise(100, 20).labels).tolist() == [10] * 10
    digits = load_space("quickstart", ["dataset.train_limit=100"]).dataset
    opened = Images(digits, None).open()
    assert opened.decoded.content_sha256 == prepare_training_data(digits).decoded.content_sha256


def test_proposals_of_each_sampler_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert proposals.main(["--trials", "12"]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)["seconds"]["12"]
    assert set(found) == set(proposals.SAMPLERS)
    assert all(0 < seconds < math.inf for seconds in found.values())
