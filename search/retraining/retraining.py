"""Retrains one configuration on all training images, tests it once, and exports it.

The files are written to a hidden folder of the experiment, which is renamed to `final/` when it is complete. A later
call with the same settings resumes from that folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.experiment.folder import Experiment
from search.experiment.history import Trial
from search.experiment.manifest import TestSetUse, git_commit, timestamp, versions
from search.experiment.space_file import ALWAYS_WAS
from search.policy.replicate_statistics import replicate_results
from search.retraining.answers import PREDICTIONS_FILE, predictions_csv, results_on_test_set, write_mistakes
from search.retraining.export import INPUT_NAME, OUTPUT_NAME, export_all
from search.retraining.model_card import CARD_FILE, model_card
from search.retraining.pictures import draw_confusion_matrix, draw_learning_curve
from search.retraining.training_runs import FullRun, Progress, read_curve, restored, saved_epochs, train_all
from spaces import Dataset, InputError, Space
from spaces.printable import printable
from trainable.checkpoint import tensors_sha256
from trainable.compute import Compute
from trainable.data.datasets import ImageSet, TrainingData
from trainable.data.images import RESIZING_RULE
from trainable.data.test_set import check_test_set, open_test_set
from trainable.files import write_json, write_text

N_COMPARED_IMAGES = 256
REPLACED = ".final-replaced"
# Contains one folder per unfinished retraining.
WORK_FOLDER = ".retraining"


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """A planned retraining.

    Attributes:
        experiment: the experiment, locked by the caller.
        dataset: of the space; its epochs are all images if the retraining is one of `n_passes`.
        data: the training images of `dataset`.
        n_seeds: number of runs.
        epochs: number of epochs of each run.
        n_passes: number of passes over all images, equal to `epochs`; None for the schedule of the search.
        compute: device and precision.
        again: reason for another use of the test set; None for the first use.
    """

    experiment: Experiment
    space: Space
    trial: Trial
    dataset: Dataset
    data: TrainingData
    n_seeds: int
    epochs: int
    n_passes: int | None = None
    compute: Compute
    n_cores: int
    again: str | None

    @property
    def n_workers(self) -> int:
        return min(self.n_seeds, self.n_cores) if self.compute.device_type == "cpu" else 1

    @property
    def step_epochs(self) -> Fraction | None:
        """Passes between two drops of the learning rate: the same fraction of the training as in the search."""
        if self.n_passes is None:
            return None
        return Fraction(self.trial.config.step_size * self.n_passes, self.space.training.max_epochs)

    @property
    def schedule(self) -> str | None:
        """One line about the stretched schedule."""
        if self.step_epochs is None:
            return None
        n_images = len(self.data.train)
        epoch_images = self.space.dataset.images_per_epoch or n_images
        return (
            f"{self.n_passes} passes instead of {self.space.training.max_epochs * epoch_images / n_images:.3g}: "
            f"step_size {self.trial.config.step_size} epochs of {epoch_images:,} images becomes "
            f"{float(self.step_epochs):.4g} epochs of {len(self.data.everything):,} images"
        )

    @cached_property
    def folder(self) -> Path:
        """Folder of the unfinished retraining, named by everything that determines the weights but the seeds."""
        settings = {
            "trial": self.trial.number,
            "config": self.trial.config.as_dict(),
            "epochs": self.epochs,
            "step_epochs": None if self.step_epochs is None else str(self.step_epochs),
            "dataset": self.dataset.model_dump(mode="json", exclude={"root", "download"}),
            "images_sha256": self.data.decoded.content_sha256,
            "experiment_seed": self.space.search.seed,
            "device": self.compute.device_type,
            "precision": self.compute.precision,
        }
        for key, old in ALWAYS_WAS["training"].items():  # earlier versions had no such key
            if (value := getattr(self.space.training, key)) != old:
                settings[key] = value
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.experiment.folder / WORK_FOLDER / digest[:16]

    @property
    def runs(self) -> list[FullRun]:
        """One run for each seed."""
        return [
            FullRun(
                decoded_folder=self.data.decoded.folder,
                dataset=self.dataset,
                hyperparameters=self.trial.config,
                experiment_seed=self.space.search.seed,
                number=number,
                epochs=self.epochs,
                compute=self.compute,
                threads=max(1, self.n_cores // self.n_workers),
                folder=self.folder / f"seed_{number}",
                step_epochs=self.step_epochs,
                class_weights=self.space.training.class_weights,
                pooling=self.space.training.pooling,
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

    @property
    def checkpoint_hashes(self) -> list[str]:
        """Hashes of the weights of each seed, after the last epoch."""
        return [tensors_sha256(run.checkpoint(run.epochs)) for run in self.runs]


def unfinished_use_of_test_set(plan: Retraining) -> TestSetUse | None:
    """The last use of the test set, if it was for the checkpoints of `plan` and `final/` was not written."""
    openings = plan.experiment.manifest.test_openings
    if not openings or plan.n_epochs_saved < plan.n_seeds * plan.epochs:
        return None
    return openings[-1] if openings[-1].checkpoints_sha256 == plan.checkpoint_hashes else None


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
    resumes, and finishes the same use of the test set. `on_progress` is called after each epoch that is trained now.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: the test split is missing or damaged, or a checkpoint belongs to another retraining.
        RunError: a seed diverged, an exported model differs from the network, or the use of the test set cannot be
            recorded at the results' URL.
    """
    must_be_allowed(plan)
    check_test_set(plan.dataset)
    _clear_leftovers(plan.experiment)
    train_all(plan.runs, plan.n_workers, on_progress)

    fits = [restored(run, plan.data.everything, run.epochs) for run in plan.runs]
    folder = plan.folder / "final"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    title = f"{printable(plan.experiment.name)}, trial {plan.trial.number}"
    curve = [epoch for run in plan.runs for epoch in read_curve(run, run.epochs)]
    draw_learning_curve(folder / "learning_curve.png", curve, f"{title}: retraining")
    write_json(folder / "config.json", _config(plan))
    class_names = plan.data.decoded.class_names
    exports = export_all(folder, fits[0].network, fits[0].normalise, class_names, _sample(plan.data))
    facts = _facts(plan, exports)

    opening, test_set = _opened_test_set(plan)
    predictions = [fit.predict(test_set) for fit in fits]
    metrics = facts | results_on_test_set(predictions, test_set.labels, class_names)
    write_json(folder / "metrics.json", metrics)
    opening = opening.model_copy(update={"test_accuracy_mean": metrics["test_accuracy_mean"]})
    plan.experiment.write_manifest(plan.experiment.manifest.with_use_of_test_set(opening, new=False))

    answers = predictions_csv(predictions, test_set.labels, class_names, test_set.decoded.names)
    write_text(folder / PREDICTIONS_FILE, answers)
    write_mistakes(folder, test_set, metrics["surest_mistakes"])
    confusion = np.array(metrics["confusion_matrix"])
    draw_confusion_matrix(folder / "confusion_matrix.png", confusion, class_names, f"{title}: test images")
    write_text(folder / CARD_FILE, model_card(plan.space, metrics, plan.experiment.manifest.test_openings))
    _put_in_place(folder, plan.experiment.final_folder)
    shutil.rmtree(plan.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: unfinished retrainings with other settings stay
        plan.folder.parent.rmdir()
    return metrics


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
            checkpoints_sha256=plan.checkpoint_hashes,
        )
        plan.experiment.publish_manifest(plan.experiment.manifest.with_use_of_test_set(opening, new=True))
    return opening, open_test_set(plan.dataset)


