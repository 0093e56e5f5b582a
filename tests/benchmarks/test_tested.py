"""Intervals over seeds and test images: compared with scipy, and with simulated retrainings."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.tested import SeedScores, difference_of, half_width, main, mean_of


def test_of_two_samples_it_is_welchs_interval() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.8, 0.01, 3), generator.normal(0.7, 0.03, 5)
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert half_width([first, second]) == pytest.approx((interval.high - interval.low) / 2)
    assert half_width([np.ones(3), np.ones(4)]) == 0.0


def simulated(generator: np.random.Generator, mean: float, easiness: np.ndarray) -> SeedScores:
    """Three seeds, each a little better or worse, that answer images which are easy or hard for all of them."""
    logits = np.log(mean / (1 - mean)) + easiness + generator.normal(0, 0.1, (3, 1))
    right = generator.random((3, len(easiness))) < 1 / (1 + np.exp(-logits))
    names = tuple(map(str, range(len(easiness))))
    return SeedScores("trial", names, right.mean(axis=1), right.mean(axis=0))


def test_the_interval_holds_the_mean_over_all_seeds_and_images() -> None:
    generator = np.random.default_rng(1)
    many = generator.normal(0, 2, 1_000_000)
    truth = {mean: float((1 / (1 + np.exp(-np.log(mean / (1 - mean)) - many))).mean()) for mean in (0.7, 0.6)}
    n_covered = np.zeros(2)
    for _ in range(300):
        easiness = generator.normal(0, 2, 500)
        better, worse = (simulated(generator, mean, easiness) for mean in (0.7, 0.6))
        for i, ((found, half), expected) in enumerate(
            ((mean_of(better), truth[0.7]), (difference_of(better, worse), truth[0.7] - truth[0.6]))
        ):
            n_covered[i] += abs(found - expected) <= half
    assert all(n_covered >= 0.93 * 300)


def test_two_folders_are_compared_and_other_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, trial, n_right, first in (
        ("a", 3, (2, 2, 1, 2), 0),
        ("b", 0, (1, 0, 1, 2), 0),
        ("c", 1, (1, 0, 1, 2), 1),
    ):
        folder = tmp_path / name
        folder.mkdir()
        by_seed = [{"seed": seed, "accuracy": sum(n > seed for n in n_right) / 4} for seed in range(2)]
        (folder / "metrics.json").write_text(json.dumps({"trial": trial, "test_accuracy_per_seed": by_seed}))
        with (folder / "test_predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("image", "n_seeds_right"), *((first + i, n) for i, n in enumerate(n_right))])
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    table, result = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "a (trial 3)" in table
    found = json.loads(result)
    assert found[f"{tmp_path / 'a'} (trial 3)"]["mean"] == pytest.approx(7 / 8)
    assert found["difference"]["mean"] == pytest.approx(3 / 8)
    assert main([str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "other images" in capsys.readouterr().err
    (tmp_path / "c" / "metrics.json").write_text("{}")
    assert main([str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "is not what search.retrain of this version leaves" in capsys.readouterr().err
    assert main([str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err
