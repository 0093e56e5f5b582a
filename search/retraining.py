"""Retrains one configuration on all training images, tests it once, and exports it."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from search.answers import PREDICTIONS_FILE, Mistake, predictions_csv, surest_mistakes, write_mistakes
from search.experiment import Experiment
from search.export import Agreement, export_all
from search.fresh_statistics import fresh_results
from search.guarded_folder import GuardedFolder
from search.manifest import Opening, git_commit, timestamp, versions
from search.model_card import model_card
from search.pictures import draw_confusion_matrix, draw_learning_curve
from search.records import Trial
from search.scores import SeedScore, confusion_matrix, interval_95, per_class_accuracy, seed_score
from search.training_runs import FullRun, Progress, train_all
from spaces import InputError, Space
from spaces.printable import printable
from trainable.compute import Compute
from trainable.datasets import ImageSet, TrainingData
from trainable.files import write_json, write_text
from trainable.fit_evaluate import FitEvaluate
from trainable.test_set import check_test_set, open_test_set

N_COMPARED_IMAGES = 256
REPLACED = ".final-replaced"


@dataclass(frozen=True)
class Retraining:
    """What to do.

    Attributes:
        experiment: held exclusively by the caller.
        space: of the experiment.
        trial: whose configuration is retrained.
        data: the training images.
        n_seeds: runs.
        epochs: of each.
        compute: what to compute with.
        n_cores: that may be used.
        again: why the test set is opened once more; None for the first time.
        guarded: ends the training processes with this one.
    """

    experiment: Experiment
    space: Space
    trial: Trial
    data: TrainingData
    n_seeds: int
    epochs: int
    compute: Compute
    n_cores: int
    again: str | None
    guarded: GuardedFolder

    @property
    def n_workers(self) -> int:
        return min(self.n_seeds, self.n_cores) if self.compute.device_type == "cpu" else 1


def must_be_allowed(experiment: Experiment, again: str | None) -> None:
    """Raise InputError if the test set was opened before and no reason is given to do it again."""
    openings = experiment.manifest.test_openings
    if openings and not again:
        last = openings[-1]
        raise InputError(
            f"{experiment.folder}: its test set was opened on {last.at} for trial {last.trial}. A second look "
            f'makes it a validation set; if you must, say why: --again "REASON" (it is recorded).'
        )


def retrain(plan: Retraining, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
    """Train all seeds, export the first, test each once, and put `final/` in place when all of it is there.

    The test set comes last: whatever fails before has not cost the one look at it. Its files are decoded before the
    training, so that a bad one is found then, but no image of it is predicted or handed out before the opening is on
    record.

    Args:
        plan: what to do.
        on_progress: called after each epoch of each seed.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: the test split is not there or not usable.
        RunError: a seed diverged, an exported model does not compute what the network computes, or the opening of the
            test set cannot be recorded where others would read it.
    """
    must_be_allowed(plan.experiment, plan.again)
    check_test_set(plan.space.dataset)
    _clear_leftovers(plan.experiment)
    with _new_final(plan) as folder:
        checkpoints = folder / "checkpoints"
        runs = _runs(plan, checkpoints)
        progress = _train(plan, runs, on_progress)
        # Before the test: what keeps a picture from being drawn must not cost the one look.
        draw_learning_curve(folder / "learning_curve.png", progress, f"{_title(plan)}: retraining")
        fits = [_trained(plan, run) for run in runs]
        class_names = plan.data.decoded.class_names
        agreements = export_all(folder, fits[0].network, fits[0].normalise, class_names, _sample(plan.data))
        opening, test_set = _opened_test_set(plan)

        predictions = [fit.predict(test_set) for fit in fits]
        scores = [seed_score(i, p, test_set.labels) for i, p in enumerate(predictions)]
        _record_result(plan, opening, scores)

        answers = (predictions[0], test_set.labels, class_names)
        mistakes = surest_mistakes(*answers)
        write_text(folder / PREDICTIONS_FILE, predictions_csv(*answers))
        write_mistakes(folder, test_set, mistakes)
        metrics = _metrics(plan, scores, predictions[0], test_set.labels, mistakes, agreements)
        confusion = np.array(metrics["confusion_matrix"])
        draw_confusion_matrix(folder / "confusion_matrix.png", confusion, class_names, f"{_title(plan)}: test images")
        write_json(folder / "metrics.json", metrics)
        write_text(folder / "config.yaml", _config(plan))
        write_text(folder / "MODEL_CARD.md", model_card(plan.space, metrics, plan.experiment.manifest.test_openings))
        shutil.rmtree(checkpoints)
        _put_in_place(folder, plan.experiment.final_folder)
        return metrics


@contextmanager
def _new_final(plan: Retraining) -> Iterator[Path]:
    """A folder that is to become `final/`; removed if it does not, whatever becomes of this process."""
    folder = Path(tempfile.mkdtemp(prefix=".final-", dir=plan.experiment.folder))
    plan.guarded.take_along(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runs(plan: Retraining, checkpoints: Path) -> list[FullRun]:
    return [
        FullRun(
            decoded_folder=plan.data.decoded.folder,
            dataset=plan.space.dataset,
            hyperparameters=plan.trial.config,
            experiment_seed=plan.space.search.seed,
            number=number,
            epochs=plan.epochs,
            compute=plan.compute,
            threads=max(1, plan.n_cores // plan.n_workers),
            checkpoint=checkpoints / str(number),
        )
        for number in range(plan.n_seeds)
    ]


def _train(plan: Retraining, runs: list[FullRun], on_progress: Callable[[Progress], None]) -> list[Progress]:
    """Train all seeds; what each epoch gave."""
    progress: list[Progress] = []

    def take_in(epoch: Progress) -> None:
        progress.append(epoch)
        on_progress(epoch)

    train_all(runs, plan.n_workers, take_in)
    return progress


def _title(plan: Retraining) -> str:
    return f"{printable(plan.experiment.name)}, trial {plan.trial.number}"


def _trained(plan: Retraining, run: FullRun) -> FitEvaluate:
    fit = FitEvaluate(plan.data.everything, None, run.hyperparameters, run.seed, plan.compute)
    fit.restore(run.checkpoint)
    return fit


def _opened_test_set(plan: Retraining) -> tuple[Opening, ImageSet]:
    """The record of the opening, which is made first, so that no crash can hide it, and the images."""
    opening = Opening(
        at=timestamp(),
        trial=plan.trial.number,
        config=plan.trial.config.as_dict(),
        epochs=plan.epochs,
        seeds=plan.n_seeds,
        reason=plan.again,
    )
    plan.experiment.publish_manifest(plan.experiment.manifest.with_opening(opening, new=True))
    return opening, open_test_set(plan.space.dataset)


def _record_result(plan: Retraining, opening: Opening, scores: list[SeedScore]) -> None:
    mean = float(np.mean([score.accuracy for score in scores]))
    finished = opening.model_copy(update={"test_accuracy_mean": mean})
    plan.experiment.write_manifest(plan.experiment.manifest.with_opening(finished, new=False))


def _sample(data: TrainingData) -> NDArray[np.uint8]:
    # Training images: the comparison is of programs, and must not be another look at the test set.
    positions = np.linspace(0, len(data.everything) - 1, N_COMPARED_IMAGES).astype(np.int64)
    return data.everything.gather(np.unique(positions))[0]


def _metrics(
    plan: Retraining,
    scores: list[SeedScore],
    log_probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    mistakes: list[Mistake],
    agreements: dict[str, Agreement],
) -> dict[str, Any]:
    names = plan.data.decoded.class_names
    confusion = confusion_matrix(labels, log_probabilities.argmax(axis=1), len(names))
    accuracies = [score.accuracy for score in scores]
    last = plan.trial.last
    return {
        "experiment": plan.experiment.name,
        "trial": plan.trial.number,
        "epochs": plan.epochs,
        "trained_on": {
            "split": "train + validation",
            "n_images": len(plan.data.everything),
            "images_per_epoch": plan.data.everything.epoch_images,
        },
        "device": plan.compute.device,
        "precision": plan.compute.precision,
        "tested_on": {"split": "test", "n_images": len(labels)},
        "search_validation_accuracy": last.validation_accuracy if last else None,
        "fresh_runs": _fresh_runs(plan),
        "test_accuracy_per_seed": [asdict(score) for score in scores],
        "test_accuracy_mean": float(np.mean(accuracies)),
        "test_accuracy_interval_95": interval_95(accuracies),
        "interval_is_over": "seeds of the training; not over test images",
        "exported_seed": 0,
        "exported_test_accuracy": accuracies[0],
        "class_names": list(names),
        "per_class_accuracy": dict(zip(names, per_class_accuracy(confusion), strict=True)),
        "confusion_matrix": confusion.tolist(),
        "confusion_matrix_is": "of the exported seed; row = true class, column = predicted class",
        "surest_mistakes": [mistake.as_dict() for mistake in mistakes],
        "surest_mistakes_are": "of the exported seed; its answer to each test image is in test_predictions.csv",
        "exports": {name: asdict(agreement) for name, agreement in agreements.items()},
        "versions": versions(),
        "git_commit": git_commit(),
        "created_at": timestamp(),
    }


def _fresh_runs(plan: Retraining) -> dict[str, float | int | None] | None:
    """What fresh runs on the search's own split said of the configuration; None where there were none."""
    fresh = fresh_results(plan.experiment.history()).get(plan.trial.number)
    if fresh is None:
        return None
    return {"n": fresh.n_runs, "validation_accuracy_mean": fresh.mean, "half_width_95": fresh.half_width}


def _config(plan: Retraining) -> str:
    decoded = plan.data.decoded
    content = {
        "hyperparameters": plan.trial.config.as_dict(),
        "epochs": plan.epochs,
        "image_size": decoded.image_size,
        "class_names": list(decoded.class_names),
        "mean": list(decoded.mean),
        "std": list(decoded.std),
        "dataset": plan.space.dataset.model_dump(),
        "experiment_seed": plan.space.search.seed,
    }
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _put_in_place(folder: Path, final: Path) -> None:
    # Temporary folders and safetensors' files are private; a model is meant to be handed on.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    replaced = final.with_name(REPLACED)
    if os.path.lexists(final):
        final.rename(replaced)
    folder.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def _clear_leftovers(experiment: Experiment) -> None:
    """Remove what a killed retraining left; bring back the old `final/` if it died between two renames."""
    replaced = experiment.folder / REPLACED
    if replaced.is_dir() and not experiment.final_folder.exists():
        replaced.rename(experiment.final_folder)
    for folder in experiment.folder.glob(".final-*"):
        shutil.rmtree(folder, ignore_errors=True)
