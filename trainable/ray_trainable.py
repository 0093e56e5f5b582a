"""`FitEvaluate` as a Ray Tune trainable, one step per epoch. The only file of `trainable` that imports Ray.

The driver imports this file too, for the class. Modules that only training needs are imported inside functions, so
that the driver does not load them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import tune

from spaces import Dataset, Hyperparameters, InputError
from spaces.schema import ClassWeights, Pooling
from trainable.compute import Compute
from trainable.data.cache import DecodedSet
from trainable.data.datasets import TrainingData, open_training_data
from trainable.data.shipping import PackedImages, pack, parts_of, unpack_once
from trainable.locations import fetched, is_url
from trainable.seeding import Purpose, RunSeed

if TYPE_CHECKING:
    from trainable.fit_evaluate import FitEvaluate


class TrialConfig(BaseModel):
    """Instructions to a worker for one trial or one replicate. Ray gets them as JSON values, which it can log.

    Attributes:
        name: name of the run's folder.
        purpose, seed_number: purpose and number of the run's `RunSeed`.
        decoded_folder: cache folder of the training images.
        resume_from: folder or URL of the checkpoint to resume from; None to start from the first epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    trial: int
    purpose: Purpose
    seed_number: int
    hyperparameters: Hyperparameters
    decoded_folder: Path
    dataset: Dataset
    experiment_seed: int
    compute: Compute
    class_weights: ClassWeights
    pooling: Pooling
    resume_from: str | None


@dataclass(frozen=True)
class ShippedImages:
    """Training images in the object store of the sending machine, for other machines to fetch.

    `parts` are references to the images' pixels, in order.
    """

    packed: PackedImages
    parts: tuple[ray.ObjectRef[Any], ...]

    def unpack(self) -> Path:
        """Put the images into this machine's cache, unless it has them already, and return their folder.

        Raises:
            InputError: the received images are damaged, or the cache holds other images in the folder.
        """
        return unpack_once(self.packed, (ray.get(part) for part in self.parts))


def ship(decoded: DecodedSet) -> ShippedImages:
    """Put images into Ray's object store, from which every machine of the cluster can fetch them."""
    return ShippedImages(pack(decoded), tuple(ray.put(part) for part in parts_of(decoded)))


class TrialTrainable(tune.Trainable):
    """Trains one configuration after another; an actor and its mapped images are reused for many trials.

    If the machines share no folder, `setup` receives the images. Otherwise workers map the driver's cache.
    """

    def setup(self, config: dict[str, Any], shipped: ShippedImages | None = None) -> None:
        import torch

        # One thread also makes results reproducible: the rounding of a sum depends on the number of threads.
        torch.set_num_threads(1)
        from trainable.data.batches import DeviceImages

        trial = TrialConfig.model_validate(config)
        self._shipped = shipped
        self._resident = DeviceImages(torch.device(trial.compute.device))
        self._run: FitEvaluate | None = None
        self._data: TrainingData | None = None
        self._opened: tuple[Path, Dataset] | None = None
        self._start(trial)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(TrialConfig.model_validate(new_config))
        return True

    def step(self) -> dict[str, Any]:
        result = self._current.run_epoch()
        # Set explicitly, because Ray's own count restarts at 1 after a resume.
        return {**asdict(result), "trial": self._trial, "training_iteration": result.epoch}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self._current.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]
        self._current.restore(Path(checkpoint))

    @property
    def _current(self) -> FitEvaluate:
        if self._run is None:
            raise RuntimeError("No trial has been started.")
        return self._run

    def _start(self, config: TrialConfig) -> None:
        from trainable.fit_evaluate import FitEvaluate

        if self._data is None or self._opened != (config.decoded_folder, config.dataset):
            folder = self._shipped.unpack() if self._shipped else config.decoded_folder
            self._data = open_training_data(folder, config.dataset)
            self._opened = (config.decoded_folder, config.dataset)
        self._trial = config.trial
        # Free the memory of the previous run before the new run allocates its own.
        self._run = None
        self._run = FitEvaluate(
            self._data.train,
            self._data.validation,
            config.hyperparameters,
            RunSeed(config.experiment_seed, config.seed_number, config.purpose),
            config.compute,
            self._resident,
            class_weights=config.class_weights,
            pooling=config.pooling,
        )
        if config.resume_from is not None and is_url(config.resume_from):
            with fetched(config.resume_from) as folder:
                restore_or_start_over(self._run, folder)
        elif config.resume_from is not None:
            restore_or_start_over(self._run, Path(config.resume_from))


def restore_or_start_over(run: FitEvaluate, folder: Path) -> None:
    """Resume from a checkpoint. If it is damaged or does not fit, print why and leave the run at its first epoch."""
    try:
        run.restore(folder)
    except InputError as error:
        print(f"{error} It is trained from its start.", flush=True)  # into this worker's log
