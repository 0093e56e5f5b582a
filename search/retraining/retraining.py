"""Retrains one configuration on all training images, tests it once, and exports it.

The files are written to a hidden folder of the experiment, which is renamed to `final/` when it is complete. A later
call with the same settings resumes from that folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from search.experiment.folder import Experiment
from search.experiment.history import Trial
from search.experiment.manifest import TestSetUse, git_commit, timestamp, versions
from search.policy.replicate_statistics import replicate_results
from search.retraining.answers import PREDICTIONS_FILE, Mistake, predictions_csv, surest_mistakes, write_mistakes
from search.retraining.export import Agreement, export_all
from search.retraining.model_card import model_card
from search.retraining.passes import Passes
from search.retraining.pictures import draw_confusion_matrix, draw_learning_curve
from search.retraining.scores import SeedScore, confusion_matrix, interval_95, per_class_accuracy, seed_score
from search.retraining.training_runs import FullRun, Progress, read_curve, restored, saved_epochs, train_all
from spaces import InputError, Space
from spaces.printable import printable
from trainable.checkpoint import tensors_sha256
from trainable.compute import Compute
from trainable.data.datasets import ImageSet, TrainingData
from trainable.data.test_set import check_test_set, open_test_set
from trainable.files import write_json, write_text

N_COMPARED_IMAGES = 256
REPLACED = ".final-replaced"
# Contains one folder per unfinished retraining.
WORK_FOLDER = ".retraining"


@dataclass(frozen=True)
class Retraining:
    """A planned retraining.

    Attributes:
        experiment: the experiment, locked by the caller.
        space: space of the experiment; its `dataset` gives the image size and the number of images per epoch.
        trial: trial whose configuration is retrained.
        data: the training images.
        n_seeds: number of runs.
        epochs: number of epochs of each run.
        compute: device and precision.
        n_cores: number of cores to use.
        again: reason for another use of the test set; None for the first use.
        passes: stretched schedule, if the epochs are passes over all images; None for the schedule of the search.
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
    passes: Passes | None = None

    @property
    def n_workers(self) -> int:
        return min(self.n_seeds, self.n_cores) if self.compute.device_type == "cpu" else 1

    @property
    def schedule(self) -> str | None:
        """One line about the stretched schedule."""
        return self.passes.sentence(self.trial.config.step_size) if self.passes else None

    @cached_property
    def folder(self) -> Path:
        """Folder of the unfinished retraining, named by everything that determines the weights but the seeds."""
        settings = {
            "trial": self.trial.number,
            "config": self.trial.config.as_dict(),
            "epochs": self.epochs,
            "step_epochs": str(self.passes.step_epochs(self.trial.config.step_size)) if self.passes else None,
            "dataset": self.space.dataset.model_dump(mode="json", exclude={"root", "download"}),
            "images_sha256": self.data.decoded.content_sha256,
            "experiment_seed": self.space.search.seed,
            "device": self.compute.device_type,
            "precision": self.compute.precision,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.experiment.folder / WORK_FOLDER / digest[:16]

    @property
    def runs(self) -> list[FullRun]:
        """One run for each seed."""
        config = self.trial.config
        return [
            FullRun(
                decoded_folder=self.data.decoded.folder,
                dataset=self.space.dataset,
                hyperparameters=config,
                experiment_seed=self.space.search.seed,
                number=number,
                epochs=self.epochs,
                compute=self.compute,
                threads=max(1, self.n_cores // self.n_workers),
                folder=self.folder / f"seed_{number}",
                step_epochs=self.passes.step_epochs(config.step_size) if self.passes else None,
            )
            for number in range(self.n_seeds)
        ]

    @property
    def n_epochs_saved(self) -> int:
        """Epochs of all seeds that were trained before and are not trained again.

        Raises:
            InputError: a checkpoint is not one of this retraining.
        """
        return sum(saved_epochs(run) for run in self.runs)


def unfinished_use_of_test_set(plan: Retraining) -> TestSetUse | None:
    """The last use of the test set, if it was for the checkpoints of `plan` and `final/` was not written."""
    openings = plan.experiment.manifest.test_openings
    if not openings or any(saved_epochs(run) < run.epochs for run in plan.runs):
        return None
    return openings[-1] if openings[-1].checkpoints_sha256 == _hashes(plan) else None


def must_be_allowed(plan: Retraining) -> None:
    """Raise InputError if the test set was used for other checkpoints and no reason for another use is given."""
    openings = plan.experiment.manifest.test_openings
    if not openings or plan.again or unfinished_use_of_test_set(plan):
        return
    last = openings[-1]
    unfinished = " That look has no result: the same settings and unchanged checkpoints would finish it."
    detail = unfinished if last.test_accuracy_mean is None else ""
    raise InputError(
        f"{plan.experiment.folder}: its test set was opened on {last.at} for trial {last.trial}.{detail} A second "
        f'look makes it a validation set; if you must, say why: --again "REASON" (it is recorded).'
    )


def retrain(plan: Retraining, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
    """Train all seeds, export the first, test each once, and rename the complete folder to `final/`.

    The test set comes last, so that an earlier failure does not use it up. Its files are decoded before the training,
    so that a damaged file is found then, but no image is predicted before the use is recorded. Between the record and
    `metrics.json`, only predictions are made and counted. After an interruption, the next call with the same settings
    resumes, and finishes the same use of the test set.

    Args:
        plan: the planned retraining.
        on_progress: called after each epoch that is trained in this call.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: the test split is missing or damaged, or a checkpoint belongs to another retraining.
        RunError: a seed diverged, an exported model differs from the network, or the use of the test set cannot be
            recorded at the results' URL.
    """
    must_be_allowed(plan)
    check_test_set(plan.space.dataset)
    _clear_leftovers(plan.experiment)
    train_all(plan.runs, plan.n_workers, on_progress)

    fits = [restored(run, plan.data.everything, run.epochs) for run in plan.runs]
    folder = plan.folder / "final"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    curve = [epoch for run in plan.runs for epoch in read_curve(run, run.epochs)]
    draw_learning_curve(folder / "learning_curve.png", curve, f"{_title(plan)}: retraining")
    write_text(folder / "config.yaml", _config(plan))
    class_names = plan.data.decoded.class_names
    agreements = export_all(folder, fits[0].network, fits[0].normalise, class_names, _sample(plan.data))
    facts = _facts(plan, agreements)

    opening, test_set = _opened_test_set(plan)
    predictions = [fit.predict(test_set) for fit in fits]
    scores = [seed_score(i, p, test_set.labels) for i, p in enumerate(predictions)]
    mistakes = surest_mistakes(predictions[0], test_set.labels, class_names)
    metrics = {**facts, **_test_results(scores, predictions[0], test_set.labels, class_names, mistakes)}
    write_json(folder / "metrics.json", metrics)
    _record_result(plan, opening, scores)

    write_text(folder / PREDICTIONS_FILE, predictions_csv(predictions[0], test_set.labels, class_names))
    write_mistakes(folder, test_set, mistakes)
    confusion = np.array(metrics["confusion_matrix"])
    draw_confusion_matrix(folder / "confusion_matrix.png", confusion, class_names, f"{_title(plan)}: test images")
    write_text(folder / "MODEL_CARD.md", model_card(plan.space, metrics, plan.experiment.manifest.test_openings))
    _put_in_place(folder, plan.experiment.final_folder)
    _remove_work(plan)
    return metrics


def _title(plan: Retraining) -> str:
    return f"{printable(plan.experiment.name)}, trial {plan.trial.number}"


def _hashes(plan: Retraining) -> list[str]:
    return [tensors_sha256(run.checkpoint(run.epochs)) for run in plan.runs]


def _opened_test_set(plan: Retraining) -> tuple[TestSetUse, ImageSet]:
    """The record of this use, written first so that no crash can hide it, and the test images."""
    opening = unfinished_use_of_test_set(plan)
    if opening is None:
        opening = TestSetUse(
            at=timestamp(),
            trial=plan.trial.number,
            config=plan.trial.config.as_dict(),
            epochs=plan.epochs,
            seeds=plan.n_seeds,
            reason=plan.again,
            checkpoints_sha256=_hashes(plan),
        )
        plan.experiment.publish_manifest(plan.experiment.manifest.with_use_of_test_set(opening, new=True))
    return opening, open_test_set(plan.space.dataset)


def _record_result(plan: Retraining, opening: TestSetUse, scores: list[SeedScore]) -> None:
    mean = float(np.mean([score.accuracy for score in scores]))
    finished = opening.model_copy(update={"test_accuracy_mean": mean})
    plan.experiment.write_manifest(plan.experiment.manifest.with_use_of_test_set(finished, new=False))


def _sample(data: TrainingData) -> NDArray[np.uint8]:
    # Training images, because comparing programs must not be another use of the test set.
    positions = np.linspace(0, len(data.everything) - 1, N_COMPARED_IMAGES).astype(np.int64)
    return data.everything.gather(np.unique(positions))[0]


def _facts(plan: Retraining, agreements: dict[str, Agreement]) -> dict[str, Any]:
    """The part of `metrics.json` that is known before the test set is opened."""
    last = plan.trial.last
    return {
        "experiment": plan.experiment.name,
        "trial": plan.trial.number,
        "epochs": plan.epochs,
        "passes": plan.passes.n_passes if plan.passes else None,
        "schedule": plan.schedule,
        "trained_on": {
            "split": "train + validation",
            "n_images": len(plan.data.everything),
            "images_per_epoch": plan.data.everything.epoch_images,
        },
        "device": plan.compute.device,
        "precision": plan.compute.precision,
        "search_validation_accuracy": last.validation_accuracy if last else None,
        "replicates": _replicates(plan),
        "exported_seed": 0,
        "exports": {name: asdict(agreement) for name, agreement in agreements.items()},
        "versions": versions(),
        "git_commit": git_commit(),
        "created_at": timestamp(),
    }


def _test_results(
    scores: list[SeedScore],
    log_probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    mistakes: list[Mistake],
) -> dict[str, Any]:
    """The other part of `metrics.json`. `log_probabilities` are those of the exported seed."""
    confusion = confusion_matrix(labels, log_probabilities.argmax(axis=1), len(class_names))
    accuracies = [score.accuracy for score in scores]
    return {
        "tested_on": {"split": "test", "n_images": len(labels)},
        "test_accuracy_per_seed": [asdict(score) for score in scores],
        "test_accuracy_mean": float(np.mean(accuracies)),
        "test_accuracy_interval_95": interval_95(accuracies),
        "interval_is_over": "seeds of the training; not over test images",
        "exported_test_accuracy": accuracies[0],
        "class_names": list(class_names),
        "per_class_accuracy": dict(zip(class_names, per_class_accuracy(confusion), strict=True)),
        "confusion_matrix": confusion.tolist(),
        "confusion_matrix_is": "of the exported seed; row = true class, column = predicted class",
        "surest_mistakes": [mistake.as_dict() for mistake in mistakes],
        "surest_mistakes_are": "of the exported seed; its answer to each test image is in test_predictions.csv",
    }


def _replicates(plan: Retraining) -> dict[str, float | int | None] | None:
    """Validation accuracy of the configuration's replicates; None without replicates."""
    replicates = replicate_results(plan.experiment.history()).get(plan.trial.number)
    if replicates is None:
        return None
    return {"n": replicates.n_runs, "validation_accuracy_mean": replicates.mean, "half_width_95": replicates.half_width}


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
    if plan.passes:
        step_epochs = float(plan.passes.step_epochs(plan.trial.config.step_size))
        content |= {"passes": plan.passes.n_passes, "step_epochs": step_epochs, "schedule": plan.schedule}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _put_in_place(folder: Path, final: Path) -> None:
    # Temporary folders and safetensors files are private; give them the usual permissions.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    replaced = final.with_name(REPLACED)
    if os.path.lexists(final):
        final.rename(replaced)
    folder.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_work(plan: Retraining) -> None:
    """Remove the checkpoints of this retraining; unfinished retrainings with other settings stay."""
    shutil.rmtree(plan.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
        plan.folder.parent.rmdir()


def _clear_leftovers(experiment: Experiment) -> None:
    """Remove files of a killed retraining; restore the old `final/` if it was killed between two renames."""
    replaced = experiment.folder / REPLACED
    if replaced.is_dir() and not experiment.final_folder.exists():
        replaced.rename(experiment.final_folder)
    for folder in experiment.folder.glob(".final-*"):
        shutil.rmtree(folder, ignore_errors=True)
