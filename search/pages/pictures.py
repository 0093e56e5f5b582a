"""Pictures of a report: augmented training images, and wrongly classified test images."""

from PIL import Image

from search.experiment.final_results import mistake_image, thumbnail_png
from search.experiment.manifest import Data
from search.pages.page import data_uri
from search.pages.report_data import ReportData
from spaces.errors import InputError
from spaces.parameters import Hyperparameters
from trainable.data.cache import find_training_images


def augmented_pictures(
    data: Data, image_size: int, config: Hyperparameters | None
) -> tuple[list[list[tuple[str, str]]], str]:
    """Rows of pictures, a row for each image and a column for each transform, and their caption.

    The images come from this machine's cache, found by the hash of their pixels and labels. Paths in an experiment's
    folder are not opened, because the folder may be foreign.

    Returns:
        Rows of `data:` URIs with the name of the transform, and the caption; without images, or without a winner's
        configuration, no row and the reason.
    """
    if config is None:
        return [], "Without a winner there are no probabilities to show."
    decoded = find_training_images(data.content_sha256, image_size)
    if decoded is None:
        return [], "The training images of this search are not on this machine, so that none can be shown augmented."
    # albumentations takes a second to import.
    from trainable.data.augmentation_samples import augmentation_samples, sample_images

    columns = augmentation_samples(sample_images(decoded), config, decoded.mean)
    pictures = [
        [(data_uri(thumbnail_png(Image.fromarray(image))), label) for label, image in zip(columns, row, strict=True)]
        for row in zip(*columns.values(), strict=True)
    ]
    return pictures, (
        f"Training images; each transform alone; then four draws as the winner trains: flipped with probability "
        f"{config.flip_p:.0%}, moved, scaled and turned with {config.shift_scale_rotate_p:.0%}, cut a hole into with "
        f"{config.coarse_dropout_p:.0%}."
    )


def mistake_pictures(known: ReportData) -> tuple[list[tuple[str, str, str, str]], str]:
    """The most confident mistakes on the test images, which retraining left. The test images are not opened.

    Returns:
        `data:` URI, true class, predicted class and probability of each, and the caption; without mistakes, an empty
        list and the reason.
    """
    if known.final is None:
        return [], ""
    mistakes = known.final.surest_mistakes
    if mistakes is None:
        return [], "This experiment was retrained by a version that did not keep the images that were named wrongly."
    if not mistakes:
        return [], "The exported seed named every test image rightly."
    try:
        sources = [data_uri(mistake_image(known.experiment, mistake)) for mistake in mistakes]
    except InputError as error:
        return [], f"The images cannot be shown: {error.lines[0]}"
    pictures = [
        (source, mistake.true[:60], mistake.predicted[:60], f"sure to {mistake.probability:.1%}")
        for source, mistake in zip(sources, mistakes, strict=True)
    ]
    return pictures, (
        f"The {len(pictures)} test images that the exported seed named wrongly with the highest probabilities."
    )
