"""Retraining for a number of passes over all training images, with the schedule of the search stretched."""

from dataclasses import dataclass
from fractions import Fraction

from spaces import Space
from trainable.data.datasets import TrainingData


@dataclass(frozen=True, slots=True)
class Passes:
    """A retraining whose epochs are full passes over all training images.

    Attributes:
        n_passes: number of passes, which are the epochs of the retraining.
        n_images: number of images in a pass.
        search_epochs: `max_epochs` of the search; `step_size` counts its epochs.
        search_epoch_images: number of images in an epoch of the search.
        n_search_images: number of training images of the search.
    """

    n_passes: int
    n_images: int
    search_epochs: int
    search_epoch_images: int
    n_search_images: int

    @classmethod
    def of(cls, space: Space, data: TrainingData, n_passes: int) -> "Passes":
        """`n_passes` passes over `data` in place of the epochs of `space`."""
        train = data.train
        # From the space, because `data` may be reduced for the retraining.
        epoch_images = space.dataset.images_per_epoch or len(train)
        return cls(n_passes, len(data.everything), space.training.max_epochs, epoch_images, len(train))

    def step_epochs(self, step_size: int) -> Fraction:
        """Passes between two drops of the learning rate: the same fraction of the training as in the search."""
        return Fraction(step_size * self.n_passes, self.search_epochs)

    def sentence(self, step_size: int) -> str:
        """One line about the changed schedule, for messages."""
        before = self.search_epochs * self.search_epoch_images / self.n_search_images
        return (
            f"{self.n_passes} passes instead of {before:.3g}: step_size {step_size} epochs of "
            f"{self.search_epoch_images:,} images becomes {float(self.step_epochs(step_size)):.4g} epochs of "
            f"{self.n_images:,} images"
        )
