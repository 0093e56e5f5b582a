"""Writes the trained network as files for other programs; each is loaded again and compared with the network."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spaces.errors import RunError
from trainable.network.model import DepthwiseSeparableNet, Normalise

# Largest accepted difference between a log-probability of an exported model and of the network.
TOLERANCE = 1e-3
INPUT_NAME = "images"
OUTPUT_NAME = "log_probabilities"


class ImageClassifier(nn.Module):
    """The exported module: network and normalisation, with uint8 images as input."""

    def __init__(self, network: DepthwiseSeparableNet, normalise: Normalise) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB → (N, classes) float32 log-probabilities; N is free."""
        log_probabilities: Tensor = self.network(self.normalise(images))
        return log_probabilities


def export_all(
    folder: Path,
    network: DepthwiseSeparableNet,
    normalise: Normalise,
    class_names: Sequence[str],
    sample: NDArray[np.uint8],
) -> dict[str, dict[str, Any]]:
    """Write `model.safetensors`, `model.onnx` and `model.pt2`, load each again, and compare it with the network.

    Args:
        folder: existing folder.
        network, normalise: trained network, and the normalisation of its data set.
        class_names: in the order of the labels; stored in the metadata of the ONNX file.
        sample: (N, H, W, 3) uint8, images for the comparison.

    Returns:
        By file name: `n_images` that were compared, `max_difference` of a log-probability, and `n_other_class`, the
        number of images with another predicted class; their two most likely classes are nearly tied.

    Raises:
        RunError: a file differs by more than `TOLERANCE`.
    """
    # Weights are channels_last during training, and contiguous in files.
    plain = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
    classifier = ImageClassifier(plain, copy.deepcopy(normalise).cpu()).eval()
    expected = _outputs(classifier, sample)
    found = {
        "model.safetensors": _export_safetensors(folder / "model.safetensors", classifier, sample),
        **_export_graphs(folder, classifier, class_names, sample),
    }
    return {name: _compared(name, expected, outputs) for name, outputs in found.items()}


def _export_safetensors(path: Path, classifier: ImageClassifier, sample: NDArray[np.uint8]) -> NDArray[np.float32]:
    network = classifier.network
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    loaded = DepthwiseSeparableNet(network.classifier.out_channels, pooling=network.pooling)
    loaded.load_state_dict(load_file(path))
    return _outputs(ImageClassifier(loaded, classifier.normalise).eval(), sample)


def _export_graphs(
    folder: Path, classifier: ImageClassifier, class_names: Sequence[str], sample: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32]]:
    example = (torch.from_numpy(sample[:2]),)
    shapes = {"images": {0: torch.export.Dim("n", min=1)}}
    program = torch.export.export(classifier, example, dynamic_shapes=shapes)
    for node in program.graph_module.graph.nodes:
        node.meta.pop("stack_trace", None)  # has the paths of this machine
    torch.export.save(program, folder / "model.pt2")

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
    return {
        "model.onnx": session.run([OUTPUT_NAME], {INPUT_NAME: sample})[0],
        "model.pt2": _outputs(torch.export.load(folder / "model.pt2").module(), sample),
    }


def _outputs(module: nn.Module, sample: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        outputs: NDArray[np.float32] = module(torch.from_numpy(sample)).numpy()
    return outputs


def _compared(name: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, Any]:
    max_difference = float(np.abs(expected - found).max())
    n_other_class = int((expected.argmax(axis=1) != found.argmax(axis=1)).sum())
    if not max_difference <= TOLERANCE:
        raise RunError(
            f"{name}: differs from the network by {max_difference:.2g} in log-probability and in {n_other_class} of "
            f"{len(expected)} classes, but must stay within {TOLERANCE}."
        )
    return {"n_images": len(expected), "max_difference": max_difference, "n_other_class": n_other_class}
