"""Plain implementation of the same network and training loop, as the reference of the speed measurements."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset

from spaces import Hyperparameters
from trainable.augmentation.policy import AugmentationPolicy, geometric_transforms
from trainable.data.datasets import TrainingData

LOADER_WORKERS = 2


def separable(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
    )


def plain_block(in_channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, 24, 3, dilation=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(24, 48, 3, dilation=2, padding=1, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Dropout(dropout),
        separable(48, 64),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Dropout(dropout),
        separable(64, 64),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    )


class PlainNet(nn.Module):
    """`trainable.network.model.DepthwiseSeparableNet` with torch's layers and the same state dict keys.

    Args:
        n_classes: number of classes.
        dropout: probability that a unit is zeroed.
    """

    def __init__(self, n_classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(plain_block(channels, dropout) for channels in (3, 64, 64, 64)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Conv2d(64, n_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images → (N, n_classes) log-probabilities."""
        features = self.pool(self.blocks(images))
        return torch.log_softmax(self.classifier(features).flatten(1), dim=1)


@dataclass(frozen=True, slots=True)
class TextbookImages:
    """All images in memory.

    Attributes:
        train_images, validation_images: (N, H, W, 3) uint8.
        train_labels, validation_labels: (N,) int64.
        mean, std: mean and standard deviation per channel, RGB, for pixels scaled to 0 to 1.
        n_classes: number of classes.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    validation_images: NDArray[np.uint8]
    validation_labels: NDArray[np.int64]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    n_classes: int

    @classmethod
    def of(cls, data: TrainingData) -> "TextbookImages":
        """Copy the images of the project's trials, with the same split."""
        decoded = data.decoded
        everything = slice(None)
        return cls(
            *data.train.gather(everything),
            *data.validation.gather(everything),
            decoded.mean,
            decoded.std,
            len(decoded.class_names),
        )


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """Transforms one image per access."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: A.Compose) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(image=self.images[index])["image"], int(self.labels[index])


class TextbookTraining:
    """Training of one configuration: fp32, default memory format, SGD, StepLR, negative log-likelihood.

    Args:
        images: training and validation images.
        hyperparameters: the configuration.
        n_loader_workers: processes of each of the two DataLoaders; 0 for none.
    """

    def __init__(
        self, images: TextbookImages, hyperparameters: Hyperparameters, n_loader_workers: int = LOADER_WORKERS
    ) -> None:
        size = images.train_images.shape[1]
        policy = AugmentationPolicy.from_hyperparameters(hyperparameters, size, images.mean)
        to_tensor = [A.Normalize(mean=images.mean, std=images.std), ToTensorV2()]
        train_set = AugmentedImages(
            images.train_images, images.train_labels, A.Compose([*geometric_transforms(policy, size), *to_tensor])
        )
        validation_set = AugmentedImages(images.validation_images, images.validation_labels, A.Compose(to_tensor))
        # Persistent workers, which are faster than new workers in each epoch.
        loader = partial(
            DataLoader[Any],
            batch_size=hyperparameters.batch_size,
            num_workers=n_loader_workers,
            persistent_workers=n_loader_workers > 0,
        )
        self.train_loader = loader(train_set, shuffle=True)
        self.validation_loader = loader(validation_set)
        self.model = PlainNet(images.n_classes, hyperparameters.dropout)
        self.optimizer = SGD(
            self.model.parameters(),
            lr=hyperparameters.lr,
            momentum=hyperparameters.momentum,
            weight_decay=hyperparameters.weight_decay,
        )
        self.scheduler = StepLR(self.optimizer, hyperparameters.step_size, hyperparameters.gamma)

    def train_epoch(self, on_step: Callable[[], None] | None = None) -> float:
        """Train for one epoch, call `on_step` after each step, step the learning rate, and return the mean loss."""
        self.model.train()
        running_loss, n_images = 0.0, 0
        for images, labels in self.train_loader:
            self.optimizer.zero_grad()
            loss = F.nll_loss(self.model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            running_loss += loss.item() * len(labels)
            n_images += len(labels)
            if on_step:
                on_step()
        self.scheduler.step()
        return running_loss / n_images

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy (0 to 1) on the validation images."""
        self.model.eval()
        total_loss, n_right, n_images = 0.0, 0, 0
        for images, labels in self.validation_loader:
            log_probabilities = self.model(images)
            total_loss += F.nll_loss(log_probabilities, labels, reduction="sum").item()
            n_right += int((log_probabilities.argmax(1) == labels).sum().item())
            n_images += len(labels)
        return total_loss / n_images, n_right / n_images
