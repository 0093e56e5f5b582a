"""`FitEvaluate`: the training and evaluation loop of one configuration."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from spaces import Hyperparameters, InputError
from spaces.schema import ClassWeights, Pooling
from trainable.augmentation.policy import AugmentationPolicy
from trainable.checkpoint import TrainingState, must_fit, read_checkpoint, write_checkpoint
from trainable.compute import Compute
from trainable.data.batches import (
    Batch,
    DeviceBatches,
    DeviceImages,
    HostBatches,
    batch_bounds,
    epoch_order,
    resident_batches,
)
from trainable.data.datasets import ImageSet
from trainable.metric import label_scores
from trainable.network.folding import folded
from trainable.network.model import DepthwiseSeparableNet, Normalise
from trainable.optimizer import EagerSGD
from trainable.schedule import StepDecay
from trainable.seeding import RunSeed, Stream

# Images per evaluation batch: small batches stay in a CPU core's cache, a GPU is faster with large batches.
EVALUATION_BATCH = {"cpu": 64, "cuda": 1024}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean negative log-likelihood and label metrics (0 to 1, see `label_scores`) over a set of images.

    Balanced accuracy and macro F1 are NaN for training steps, for which they are not computed.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float = math.nan
    macro_f1: float = math.nan


@dataclass(frozen=True, slots=True)
class EpochResult:
    """Result of one epoch.

    Attributes:
        epoch: number of the epoch, counted from 1.
        lr: learning rate in the epoch.
        train_loss, train_accuracy: averages over the epoch's training steps, with augmentation and dropout.
        validation_loss, validation_accuracy, validation_balanced_accuracy, validation_macro_f1: evaluation after the
            epoch; NaN without a validation set.
        train_s, validation_s: wall-clock time of training and of evaluation, in seconds.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float
    validation_macro_f1: float
    train_s: float
    validation_s: float

    @property
    def diverged(self) -> bool:
        """Whether the training loss is NaN or infinite; training cannot recover from that."""
        return not math.isfinite(self.train_loss)


