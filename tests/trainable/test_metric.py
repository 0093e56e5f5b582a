"""The metrics, compared with scikit-learn, and class weights."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from spaces import Dataset, Hyperparameters
from trainable.data.datasets import TrainingData, prepare_training_data
from trainable.fit_evaluate import FitEvaluate, balanced_class_weights
from trainable.metric import METRICS, label_scores
from trainable.seeding import RunSeed

_OFF = ("dropout", "flip_p", "shift_scale_rotate_p", "coarse_dropout_p")
PLAIN = Hyperparameters(lr=0.02, batch_size=200, **dict.fromkeys(_OFF, 0.0))


@pytest.fixture(scope="module")
def unequal(tiny_digits: Dataset) -> TrainingData:
    """Fewer images of the first three classes in training, and none of the last two in validation."""
    data = prepare_training_data(tiny_digits)
    rows = [row for i, row in enumerate(data.train.rows) if data.decoded.labels[row] > 2 or i % 3 == 0]
    held_out = [row for row in data.validation.rows if data.decoded.labels[row] < 8]
    train = type(data.train)(data.decoded, np.array(rows))
    return TrainingData(train, type(train)(data.decoded, np.array(held_out)), data.everything)


@pytest.mark.parametrize(
    ("true", "predicted"),
    [
        ([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0]),
        ([0, 0, 2, 2], [0, 0, 2, 0]),  # class 1 has no image and is not predicted
        ([0, 0, 2, 2], [0, 1, 2, 1]),  # class 1 has no image, but is predicted
        ([0, 1, 2], [1, 2, 0]),
        ([1, 1], [1, 1]),
    ],
)
@pytest.mark.filterwarnings("ignore:y_pred contains", "ignore:A single label", "ignore:The y_prob values")
def test_the_label_metrics_are_scikit_learn_s_also_for_absent_classes(true: list[int], predicted: list[int]) -> None:
    assert label_scores(confusion_matrix(true, predicted, labels=range(3))) == pytest.approx(
        {
            "accuracy": accuracy_score(true, predicted),
            "balanced_accuracy": balanced_accuracy_score(true, predicted),
            "macro_f1": f1_score(true, predicted, average="macro", zero_division=0),
        }
    )


@pytest.mark.filterwarnings("ignore:y_pred contains", "ignore:A single label", "ignore:The y_prob values")
def test_an_epoch_has_all_metrics_of_the_validation_images(unequal: TrainingData) -> None:
    run = FitEvaluate(unequal.train, unequal.validation, PLAIN, RunSeed(0))
    run.epoch_training(3)
    result = run.run_epoch()
    answers, labels = run.predict(unequal.validation), unequal.validation.labels
    said = answers.argmax(axis=1)
    assert set(said) - set(labels), "a class that has no image is predicted"
    expected = {
        "validation_accuracy": accuracy_score(labels, said),
        "validation_balanced_accuracy": balanced_accuracy_score(labels, said),
        "validation_macro_f1": f1_score(labels, said, average="macro", zero_division=0),
        "validation_loss": log_loss(labels, np.exp(answers.astype(float)), labels=range(10)),
    }
    assert {name: getattr(result, name) for name in expected} == pytest.approx(expected, rel=1e-4)
    assert set(expected) == {metric.column for metric in METRICS.values()}


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 2, 2], [0, 2, 2, 2]])
def test_balanced_class_weights_are_scikit_learn_s(labels: list[int]) -> None:
    found, classes = balanced_class_weights(np.array(labels), 3), np.unique(labels)
    expected = compute_class_weight("balanced", classes=classes, y=labels)
    np.testing.assert_allclose(found[torch.from_numpy(classes)], expected, rtol=1e-6)
    assert found[[c for c in range(3) if c not in labels]].sum() == 0


def test_class_weights_change_the_training_loss_and_leave_the_validation_loss(unequal: TrainingData) -> None:
    def runs(weights: str) -> FitEvaluate:
        return FitEvaluate(unequal.train, unequal.validation, PLAIN, RunSeed(0), class_weights=weights)  # type: ignore[arg-type]

    weighted, plain = runs("balanced"), runs("none")
    assert weighted.test(unequal.validation) == plain.test(unequal.validation), "no weights in an evaluation"
    labels: NDArray[np.int64] = unequal.train.labels
    images, _ = unequal.train.gather(slice(None))
    reference = runs("none")
    reference.network.train()
    log_probabilities = reference.network(reference.normalise(torch.from_numpy(images)))
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(10), y=labels), dtype=torch.float32)
    expected = F.nll_loss(log_probabilities, torch.from_numpy(labels), weights).item()
    assert weighted.train().loss == pytest.approx(expected, rel=1e-4)
    assert plain.train().loss != pytest.approx(expected, rel=1e-3)
    assert weighted.test(unequal.validation) != plain.test(unequal.validation)


@pytest.mark.parametrize(
    ("name", "better", "worse", "text"),
    [("accuracy", 0.9, 0.8, "90.00%"), ("macro_f1", 1.0, 0.0, "100.00%"), ("loss", -0.1, -0.2, "0.1000")],
)
def test_a_better_score_is_higher_and_its_text_is_the_value(name: str, better: float, worse: float, text: str) -> None:
    metric = METRICS[name]
    assert better > worse >= metric.worst
    assert metric.text(better) == text
    assert metric.value(metric.value(better)) == better
    assert METRICS["loss"].text(METRICS["loss"].worst) == "1e+39"
