"""What retraining leaves of the one look at the test set: answers, the surest mistakes, pictures."""

import csv
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.retraining.answers import predictions_csv, surest_mistakes, write_mistakes
from search.retraining.pictures import draw_confusion_matrix, draw_learning_curve
from search.retraining.scores import confusion_matrix
from search.retraining.training_runs import Progress
from spaces import Dataset
from trainable.data.datasets import prepare_training_data

NAMES = ("cat", "../dog\n", "€" * 60)


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Of 40 images, those at 3, 7, 11 … are taken for the class after theirs, the surer the later."""
    labels = np.arange(40) % 3
    probabilities = np.full((40, 3), 0.01)
    for i, label in enumerate(labels):
        said = (label + 1) % 3 if i % 4 == 3 else label
        probabilities[i, said] = 0.5 + i / 100
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return np.log(probabilities).astype(np.float32), labels.astype(np.int64), NAMES


def test_the_surest_mistakes_come_first_and_right_answers_never(answers) -> None:  # type: ignore[no-untyped-def]
    mistakes = surest_mistakes(*answers, n_most=4)
    assert [mistake.image for mistake in mistakes] == [39, 35, 31, 27]
    assert [mistake.true for mistake in mistakes] == [NAMES[i % 3] for i in (39, 35, 31, 27)]
    assert all(mistake.true != mistake.predicted for mistake in mistakes)
    sure = [mistake.probability for mistake in mistakes]
    assert sure == sorted(sure, reverse=True)
    assert mistakes[0].probability == pytest.approx(0.89 / 0.91, abs=1e-6)
    assert mistakes[0].probability_of_true == pytest.approx(0.01 / 0.91, abs=1e-6)


def test_there_may_be_fewer_mistakes_or_none(answers) -> None:  # type: ignore[no-untyped-def]
    assert len(surest_mistakes(*answers)) == 10
    _, labels, names = answers
    right = np.log(np.eye(3, dtype=np.float32)[labels] + np.float32(1e-6))
    assert surest_mistakes(right, labels, names) == []


def test_every_answer_is_in_the_table_and_names_of_classes_stay_on_their_line(answers) -> None:  # type: ignore[no-untyped-def]
    text = predictions_csv(*answers)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(text.splitlines()) == 41
    assert [int(row["image"]) for row in rows] == list(range(40))
    wrong = [int(row["image"]) for row in rows if row["true"] != row["predicted"]]
    assert wrong == list(range(3, 40, 4))
    assert rows[1]["true"] == "../dog\\n"


def test_mistakes_are_written_as_the_images_that_were_tested_under_tame_names(answers, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = prepare_training_data(Dataset(name="digits", image_size=17, train_limit=100)).everything
    mistakes = surest_mistakes(*answers)
    write_mistakes(tmp_path, data, mistakes)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert files == sorted(mistake.file for mistake in mistakes)
    assert files[0] == "mistakes/01_true-cat_predicted-dog.png"
    for mistake in mistakes:
        expected = data.gather(np.array([mistake.image]))[0][0]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / mistake.file)), expected)


def test_the_learning_curve_has_a_line_a_seed(tmp_path: Path) -> None:
    progress = [Progress(seed, epoch, 1 / epoch + seed, 0.5, 1.0) for epoch in (2, 1, 3) for seed in range(8)]
    draw_learning_curve(tmp_path / "curve.png", progress, "$\\frac{ a trial")
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png"}
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 8, "lines in several colours"


@pytest.mark.parametrize("n_classes", [2, 10, 60, 300])
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
