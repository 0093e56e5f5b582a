"""Trains several runs of one configuration in parallel processes, with a checkpoint after each epoch."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from search.processes.helper_pool import HelperPool
from spaces import Dataset, Hyperparameters, InputError
from spaces.errors import RunError, first_line
from spaces.plain_files import MIB, read_plain
from spaces.schema import ClassWeights, Pooling
from trainable.checkpoint import read_checkpoint
from trainable.compute import Compute
from trainable.data.datasets import ImageSet, open_training_data
from trainable.environment import ALLOCATOR_ENVIRONMENT, environment_with
from trainable.files import write_json
from trainable.fit_evaluate import EpochResult, FitEvaluate
from trainable.seeding import Purpose, RunSeed

CURVE_FILE = "curve.json"
MAX_CURVE_BYTES = 16 * MIB  # of 100,000 epochs
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class FullRun:
    """One run on training and validation images together.

    Attributes:
        decoded_folder: the cached training images.
        experiment_seed, number: determine the random streams of the run, which differ from those of all trials.
        threads: number of threads on a CPU.
        folder: folder of the checkpoints, from which the run is resumed.
        step_epochs: epochs between two drops of the learning rate; None for the configuration's `step_size`.
    """

    decoded_folder: Path
    dataset: Dataset
    hyperparameters: Hyperparameters
    experiment_seed: int
    number: int
    epochs: int
    compute: Compute
    threads: int
    folder: Path
    step_epochs: Fraction | None = None
    class_weights: ClassWeights = "none"
    pooling: Pooling = "average"

    @property
    def seed(self) -> RunSeed:
        return RunSeed(self.experiment_seed, self.number, Purpose.RETRAINING)

    def checkpoint(self, epoch: int) -> Path:
        """Folder of the checkpoint after `epoch` epochs."""
        return self.folder / f"checkpoint_{epoch:06d}"


@dataclass(frozen=True, slots=True)
class Progress:
    """A finished and saved epoch of a run."""

    number: int
    epoch: int
    train_loss: FiniteFloat
    train_accuracy: FiniteFloat
    seconds: FiniteFloat


_CURVE = TypeAdapter(list[Progress])


def train_all(runs: list[FullRun], n_workers: int, on_progress: Callable[[Progress], None]) -> None:
    """Train all runs from their newest checkpoints, `n_workers` at once, each in its own process.

    A finished run is not trained again. Each run leaves the checkpoint of its last epoch, and no process is left, also
    after an error or Ctrl-C. `on_progress` is called in this process after each epoch of each run.

    Raises:
        RunError: a run diverged, or a process was killed.
        InputError: a checkpoint belongs to another run.
    """
    waiting = [run for run in runs if saved_epochs(run) < run.epochs]
    with HelperPool() as pool:
        while waiting or pool.helpers:
            while waiting and len(pool.helpers) < n_workers:
                with environment_with(ALLOCATOR_ENVIRONMENT):
                    pool.start(partial(_train_and_send, waiting.pop(0)))
            for progress in pool.messages(POLL_S):
                on_progress(progress)


def saved_epochs(run: FullRun) -> int:
    """Number of epochs in the newest intact checkpoint of a run; 0 without one.

    Raises:
        InputError: a checkpoint belongs to another configuration, seed or number of epochs.
    """
    for folder in sorted(run.folder.glob("checkpoint_*"), reverse=True):
        try:
            state, _, _ = read_checkpoint(folder)
        except InputError:
            continue  # incomplete after a kill or a full disk: use the previous one
        state.must_belong_to(run.hyperparameters, run.seed, folder)
        if state.epoch > run.epochs or folder != run.checkpoint(state.epoch):
            raise InputError(f"{folder}: is a checkpoint after {state.epoch} of {run.epochs} epochs. Remove it.")
        return state.epoch
    return 0


def read_curve(run: FullRun, epoch: int) -> list[Progress]:
    """Results of each epoch up to `epoch`, from the checkpoint.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run.checkpoint(epoch) / CURVE_FILE
    try:
        curve = _CURVE.validate_json(read_plain(path, MAX_CURVE_BYTES), strict=True)
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: is damaged ({first_line(error)}). Remove its folder.") from None
    if [(one.number, one.epoch) for one in curve] != [(run.number, i) for i in range(1, epoch + 1)]:
        raise InputError(f"{path}: is not the curve of seed {run.number} over {epoch} epochs. Remove its folder.")
    return curve


def restored(run: FullRun, images: ImageSet, epoch: int) -> FitEvaluate:
    """A run restored after `epoch` epochs; 0 for a new run.

    Raises:
        InputError: the checkpoint is damaged, or belongs to another run.
    """
    fit = FitEvaluate(
        images,
        None,
        run.hyperparameters,
        run.seed,
        run.compute,
        step_epochs=run.step_epochs,
        class_weights=run.class_weights,
        pooling=run.pooling,
    )
    if epoch:
        fit.restore(run.checkpoint(epoch))
    return fit


def _train_and_send(run: FullRun, pipe: Connection) -> None:
    train(run, pipe.send)


def train(run: FullRun, on_progress: Callable[[Progress], None]) -> None:
    """Train a run from its newest checkpoint, in this process.

    Raises:
        RunError: its loss or a weight is not finite.
        InputError: a checkpoint belongs to another run.
    """
    torch.set_num_threads(run.threads)
    begin = saved_epochs(run)
    fit = restored(run, open_training_data(run.decoded_folder, run.dataset).everything, begin)
    curve = read_curve(run, begin) if begin else []

    def save(result: EpochResult) -> None:
        if result.diverged or not fit.is_finite:
            raise RunError(
                f"Retraining {run.number} diverged in epoch {result.epoch}: its loss or weights are not finite. "
                f"Nothing was tested. The configuration is at the edge of what trains; retrain another: --trial ID"
            )
        curve.append(Progress(run.number, result.epoch, result.train_loss, result.train_accuracy, result.train_s))
        _save(run, fit, curve)
        on_progress(curve[-1])

    fit.epoch_training(run.epochs - begin, save)


def _save(run: FullRun, fit: FitEvaluate, curve: list[Progress]) -> None:
    """Write the checkpoint of an epoch, and then remove the previous one."""
    folder = run.checkpoint(fit.epoch)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CURVE_FILE, [asdict(one) for one in curve])
    fit.save(folder)
    for other in run.folder.glob("checkpoint_*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
