"""Experiments without Ray or training, to be shown: a search over made-up curves, and what a retraining leaves."""

from pathlib import Path

import numpy as np

from search.experiment.folder import Experiment, create_experiment
from search.experiment.manifest import Data, Device, Session, TestSetUse, new_manifest
from search.policy.state import SearchState
from search.retraining.answers import (
    PREDICTIONS_FILE,
    confusion_matrix,
    predictions_csv,
    surest_mistakes,
    write_mistakes,
)
from spaces import Space
from tests.support.simulation import simulate
from trainable.data.datasets import TrainingData, prepare_training_data
from trainable.files import write_json, write_text

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
CLASS_NAMES = (HOSTILE, "$\\frac{1}", "三", *map(str, range(3, 10)))


def searched(results: Path, name: str, space: Space, data: TrainingData | None = None, seed: int = 3) -> Experiment:
    """A search that ran to its end, its replicates too."""
    images = Data(
        n_train=len(data.train) if data else 320,
        n_validation=len(data.validation) if data else 80,
        class_names=[str(i) for i in range(10)],
        mean=list(data.decoded.mean) if data else [0.3] * 3,
        std=list(data.decoded.std) if data else [0.3] * 3,
        content_sha256=data.decoded.content_sha256 if data else "0" * 64,
    )
    manifest = new_manifest(space, name, Device(device="cpu", name="CPU <of> a test", trials_at_once=2), images)
    session = Session(started_at="1970-01-01T00:00:00+00:00", ended_at="x", seconds=4000.0, end="all trials ended")
    made = create_experiment(results, name, space, manifest.with_session(session, new=True))
    with made.exclusive():
        simulate(SearchState(space, made.history(), made.journal()), seed)
    return made


def tested(results: Path, name: str, space: Space) -> Experiment:
    """A search with what retraining leaves: answers to images (here: to training images), most of them right."""
    data = prepare_training_data(space.dataset)
    experiment = searched(results, name, space, data)
    generator, labels = np.random.default_rng(0), data.everything.labels
    right = np.eye(10)[labels] * (generator.random(len(labels)) < 0.9)[:, None]
    scores = np.exp(generator.random((len(labels), 10)) + 2.0 * right)
    log_probabilities = np.log(scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    answers = (log_probabilities, labels, CLASS_NAMES)
    mistakes = surest_mistakes(*answers)
    final = experiment.final_folder
    final.mkdir()
    write_text(final / PREDICTIONS_FILE, predictions_csv([log_probabilities], labels, CLASS_NAMES))
    write_mistakes(final, data.everything, mistakes)
    confusion = confusion_matrix(labels, log_probabilities.argmax(axis=1), 10)
    accuracy = float(np.trace(confusion) / confusion.sum())
    metrics = {
        "experiment": experiment.name,
        "trial": 0,
        "epochs": 3,
        "tested_on": {"split": "test", "n_images": len(labels)},
        "test_accuracy_mean": accuracy,
        "test_accuracy_interval_95": [accuracy - 0.01, accuracy + 0.01],
        "test_accuracy_per_seed": [{"seed": i, "accuracy": accuracy, "loss": 0.1} for i in range(3)],
        "class_names": list(CLASS_NAMES),
        "confusion_matrix": confusion.tolist(),
        "surest_mistakes": mistakes,
    }
    write_json(final / "metrics.json", metrics)
    at = "2026-01-01T00:00:00+00:00"
    use = TestSetUse(at=at, trial=0, config={}, epochs=3, seeds=3, reason=None, test_accuracy_mean=accuracy)
    experiment.write_manifest(experiment.manifest.with_use_of_test_set(use, new=True))
    return experiment
