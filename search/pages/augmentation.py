"""Pictures of augmented training images. albumentations is imported only if images are found."""

from dataclasses import dataclass

from PIL import Image

from search.experiment.final_results import thumbnail_png
from search.experiment.manifest import Data
from search.pages.page import data_uri
from spaces.parameters import Hyperparameters
from trainable.data.cache import find_training_images


@dataclass(frozen=True, slots=True)
class Picture:
    """An image; `source` is a `data:` URI, `label` names the transform."""

    source: str
    label: str


def augmented_pictures(data: Data, image_size: int, config: Hyperparameters | None) -> tuple[list[list[Picture]], str]:
    """Pictures with a row for each image and a column for each transform, and their caption.

    The images come from this machine's cache, found by the hash of their pixels and labels. Paths in an experiment's
    folder are not opened, because the folder may be foreign.

    Args:
        data: of the manifest.
        image_size: side in pixels.
        config: configuration of the winner; None without a winner.

    Returns:
        Rows and caption; without images, an empty list and the reason.
    """
    if config is None:
        return [], "Without a winner there are no probabilities to show."
    decoded = find_training_images(data.content_sha256, image_size)
    if decoded is None:
        return [], "The training images of this search are not on this machine, so that none can be shown augmented."
    from trainable.data.augmentation_samples import augmentation_samples, sample_images

    columns = augmentation_samples(sample_images(decoded), config, decoded.mean)
    pictures = [
        [
            Picture(data_uri(thumbnail_png(Image.fromarray(image))), label)
            for label, image in zip(columns, row, strict=True)
        ]
        for row in zip(*columns.values(), strict=True)
    ]
    return pictures, (
        f"Training images; each transform alone; then four draws as the winner trains: flipped with probability "
        f"{config.flip_p:.0%}, moved, scaled and turned with {config.shift_scale_rotate_p:.0%}, cut a hole into with "
        f"{config.coarse_dropout_p:.0%}."
    )
