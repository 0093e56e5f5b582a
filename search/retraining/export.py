"""Writes the trained network as files for other programs; each is loaded again and compared with the network."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from spaces.errors import RunError
from trainable.network.model import DepthwiseSeparableNet
from trainable.network.normalisation import Normalise

# Largest accepted difference between a log-probability of an exported model and of the network.
TOLERANCE = 1e-3
INPUT_NAME = "images"
OUTPUT_NAME = "log_probabilities"


class ExportError(RunError):
    """An exported model does not compute what the network computes."""


class ImageClassifier(nn.Module):
    """The exported module: network and normalisation, with uint8 images as input.

    Args:
        network: trained network.
        normalise: normalisation of its data set.
    """

    def __init__(self, network: DepthwiseSeparableNet, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB → (N, classes) float32 log-probabilities; N is free."""
        log_probabilities: Tensor = self.network(self.normalise(images))
        return log_probabilities


@dataclass(frozen=True, slots=True)
class Agreement:
    """Difference between an exported model and the network on the same images.

    Attributes:
        n_images: number of compared images.
        max_difference: largest difference of a log-probability.
        n_other_class: number of images with another predicted class; within `TOLERANCE`, their two most likely classes
            are nearly tied.
    """

    n_images: int
    max_difference: float
    n_other_class: int


def export_all(
    folder: Path,
    network: DepthwiseSeparableNet,
    normalise: Normalise,
    class_names: Sequence[str],
    sample: NDArray[np.uint8],
) -> dict[str, Agreement]:
    """Write `model.safetensors`, `model.onnx` and `model.pt2`, and compare each with the network.

    Args:
        folder: existing folder.
        network, normalise: as for the exported module.
        class_names: in the order of the labels; stored in the metadata of the ONNX file.
        sample: (N, H, W, 3) uint8, images for the comparison.

    Returns:
        The difference from the network, by file name.

    Raises:
        ExportError: a file differs by more than `TOLERANCE`.
    """
    # Weights are channels_last during training, and contiguous in files.
    plain = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
    classifier = ImageClassifier(plain, copy.deepcopy(normalise).cpu()).eval()
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(sample)).numpy()
    agreements = {
        "model.safetensors": _export_safetensors(folder / "model.safetensors", classifier, sample, expected),
        **_export_graphs(folder, classifier, class_names, sample, expected),
    }
    for name, agreement in agreements.items():
        if not agreement.max_difference <= TOLERANCE:
            raise ExportError(
                f"{name}: differs from the network by {agreement.max_difference:.2g} in log-probability and in "
                f"{agreement.n_other_class} of {agreement.n_images} classes, but must stay within {TOLERANCE}."
            )
    return agreements


def _export_safetensors(
    path: Path, classifier: ImageClassifier, sample: NDArray[np.uint8], expected: NDArray[np.float32]
) -> Agreement:
    from safetensors.torch import load_file

    network = classifier.network
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    again = DepthwiseSeparableNet(network.classifier.out_channels)
    again.load_state_dict(load_file(path))
    with torch.inference_mode():
        found = ImageClassifier(again, classifier.normalise).eval()(torch.from_numpy(sample)).numpy()
    return _compare(expected, found)


def _export_graphs(
    folder: Path,
    classifier: ImageClassifier,
    class_names: Sequence[str],
    sample: NDArray[np.uint8],
    expected: NDArray[np.float32],
) -> dict[str, Agreement]:
    example = (torch.from_numpy(sample[:2]),)
    shapes = {"images": {0: torch.export.Dim("n", min=1)}}
    program = torch.export.export(classifier, example, dynamic_shapes=shapes)
    for node in program.graph_module.graph.nodes:
        node.meta.pop("stack_trace", None)  # has the paths of this machine
    torch.export.save(program, folder / "model.pt2")
    with torch.inference_mode():
        found_pt2 = torch.export.load(folder / "model.pt2").module()(torch.from_numpy(sample)).numpy()

    with _silence():
        onnx_program = torch.onnx.export(
            program,
            example,
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert onnx_program is not None
    for node in onnx_program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    onnx_program.model.metadata_props["class_names"] = json.dumps(list(class_names))
    onnx_program.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    found_onnx = session.run([OUTPUT_NAME], {INPUT_NAME: sample})[0]
    return {"model.onnx": _compare(expected, found_onnx), "model.pt2": _compare(expected, found_pt2)}


def _compare(expected: NDArray[np.float32], found: NDArray[np.float32]) -> Agreement:
    return Agreement(
        n_images=len(expected),
        max_difference=float(np.abs(expected - found).max()),
        n_other_class=int((expected.argmax(axis=1) != found.argmax(axis=1)).sum()),
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    # The exporter prints its steps on standard output; errors are raised anyway.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
