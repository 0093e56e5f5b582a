"""`FitEvaluate` as a Ray Tune trainable, one step per epoch. The only file of `trainable` that imports Ray.

The driver imports this file too, for the class. Modules that only training needs are imported inside functions, so
that the driver does not load them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from spaces import Dataset, Hyperparameters, InputError
from trainable.compute import Compute
from trainable.data.cache import DecodedSet
from trainable.data.datasets import TrainingData, open_training_data
from trainable.data.shipping import PackedImages, pack, parts_of, unpack_once
from trainable.locations import fetched, is_url
from trainable.seeding import Purpose, RunSeed

if TYPE_CHECKING:
    from trainable.fit_evaluate import FitEvaluate


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """Instructions to a worker for one trial or one replicate.

    Attributes:
        name: name of the run's folder.
        trial: number of the trial.
        purpose, seed_number: purpose and number of the run's `RunSeed`.
        hyperparameters: the configuration.
        decoded_folder: cache folder of the training images.
        dataset: description of the data set, with its split.
        experiment_seed: seed of the experiment.
        compute: device, precision and implementation choices.
        resume_from: folder or URL of the checkpoint to resume from; None to start from the first epoch.
    """

    name: str
    trial: int
    purpose: Purpose
    seed_number: int
    hyperparameters: Hyperparameters
    decoded_folder: Path
    dataset: Dataset
    experiment_seed: int
    compute: Compute
    resume_from: Path | str | None

    def as_ray_config(self) -> dict[str, Any]:
        """Plain values, which Ray can send and log."""
        return {
            "name": self.name,
            "trial": self.trial,
            "purpose": int(self.purpose),
            "seed_number": self.seed_number,
            "hyperparameters": self.hyperparameters.as_dict(),
            "decoded_folder": str(self.decoded_folder),
            "dataset": self.dataset.model_dump(),
            "experiment_seed": self.experiment_seed,
            "compute": asdict(self.compute),
            "resume_from": None if self.resume_from is None else str(self.resume_from),
        }

    @classmethod
    def from_ray_config(cls, config: Mapping[str, Any]) -> TrialConfig:
        """Inverse of `as_ray_config`.

        Raises:
            TypeError: `config` has an unknown key.
        """
        values = dict(config)
        resume_from = values.pop("resume_from")
        return cls(
            purpose=Purpose(values.pop("purpose")),
            hyperparameters=Hyperparameters.from_mapping(values.pop("hyperparameters")),
            decoded_folder=Path(values.pop("decoded_folder")),
            dataset=Dataset.model_validate(values.pop("dataset")),
            compute=Compute(**values.pop("compute")),
            resume_from=Path(resume_from) if resume_from and not is_url(resume_from) else resume_from,
            **values,
        )


@dataclass(frozen=True)
class ShippedImages:
    """Training images in the object store of the sending machine, for other machines to fetch.

    Attributes:
        packed: description and labels of the images.
        parts: references to the images' pixels, in order.
    """

    packed: PackedImages
    parts: tuple[ray.ObjectRef[Any], ...]

    def unpack(self) -> Path:
        """Put the images into this machine's cache, unless the cache has them already.

        Returns:
            Folder of the images in the cache.

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

        trial = TrialConfig.from_ray_config(config)
        self._shipped = shipped
        self._resident = DeviceImages(torch.device(trial.compute.device))
        self._run: FitEvaluate | None = None
        self._data: TrainingData | None = None
        self._opened: tuple[Path, Dataset] | None = None
        self._start(trial)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(TrialConfig.from_ray_config(new_config))
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
        )
        if isinstance(config.resume_from, str):
            with fetched(config.resume_from) as folder:
                restore_or_start_over(self._run, folder)
        elif config.resume_from is not None:
            restore_or_start_over(self._run, config.resume_from)


def restore_or_start_over(run: FitEvaluate, folder: Path) -> None:
    """Resume from a checkpoint. If it is damaged or does not fit, print why and leave the run at its first epoch."""
    try:
        run.restore(folder)
    except InputError as error:
        print(f"{error} It is trained from its start.", flush=True)  # into this worker's log