def _sample(data: TrainingData) -> NDArray[np.uint8]:
    # Training images, because comparing programs must not be another use of the test set.
    positions = np.linspace(0, len(data.everything) - 1, N_COMPARED_IMAGES).astype(np.int64)
    return data.everything.gather(np.unique(positions))[0]


def _facts(plan: Retraining, exports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The part of `metrics.json` that is known before the test set is opened."""
    last, metric = plan.trial.last, plan.trial.metric
    replicates = replicate_results(plan.experiment.history()).get(plan.trial.number)
    return {
        "experiment": plan.experiment.name,
        "trial": plan.trial.number,
        "epochs": plan.epochs,
        "passes": plan.n_passes,
        "schedule": plan.schedule,
        "trained_on": {
            "split": "train + validation",
            "n_images": len(plan.data.everything),
            "images_per_epoch": plan.data.everything.epoch_images,
        },
        "device": plan.compute.device,
        "precision": plan.compute.precision,
        "class_weights": plan.space.training.class_weights,
        "metric": metric.name,
        "search_validation_accuracy": last.validation_accuracy if last else None,
        "search_epochs": plan.trial.n_epochs,
        f"search_{metric.column}": metric.value(metric.score(last)) if last else None,
        "replicates": replicates
        and {
            "n": replicates.n_runs,
            f"{metric.column}_mean": metric.value(replicates.mean),
            "half_width_95": replicates.half_width,
        },
        "exported_seed": 0,
        "exports": exports,
        "versions": versions(),
        "git_commit": git_commit(),
        "created_at": timestamp(),
    }


def _config(plan: Retraining) -> dict[str, Any]:
    """Content of `config.json`; without paths of this machine, because the folder is made to be published."""
    decoded = plan.data.decoded
    size = decoded.image_size
    content = {
        "class_names": list(decoded.class_names),
        "preprocessing": {
            "image_size": size,
            "resize": RESIZING_RULE,
            "mean": list(decoded.mean),
            "std": list(decoded.std),
            "normalise": "(pixel / 255 - mean) / std by channel; part of model.onnx and model.pt2",
        },
        "input": {"name": INPUT_NAME, "dtype": "uint8", "layout": "NHWC", "shape": ["N", size, size, 3]},
        "output": {"name": OUTPUT_NAME, "dtype": "float32", "shape": ["N", len(decoded.class_names)]},
        "hyperparameters": plan.trial.config.as_dict(),
        "epochs": plan.epochs,
        "dataset": plan.dataset.model_dump(exclude={"root", "download"}),
        "experiment_seed": plan.space.search.seed,
        "class_weights": plan.space.training.class_weights,
        "pooling": plan.space.training.pooling,
    }
    if plan.step_epochs is not None:
        content |= {"passes": plan.n_passes, "step_epochs": float(plan.step_epochs), "schedule": plan.schedule}
    return content


def _put_in_place(folder: Path, final: Path) -> None:
    # Temporary folders and safetensors files are private; give them the usual permissions.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    replaced = final.with_name(REPLACED)
    if os.path.lexists(final):
        final.rename(replaced)
    folder.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def _clear_leftovers(experiment: Experiment) -> None:
    """Remove files of a killed retraining; restore the old `final/` if it was killed between two renames."""
    replaced = experiment.folder / REPLACED
    if replaced.is_dir() and not experiment.final_folder.exists():
        replaced.rename(experiment.final_folder)
    for folder in experiment.folder.glob(".final-*"):
        shutil.rmtree(folder, ignore_errors=True)
