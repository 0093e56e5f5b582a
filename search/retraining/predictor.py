"""Classifies images by the exported ONNX model; needs neither torch nor Ray."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.experiment.command_lines import command_on
from search.experiment.state_files import must_not_be_a_link
from spaces.errors import InputError, first_line
from spaces.plain_files import MIB, read_plain
from spaces.schema import LARGEST_IMAGE_PX, SMALLEST_IMAGE_PX
from trainable.data.images import to_square

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from search.experiment.folder import Experiment

MAX_MODEL_BYTES = 64 * MIB
TOP_LOG = 0.01  # largest valid log-probability: 0, plus rounding errors
BATCH = 256  # images that the model gets at once


class Prediction(NamedTuple):
    """What the model says about images.

    Attributes:
        labels: (N,) names of the most probable classes; of one image a `str`.
        probabilities: (N, n_classes) float32, in the order of `Predictor.class_names`; of one image (n_classes,).
    """

    labels: NDArray[np.str_] | str
    probabilities: NDArray[np.float32]


class Predictor:
    """The exported model of an experiment, run by onnxruntime on the CPU.

    Args:
        path: an ONNX file that retraining wrote; it may be untrusted.

    Attributes:
        class_names: names of the classes, in the order of the probabilities.
        image_size: side of the model's input in pixels.

    Raises:
        InputError: the file is not a plain file, or not a model that retraining wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = read_plain(path, MAX_MODEL_BYTES)
        try:
            self._session = _session(content)
            (images,), (log_probabilities,) = self._session.get_inputs(), self._session.get_outputs()
            n_channels, self.image_size = images.shape[3], images.shape[1]
            self.class_names = json.loads(self._session.get_modelmeta().custom_metadata_map["class_names"])
            if not isinstance(self.class_names, list) or not all(isinstance(name, str) for name in self.class_names):
                raise ValueError("its class names are not a list of texts")
            if images.name != "images" or n_channels != 3 or log_probabilities.shape[1] != len(self.class_names):
                raise ValueError("its input or its classes are others")
            if self.image_size != images.shape[2] or not SMALLEST_IMAGE_PX <= self.image_size <= LARGEST_IMAGE_PX:
                raise ValueError(f"its images are of {images.shape[1]} x {images.shape[2]} pixels")
        except Exception as error:  # onnxruntime has many exception classes without a common one
            raise self._not_ours(error) from error

    def __call__(self, images: NDArray[np.uint8]) -> Prediction:
        """Classify images.

        Args:
            images: (N, H, W, 3) or (H, W, 3) uint8 RGB; resized as the training images were if H or W is not
                `image_size`.

        Raises:
            ValueError: `images` has another shape or dtype.
            InputError: the model does not give log-probabilities.
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3 or 0 in images.shape[-3:]:
            raise ValueError(
                f"images are {images.shape} {images.dtype}, but must be (N, H, W, 3) or (H, W, 3) uint8, RGB."
            )
        if images.ndim == 3:
            one = self(images[None])
            return Prediction(str(one.labels[0]), one.probabilities[0])
        if images.shape[1:3] != (self.image_size, self.image_size):
            resized = [to_square(Image.fromarray(image), self.image_size) for image in images]
            images = np.array(resized, dtype=np.uint8).reshape(-1, self.image_size, self.image_size, 3)
        batches = [self._probabilities(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        probabilities = np.concatenate([np.empty((0, len(self.class_names)), np.float32), *batches])
        return Prediction(np.array(self.class_names)[probabilities.argmax(axis=1)], probabilities)

    def _probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            log_probabilities: NDArray[np.float32] = self._session.run(None, {"images": images})[0]
            expected = (len(images), len(self.class_names))
            if log_probabilities.shape != expected or not (log_probabilities <= TOP_LOG).all():
                raise ValueError("it gives something other than log-probabilities")
        except Exception as error:  # as above
            raise self._not_ours(error) from error
        return np.exp(log_probabilities)

    def _not_ours(self, error: Exception) -> InputError:
        return InputError(f"{self._path}: is not a model of ours ({first_line(error)}). Retrain to make it again.")


def predictor_of(experiment: Experiment) -> Predictor:
    """The exported model in an experiment's `final/`.

    Raises:
        InputError: there is none, or it is not usable.
    """
    model = experiment.final_folder / "model.onnx"
    must_not_be_a_link(experiment.final_folder)
    if not os.path.lexists(model):
        raise InputError(f"{model}: is not there. Make it first: {command_on('retrain', experiment)}")
    return Predictor(model)


def _session(content: bytes) -> InferenceSession:
    """A session of this model that reads no other file; a foreign model may name any file for its weights."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="dws-predict-") as nothing:
        settings = onnxruntime.SessionOptions()
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", nothing)
        settings.add_session_config_entry("session.load_model_format", "ONNX")
        settings.log_severity_level = 4  # messages repeat names of the model unescaped; they are raised as errors too
        return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