class FitEvaluate:
    """Trains and evaluates one configuration; can be saved and restored between epochs.

    SGD on the negative log-likelihood, with a step decay of the learning rate. All randomness comes from `seed` and
    the epoch's number, so a restored run continues exactly like an uninterrupted run (bit for bit on a CPU with the
    same number of threads).

    Args:
        train: images to fit the weights to.
        validation: images to evaluate on after each epoch; None for no evaluation.
        seed: names the run's random streams.
        resident: cache of images on the device, shared by the runs of a process; None for a cache of this run.
        step_epochs: epochs between two decays of the learning rate; None for the configuration's `step_size`.
        class_weights: weights of the classes in the training loss, from the labels of `train`; evaluation has none.
        pooling: of the network.
    """

    def __init__(
        self,
        train: ImageSet,
        validation: ImageSet | None,
        hyperparameters: Hyperparameters,
        seed: RunSeed,
        compute: Compute = Compute(),  # noqa: B008 -- frozen
        resident: DeviceImages | None = None,
        step_epochs: Fraction | None = None,
        class_weights: ClassWeights = "none",
        pooling: Pooling = "average",
    ) -> None:
        self.hyperparameters = hyperparameters
        self.seed = seed
        self.compute = compute
        self.device = torch.device(compute.device)
        self.epoch = 0
        self._train_set = train
        self._validation_set = validation
        self._batches = self._input(resident)
        weights_generator = torch.Generator().manual_seed(seed.stream(Stream.WEIGHTS))
        self._n_classes = len(train.decoded.class_names)
        self._class_weights: Tensor | None = None
        if class_weights == "balanced":
            self._class_weights = balanced_class_weights(train.labels, self._n_classes).to(self.device)
        network = DepthwiseSeparableNet(
            self._n_classes, hyperparameters.dropout, weights_generator, compute.fused, pooling
        )
        self.network = network.to(compute.device).to(memory_format=compute.memory_format)
        normalise = Normalise(train.decoded.mean, train.decoded.std, compute.memory_format)
        self.normalise = normalise.to(compute.device)
        self.optimizer = EagerSGD(
            self.network.parameters(),
            lr=hyperparameters.lr,
            momentum=hyperparameters.momentum,
            weight_decay=hyperparameters.weight_decay,
            fused=compute.device_type == "cuda",
        )
        self.scheduler = StepDecay(
            self.optimizer, step_epochs or Fraction(hyperparameters.step_size), hyperparameters.gamma
        )

    @property
    def is_finite(self) -> bool:
        """Whether all weights and batch norm statistics are finite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.network.state_dict().values())

    @property
    def steps_per_epoch(self) -> int:
        return len(batch_bounds(self._train_set.epoch_images, self.hyperparameters.batch_size))

    def train(self, on_step: Callable[[], None] | None = None) -> Evaluation:
        """Train for one epoch, without a change of the learning rate or of the epoch's number.

        Returns:
            Loss (with class weights, the mean of the steps' weighted means) and accuracy averaged over the epoch's
            images, each computed in its own training step.
        """
        self.network.train()
        totals = _Totals(self.device)
        with self._seeded_dropout():
            for images, labels in self._training_batches():
                with self._autocast():
                    log_probabilities = self.network(self.normalise(images))
                loss = F.nll_loss(log_probabilities, labels, self._class_weights)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                n_right = (log_probabilities.detach().argmax(dim=1) == labels).sum()
                totals.add(loss.detach(), n_right, len(labels))
                if on_step:
                    on_step()
        return totals.evaluation()

    @torch.inference_mode()
    def test(self, images: ImageSet) -> Evaluation:
        """Evaluate `images` without augmentation or dropout, in the precision of the run."""
        totals = _Totals(self.device)
        confusion = torch.zeros(self._n_classes**2, dtype=torch.int64, device=self.device)
        network = folded(self.network, self.compute.dtype) if self.compute.folded_evaluation else self.network
        for log_probabilities, labels in self._predicted_batches(network, images):
            predicted = log_probabilities.argmax(dim=1)
            totals.add(F.nll_loss(log_probabilities, labels), (predicted == labels).sum(), len(labels))
            confusion.index_add_(0, labels * self._n_classes + predicted, torch.ones_like(labels))
        scores = label_scores(confusion.view(self._n_classes, self._n_classes).cpu().numpy())
        return Evaluation(totals.evaluation().loss, **scores)

    @torch.inference_mode()
    def predict(self, images: ImageSet) -> NDArray[np.float32]:
        """Predict `images`, in fp32 like the exported models.

        Returns:
            (N, n_classes) float32 log-probabilities, in the order of `images`.
        """
        predicted = self._predicted_batches(self.network, images, fp32=True)
        with _convolutions_in_fp32():
            return torch.cat([log_probabilities.cpu() for log_probabilities, _ in predicted]).numpy()

    def run_epoch(self, on_step: Callable[[], None] | None = None) -> EpochResult:
        """Train for one epoch, step the learning rate schedule, and evaluate on the validation set."""
        lr = float(self.scheduler.get_last_lr()[0])
        started_s = time.perf_counter()
        fitted = self.train(on_step)
        trained_s = time.perf_counter()
        self.scheduler.step()
        self.epoch += 1
        held_out = self.test(self._validation_set) if self._validation_set else Evaluation(math.nan, math.nan)
        return EpochResult(
            epoch=self.epoch,
            lr=lr,
            train_loss=fitted.loss,
            train_accuracy=fitted.accuracy,
            validation_loss=held_out.loss,
            validation_accuracy=held_out.accuracy,
            validation_balanced_accuracy=held_out.balanced_accuracy,
            validation_macro_f1=held_out.macro_f1,
            train_s=trained_s - started_s,
            validation_s=time.perf_counter() - trained_s,
        )

    def epoch_training(
        self,
        n_epochs: int,
        on_epoch: Callable[[EpochResult], None] | None = None,
        console: Console | None = None,
    ) -> list[EpochResult]:
        """Train and evaluate for `n_epochs` (1 or more) more epochs; stop early if training diverges.

        `on_epoch` is called with each result; a progress bar is shown on `console`, unless it is None.
        """
        results = []
        with Progress(console=console, transient=True, disable=console is None) as progress:
            task = progress.add_task("training", total=n_epochs * self.steps_per_epoch)
            for _ in range(n_epochs):
                results.append(self.run_epoch(lambda: progress.advance(task)))
                if on_epoch:
                    on_epoch(results[-1])
                if results[-1].diverged:
                    break
        return results

    def save(self, folder: Path) -> None:
        """Write the state of training, between two epochs, into `folder` (safetensors and JSON)."""
        state = TrainingState(self.hyperparameters, self.seed, self.epoch, self.scheduler.state_dict())
        write_checkpoint(folder, state, self.network.state_dict(), self.optimizer.state_dict())

    def restore(self, folder: Path) -> None:
        """Load the state that `save` wrote.

        Raises:
            InputError: the checkpoint is damaged, or belongs to another configuration, schedule, seed or network.
        """
        state, network_state, optimizer_state = read_checkpoint(folder)
        state.must_belong_to(self.hyperparameters, self.seed, folder)
        must_fit(self.network, network_state, optimizer_state, folder)
        try:
            self.scheduler.load_state_dict(state.scheduler)
            self.optimizer.load_state_dict(optimizer_state)
        except ValueError as error:
            raise InputError(f"{folder}: does not fit this training ({str(error)[:200]}). Remove it.") from None
        self.network.load_state_dict(network_state)
        _lay_as_parameters(self.optimizer)
        self.epoch = state.epoch

    def _input(self, resident: DeviceImages | None) -> HostBatches | DeviceBatches:
        decoded = self._train_set.decoded
        policy = AugmentationPolicy.from_hyperparameters(self.hyperparameters, decoded.image_size, decoded.mean)
        if not self.compute.resident:
            return HostBatches(self._train_set, policy, self.device)
        images = resident or DeviceImages(self.device)
        return resident_batches(self._train_set, self._validation_set, policy, images)

    def _training_batches(self) -> Iterator[Batch]:
        order = epoch_order(len(self._train_set), self._train_set.epoch_images, self.seed, self.epoch)
        bounds = batch_bounds(len(order), self.hyperparameters.batch_size)
        return self._batches.augmented(order, bounds, self.seed.stream(Stream.AUGMENTATION, self.epoch))

    def _predicted_batches(
        self, network: nn.Module, images: ImageSet, fp32: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        network.eval()
        size = EVALUATION_BATCH[self.device.type]
        dtype = next(network.parameters()).dtype
        for pixels, labels in self._batches.plain(images, size):
            with self._autocast(fp32):
                log_probabilities = network(self.normalise(pixels).to(dtype))
            yield log_probabilities, labels

    def _autocast(self, fp32: bool = False) -> torch.autocast:
        in_bf16 = self.compute.precision == "bf16" and not fp32
        # Each weight is used once per step, so a cache of cast weights saves nothing.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=in_bf16, cache_enabled=False)

    @contextmanager
    def _seeded_dropout(self) -> Iterator[None]:
        seed = self.seed.stream(Stream.DROPOUT, self.epoch)
        if self.network.dropout_noise is not None:
            self.network.dropout_noise.reseed(seed)
        # torch's dropout can only draw from the global generator of its device: fork and seed that for the epoch.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield


def balanced_class_weights(labels: NDArray[np.int64], n_classes: int) -> Tensor:
    """Weights n / (k n_c) for (n,) labels of k classes, class c n_c times, as scikit-learn's `balanced`.

    Returns:
        (n_classes,) float32; 0 for a class that does not occur.
    """
    counts = np.bincount(labels, minlength=n_classes)
    weights = np.where(counts, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


@contextmanager
def _convolutions_in_fp32() -> Iterator[None]:
    """Switch off TF32, which rounds to 10 bits and which torch allows by default for convolutions only."""
    # `torch.backends.cudnn.flags` would also reset the other flags.
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _lay_as_parameters(optimizer: Optimizer) -> None:
    """Give restored buffers the strides of their parameters, which fused kernels assume without a check."""
    for parameter, slots in optimizer.state.items():
        for name, buffer in slots.items():
            if isinstance(buffer, Tensor) and buffer.stride() != parameter.stride():
                slots[name] = torch.empty_like(parameter, dtype=buffer.dtype).copy_(buffer)


class _Totals:
    """Sums of loss and accuracy on the device, so that the host does not wait for a GPU in each step."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._n_right = torch.zeros((), dtype=torch.int64, device=device)
        self._n_images = 0

    def add(self, mean_loss: Tensor, n_right: Tensor, n_images: int) -> None:
        self._loss += mean_loss.double() * n_images
        self._n_right += n_right
        self._n_images += n_images

    def evaluation(self) -> Evaluation:
        return Evaluation(self._loss.item() / self._n_images, self._n_right.item() / self._n_images)
