"""Classifies images by the exported ONNX model; needs neither torch nor Ray."""

import json
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.experiment.command_lines import command_on
from search.experiment.folder import Experiment
from search.experiment.state_files import must_not_be_a_link
from spaces.errors import InputError, first_line
from spaces.plain_files import MIB, read_plain
from spaces.schema import LARGEST_IMAGE_PX, SMALLEST_IMAGE_PX
from trainable.data.images import to_square

MAX_MODEL_BYTES = 64 * MIB
TOP_LOG = 0.01  # largest valid log-probability: 0, plus rounding errors
BATCH = 256  # images that the model gets at once


class Predictor:
    """The exported model of an experiment, run by onnxruntime on the CPU.

    Attributes:
        class_names: names of the classes, in the order of the probabilities.
        image_size: side of the model's input in pixels.

    Raises:
        InputError: there is no model yet, or it is not a model that retraining wrote.
    """

    def __init__(self, experiment: Experiment) -> None:
        must_not_be_a_link(experiment.final_folder)
        self._path = experiment.final_folder / "model.onnx"
        if not os.path.lexists(self._path):
            raise InputError(f"{self._path}: is not there. Make it first: {command_on('retrain', experiment)}")
        content = read_plain(self._path, MAX_MODEL_BYTES)
        try:
            self._session = _session(content)
            (images,), (log_probabilities,) = self._session.get_inputs(), self._session.get_outputs()
            self.image_size = images.shape[1]
            self.class_names = json.loads(self._session.get_modelmeta().custom_metadata_map["class_names"])
            if not isinstance(self.class_names, list) or not all(isinstance(name, str) for name in self.class_names):
                raise ValueError("its class names are not a list of texts")
            if images.name != "images" or images.shape[3] != 3 or log_probabilities.shape[1] != len(self.class_names):
                raise ValueError("its input or its classes are others")
            if self.image_size != images.shape[2] or not SMALLEST_IMAGE_PX <= self.image_size <= LARGEST_IMAGE_PX:
                raise ValueError(f"its images are of {images.shape[1]} x {images.shape[2]} pixels")
        except Exception as error:  # onnxruntime has many exception classes without a common one
            raise self._not_ours(error) from error

    def __call__(self, images: NDArray[np.uint8]) -> tuple[Any, NDArray[np.float32]]:
        """Classify images.

        Args:
            images: (N, H, W, 3) or (H, W, 3) uint8 RGB, resized as training images are.

        Returns:
            (N,) names of the most probable classes, and (N, n_classes) float32 probabilities; for one image its class
            name and (n_classes,).

        Raises:
            ValueError: `images` has another shape or dtype.
            InputError: the model does not give log-probabilities.
        """
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3 or 0 in images.shape[-3:]:
            raise ValueError(
                f"images are {images.shape} {images.dtype}, but must be (N, H, W, 3) or (H, W, 3) uint8, RGB."
            )
        if images.ndim == 3:
            labels, probabilities = self(images[None])
            return str(labels[0]), probabilities[0]
        found = [np.empty((0, len(self.class_names)), np.float32)]
        for start in range(0, len(images), BATCH):
            squares = [to_square(Image.fromarray(image), self.image_size) for image in images[start : start + BATCH]]
            found.append(self._probabilities(np.stack(squares)))
        probabilities = np.concatenate(found)
        return np.array(self.class_names)[probabilities.argmax(axis=1)], probabilities

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


def _session(content: bytes) -> Any:
    """A session of this model that reads no other file; a foreign model may name any file for its weights."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="dws-predict-") as nothing:
        settings = onnxruntime.SessionOptions()
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", nothing)
        settings.add_session_config_entry("session.load_model_format", "ONNX")
        settings.log_severity_level = 4  # messages repeat names of the model unescaped; they are raised as errors too
        return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
