"""What a process keeps from one run to the next: images on the device, and a captured training step."""

import torch
from torch.optim import SGD

from spaces import Hyperparameters
from spaces.printable import warn, warn_once
from trainable.augmentation import AugmentationPolicy
from trainable.batches import Batches, DeviceBatches, DeviceImages, HostBatches, fits_on_device, resident_bytes
from trainable.cache import DecodedSet
from trainable.compute import Compute
from trainable.datasets import ImageSet
from trainable.devices import free_device_bytes
from trainable.graphed_step import EagerStep, GraphedStep, StepKeeper, StepSignature, TrainingParts
from trainable.model import DepthwiseSeparableNet
from trainable.normalisation import Normalise
from trainable.tensor_sgd import TensorSGD


class Workbench:
    """Makes the parts of a run, or hands on those of the run before where that saves time.

    One run at a time: let go of a run before the next one is made.
    """

    def __init__(self) -> None:
        self._keeper = StepKeeper()
        self._images: DeviceImages | None = None

    def images_on(self, device: torch.device) -> DeviceImages:
        """The images that lie on `device`."""
        if self._images is None or self._images.device != device:
            self._images = DeviceImages(device)
        return self._images

    def batches_for(
        self, train: ImageSet, validation: ImageSet | None, policy: AugmentationPolicy, compute: Compute
    ) -> Batches:
        """Where the batches of a run come from: the device if they are to lie there and fit, or else the host.

        Args:
            train, validation: images of the run.
            policy: how the training images are augmented.
            compute: of the run.
        """
        device = torch.device(compute.device)
        if not compute.resident:
            return HostBatches(train, policy, device)
        images = self.images_on(device)
        needed_bytes, free_bytes = resident_bytes(train, validation), free_device_bytes(device)
        if images.holds(train) or fits_on_device(needed_bytes, free_bytes):
            return DeviceBatches(train, policy, images)
        warn_once(
            f"The images need {needed_bytes / 1e9:.1f} GB of the GPU's memory, which has not so much free: they "
            f"stay on the host and are augmented there, which is slower. Lower `dataset.train_limit` or "
            f"`dataset.image_size` to have them on the GPU."
        )
        return HostBatches(train, policy, device)

    def parts_for(
        self,
        network: DepthwiseSeparableNet,
        decoded: DecodedSet,
        hyperparameters: Hyperparameters,
        compute: Compute,
    ) -> TrainingParts[SGD] | TrainingParts[TensorSGD]:
        """What trains `network`.

        Args:
            network: with its initial weights, on the host. Where a captured step is kept, only its state is used.
            decoded: images of the run.
            hyperparameters, compute: of the run.
        """
        normalise = Normalise(decoded.mean, decoded.std, compute.memory_format)
        if not compute.cuda_graph:
            return _eager_parts(network, normalise, hyperparameters, compute)
        signature = StepSignature(
            compute=compute,
            n_classes=len(decoded.class_names),
            image_size=decoded.image_size,
            batch_size=hyperparameters.batch_size,
            dropout=hyperparameters.dropout,
            mean=tuple(decoded.mean),
            std=tuple(decoded.std),
        )

        def build(network: DepthwiseSeparableNet) -> TrainingParts[TensorSGD]:
            return _graphed_parts(network, normalise, hyperparameters, compute)

        return self._keeper.parts_for(signature, network, hyperparameters, build)


def _eager_parts(
    network: DepthwiseSeparableNet, normalise: Normalise, hyperparameters: Hyperparameters, compute: Compute
) -> TrainingParts[SGD]:
    network, normalise = _in_place(network, normalise, compute)
    optimizer = SGD(
        network.parameters(),
        lr=hyperparameters.lr,
        momentum=hyperparameters.momentum,
        weight_decay=hyperparameters.weight_decay,
        fused=compute.device_type == "cuda",
    )
    return TrainingParts(network, normalise, optimizer, EagerStep(network, normalise, optimizer, _autocast(compute)))


def _graphed_parts(
    network: DepthwiseSeparableNet, normalise: Normalise, hyperparameters: Hyperparameters, compute: Compute
) -> TrainingParts[TensorSGD]:
    network, normalise = _in_place(network, normalise, compute)
    optimizer = TensorSGD(
        network.parameters(), hyperparameters.lr, hyperparameters.momentum, hyperparameters.weight_decay
    )
    step = GraphedStep(network, normalise, optimizer, _autocast(compute), hyperparameters.batch_size, warn)
    return TrainingParts(network, normalise, optimizer, step)


def _in_place(
    network: DepthwiseSeparableNet, normalise: Normalise, compute: Compute
) -> tuple[DepthwiseSeparableNet, Normalise]:
    there = network.to(compute.device).to(memory_format=compute.memory_format)
    return there, normalise.to(compute.device)


def _autocast(compute: Compute) -> torch.dtype | None:
    return torch.bfloat16 if compute.precision == "bf16" else None
