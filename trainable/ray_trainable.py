"""`FitEvaluate` as a Ray Tune trainable: one step an epoch. The only file here that imports Ray.

The driver imports this file too, to name the class: what only training needs is left to the workers.
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
    """What a worker is told of one trial, or of a replicate of one.

    Attributes:
        name: of the run's folder.
        trial: the trial's number.
        purpose, seed_number: together with `experiment_seed` name the random streams.
        hyperparameters: the configuration.
        decoded_folder: the cached training images.
        dataset: how they are cut.
        experiment_seed: the experiment's.
        compute: what to compute with.
        resume_from: a checkpoint's folder, or its URL, to go on from; None to start afresh.
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
        """Plain values, as Ray ships and logs them."""
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
        """The inverse of `as_ray_config`; unknown keys are an error."""
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
    """Training images on their way to other machines, in the object store of the one that ships them.

    Attributes:
        packed: what they are.
        parts: references to their pixels, in order.
    """

    packed: PackedImages
    parts: tuple[ray.ObjectRef[Any], ...]

    def unpack(self) -> Path:
        """Put them into this machine's cache, unless they are there; gives the folder.

        Raises:
            InputError: they came damaged, or the cache holds others.
        """
        return unpack_once(self.packed, (ray.get(part) for part in self.parts))


def ship(decoded: DecodedSet) -> ShippedImages:
    """Put images into Ray's object store, from which every machine of the cluster can take them."""
    return ShippedImages(pack(decoded), tuple(ray.put(part) for part in parts_of(decoded)))


class TrialTrainable(tune.Trainable):
    """Trains one configuration after the other; an actor and its mapped images serve many trials.

    Where machines have no folder in common, `setup` is handed the images; else workers map the driver's cache.
    """

    def setup(self, config: dict[str, Any], shipped: ShippedImages | None = None) -> None:
        import torch

        # Also what makes a trial's numbers repeatable: sums depend on how many threads share them.
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
        # The epoch's own number: after a resume Ray's count would start again at 1.
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
        # Its memory may be needed by the new run.
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
    """Go on from a checkpoint; one that does not fit leaves the run at its start, as if no checkpoint was left."""
    try:
        run.restore(folder)
    except InputError as error:
        print(f"{error} It is trained from its start.", flush=True)  # into this worker's log
