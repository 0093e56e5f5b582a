"""What retraining leaves of the one look at the test set: scores, answers, the surest mistakes, pictures."""

import csv
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from search.retraining.answers import (
    confusion_matrix,
    interval_95,
    per_class_accuracy,
    predictions_csv,
    score,
    surest_mistakes,
    write_mistakes,
)
from search.retraining.pictures import draw_confusion_matrix, draw_learning_curve
from search.retraining.training_runs import Progress
from spaces import Dataset
from trainable.data.datasets import prepare_training_data

Answers = tuple[np.ndarray, np.ndarray, tuple[str, ...]]
NAMES = ("cat", "../dog\n", "€" * 60)


@pytest.fixture(scope="module")
def answers() -> Answers:
    """Of 80 images, those at 3, 7, 11 … are taken for the class after theirs, the surer the later."""
    labels = np.arange(80) % 3
    probabilities = np.full((80, 3), 0.01)
    for i, label in enumerate(labels):
        said = (label + 1) % 3 if i % 4 == 3 else label
        probabilities[i, said] = 0.1 + i / 100
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return np.log(probabilities).astype(np.float32), labels.astype(np.int64), NAMES


def test_the_interval_is_student_s() -> None:
    values = [0.90, 0.92, 0.94]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval_95(values) == pytest.approx((expected.low, expected.high))
    assert interval_95([0.9]) is None
    assert interval_95([1.0, 0.98]) == (pytest.approx(0.8629, abs=1e-3), 1.0)


def test_scores_count_who_is_taken_for_whom() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]], dtype=np.float32))
    loss = -np.log([0.9, 0.2, 0.7, 0.4, 0.9]).mean()
    recalls_and_f1 = {"balanced_accuracy": pytest.approx((1 / 2 + 2 / 3) / 2), "macro_f1": pytest.approx(7 / 12)}
    assert score(probabilities, labels) == {"accuracy": 0.6, "loss": pytest.approx(loss, rel=1e-5), **recalls_and_f1}
    confusion = confusion_matrix(labels, probabilities.argmax(1), 3)
    assert confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert per_class_accuracy(confusion) == [0.5, pytest.approx(2 / 3), None]


def test_the_16_surest_mistakes_come_first_and_right_answers_never(answers: Answers) -> None:
    mistakes = surest_mistakes(*answers)
    assert [mistake["image"] for mistake in mistakes] == list(range(79, 18, -4))
    first = mistakes[0]
    assert (first["true"], first["predicted"]) == (NAMES[1], NAMES[2])
    assert first["probability"] == pytest.approx(0.89 / 0.91, abs=1e-6)
    assert first["probability_of_true"] == pytest.approx(0.01 / 0.91, abs=1e-6)
    _, labels, names = answers
    right = np.log(np.eye(3, dtype=np.float32)[labels] + np.float32(1e-6))
    assert surest_mistakes(right, labels, names) == []


def test_every_answer_is_in_the_table_and_names_of_classes_stay_on_their_line(answers: Answers) -> None:
    log_probabilities, labels, names = answers
    text = predictions_csv([log_probabilities, np.log(np.eye(3, dtype=np.float32)[labels] + 1e-6)], labels, names)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(text.splitlines()) == 81
    assert [int(row["image"]) for row in rows] == list(range(80))
    assert [int(row["image"]) for row in rows if row["true"] != row["predicted"]] == list(range(3, 80, 4))
    assert [int(row["n_seeds_right"]) for row in rows] == [1 if i % 4 == 3 else 2 for i in range(80)]
    assert rows[1]["true"] == "../dog\\n"


def test_mistakes_are_written_as_the_images_that_were_tested_under_tame_names(answers: Answers, tmp_path: Path) -> None:
    data = prepare_training_data(Dataset(name="digits", image_size=17, train_limit=100)).everything
    mistakes = surest_mistakes(*answers)
    write_mistakes(tmp_path, data, mistakes)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert files == sorted(mistake["file"] for mistake in mistakes)
    assert files[0] == "mistakes/01_true-dog_predicted-class.png"
    for mistake in mistakes:
        expected = data.gather(np.array([mistake["image"]]))[0][0]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / mistake["file"])), expected)


def test_the_learning_curve_has_a_line_a_seed(tmp_path: Path) -> None:
    progress = [Progress(seed, epoch, 1 / epoch + seed, 0.5, 1.0) for seed in range(8) for epoch in (1, 2, 3)]
    draw_learning_curve(tmp_path / "curve.png", progress, "$\\frac{ a trial")
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png"}
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 8, "lines in several colours"


@pytest.mark.parametrize("n_classes", [2, 10, 60])
def test_a_confusion_matrix_of_any_size_and_names_is_drawn(n_classes: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    confusion = confusion_matrix(
        generator.integers(0, n_classes, 500), generator.integers(0, n_classes, 500), n_classes
    )
    names = ["$\\frac{", "猫", "a" * 200, *map(str, range(n_classes))][:n_classes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion_matrix(tmp_path / "matrix.png", confusion, names, "of $x^")
    with Image.open(tmp_path / "matrix.png") as image:
        assert image.format == "PNG"
        assert max(image.size) < 2000
