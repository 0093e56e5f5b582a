"""What a process keeps from one run to the next: images on the device, and a captured training step."""

import sys

import torch
from torch.optim import SGD

from spaces import Hyperparameters
from trainable.batches import DeviceImages
from trainable.cache import DecodedSet
from trainable.compute import Compute
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
    step = GraphedStep(network, normalise, optimizer, _autocast(compute), hyperparameters.batch_size, _say)
    return TrainingParts(network, normalise, optimizer, step)


def _in_place(
    network: DepthwiseSeparableNet, normalise: Normalise, compute: Compute
) -> tuple[DepthwiseSeparableNet, Normalise]:
    there = network.to(compute.device).to(memory_format=compute.memory_format)
    return there, normalise.to(compute.device)


def _autocast(compute: Compute) -> torch.dtype | None:
    return torch.bfloat16 if compute.precision == "bf16" else None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
