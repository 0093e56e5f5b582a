"""The results of retraining in `final/`. The folder may be foreign: sizes are limited, images are encoded again."""

import io
import re
import struct
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import Field, ValidationError, model_validator

from search.experiment.events import Count, Share
from search.experiment.folder import Experiment
from search.experiment.manifest import Part
from search.experiment.state_files import first_problem, must_not_be_a_link
from spaces.errors import InputError
from spaces.plain_files import MIB, read_plain
from spaces.schema import LARGEST_IMAGE_PX, MetricName

MAX_METRICS_BYTES = 16 * MIB
MAX_IMAGE_BYTES = 8 * MIB  # a PNG of the largest image, incompressible, has less than 4 MiB
MOST_CLASSES = 1000
MOST_MISTAKES = 16
THUMBNAIL_PX = 160  # longer side of images on a page; smaller images keep their size

# What Pillow raises for damaged images.
_UNDECODABLE = (Image.DecompressionBombError, SyntaxError, ValueError, OverflowError, MemoryError, struct.error)
_MISTAKE_FILE = re.compile(r"mistakes/[A-Za-z0-9][A-Za-z0-9._-]{0,150}\.png")

ClassName = Annotated[str, Field(max_length=1000)]


class SeedResult(Part):
    """Test accuracy of one seed."""

    seed: Count
    accuracy: Share


class TestMetric(Part):
    """A metric over seeds."""

    mean: float
    interval_95: Annotated[list[float], Field(min_length=2, max_length=2)] | None


class TestedOn(Part):
    """The test images."""

    n_images: Count


class ShownMistake(Part):
    """A wrong answer; see `search.retraining.answers.surest_mistakes`."""

    file: str
    true: ClassName
    predicted: ClassName
    probability: Share


class FinalResults(Part):
    """The displayed part of `final/metrics.json`.

    Attributes:
        epochs: number of epochs of each seed.
        confusion_matrix: counts of the exported seed; row = true class, column = predicted class.
        test_metrics: the metrics of `search.metric` on the test images, by name; empty in files of old versions.
        surest_mistakes: mistakes of the exported seed, highest probability first; None in files of old versions.
    """

    trial: Count
    epochs: Count
    tested_on: TestedOn
    test_accuracy_mean: Share
    test_accuracy_interval_95: Annotated[list[Share], Field(min_length=2, max_length=2)] | None
    test_accuracy_per_seed: Annotated[list[SeedResult], Field(min_length=1, max_length=1000)]
    class_names: Annotated[list[ClassName], Field(min_length=2, max_length=MOST_CLASSES)]
    confusion_matrix: list[list[Count]]
    test_metrics: dict[MetricName, TestMetric] = Field(default_factory=dict)
    surest_mistakes: Annotated[list[ShownMistake], Field(max_length=MOST_MISTAKES)] | None = None

    @model_validator(mode="after")
    def _must_be_square(self) -> "FinalResults":
        n_classes = len(self.class_names)
        if len(self.confusion_matrix) != n_classes or any(len(row) != n_classes for row in self.confusion_matrix):
            raise ValueError("its confusion matrix is not of its classes")
        return self


def read_final_results(experiment: Experiment) -> FinalResults | None:
    """Read `final/metrics.json`; None without the file.

    Raises:
        InputError: the file is damaged, too large, or not a regular file.
    """
    path = experiment.final_folder / "metrics.json"
    must_not_be_a_link(experiment.final_folder)
    try:
        content = read_plain(path, MAX_METRICS_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        return FinalResults.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path}: is not the result of a retraining ({first_problem(error)}).") from None


def mistake_image(experiment: Experiment, mistake: ShownMistake) -> bytes:
    """The image of a mistake as a new PNG, at most `THUMBNAIL_PX` on its longer side.

    Raises:
        InputError: the file is missing, too large, not a PNG, or not a regular file.
    """
    path = experiment.final_folder / mistake.file
    if not _MISTAKE_FILE.fullmatch(mistake.file):
        raise InputError(f"{mistake.file}: is not a name that retraining gives.")
    must_not_be_a_link(experiment.final_folder)
    must_not_be_a_link(path.parent)
    try:
        return thumbnail_png(_decoded(read_plain(path, MAX_IMAGE_BYTES), path))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: is missing.") from None
    except (*_UNDECODABLE, OSError) as error:
        raise InputError(f"{path}: is not a picture of ours ({str(error)[:200]}).") from None


def thumbnail_png(image: Image.Image) -> bytes:
    """A PNG with the pixels of `image` only, at most `THUMBNAIL_PX` on its longer side."""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _decoded(content: bytes, path: Path) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        # Checked before pixels are decoded.
        if max(image.size) > LARGEST_IMAGE_PX:
            raise InputError(f"{path}: is {image.width} x {image.height} pixels, more than any image of ours.")
        # A new image, without texts and colour profiles of the file.
        pixels = image.convert("RGB")
        return Image.frombytes("RGB", pixels.size, pixels.tobytes())
