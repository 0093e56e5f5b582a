"""Retraining for a number of passes over the images, with the search's schedule stretched to them."""

from dataclasses import dataclass
from fractions import Fraction

from spaces import Space
from trainable.data.datasets import TrainingData


@dataclass(frozen=True, slots=True)
class Passes:
    """A retraining whose epochs are full passes over all training images.

    Attributes:
        n_passes: epochs of the retraining.
        n_images: images that a pass takes.
        search_epochs: `max_epochs` of the search, in whose epochs `step_size` was found.
        search_epoch_images: images that an epoch of the search took.
        n_search_images: images that the search trained on.
    """

    n_passes: int
    n_images: int
    search_epochs: int
    search_epoch_images: int
    n_search_images: int

    @classmethod
    def of(cls, space: Space, data: TrainingData, n_passes: int) -> "Passes":
        """In place of the epochs of the search that `space` describes."""
        train = data.train
        # `data` may be cut for the retraining already: an epoch of the search is what the space says.
        epoch_images = space.dataset.images_per_epoch or len(train)
        return cls(n_passes, len(data.everything), space.training.max_epochs, epoch_images, len(train))

    def step_epochs(self, step_size: int) -> Fraction:
        """Passes between two drops of the learning rate: the same share of the training as in the search."""
        return Fraction(step_size * self.n_passes, self.search_epochs)

    def sentence(self, step_size: int) -> str:
        """What becomes of the schedule, in one line."""
        before = self.search_epochs * self.search_epoch_images / self.n_search_images
        return (
            f"{self.n_passes} passes instead of {before:.3g}: step_size {step_size} epochs of "
            f"{self.search_epoch_images:,} images becomes {float(self.step_epochs(step_size)):.4g} epochs of "
            f"{self.n_images:,} images"
        )
