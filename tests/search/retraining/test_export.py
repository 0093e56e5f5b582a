"""Each exported file is loaded again and must compute what the network computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from search.retraining import export
from search.retraining.export import export_all
from spaces.errors import RunError
from trainable.network.model import DepthwiseSeparableNet, Normalise

NORMALISE = Normalise((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
CLASS_NAMES = ("a", "b", "c")


def images(n_images: int) -> NDArray[np.uint8]:
    """Each of one colour with some noise: unlike enough for outputs to differ."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 200, (n_images, 1, 1, 3))
    return (colours + generator.integers(0, 56, (n_images, 18, 18, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> DepthwiseSeparableNet:
    """Untrained, but with batch norms that have seen images, so that outputs differ."""
    network = DepthwiseSeparableNet(3, generator=torch.Generator().manual_seed(0))
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    network(NORMALISE(torch.from_numpy(images(64))))
    return network.eval()


def test_every_file_agrees_with_the_network(network: DepthwiseSeparableNet, tmp_path: Path) -> None:
    sample = images(64)
    agreements = export_all(tmp_path, network, NORMALISE, CLASS_NAMES, sample)
    assert agreements.keys() == {"model.safetensors", "model.onnx", "model.pt2"}
    assert all(found["n_images"] == 64 and found["max_difference"] < 1e-3 for found in agreements.values())
    with torch.inference_mode():
        outputs = network(NORMALISE(torch.from_numpy(sample)))
    assert outputs.std(0).min() > 1e-3, "a comparison of constants would prove nothing"


def test_a_file_that_computes_something_else_is_an_error(
    network: DepthwiseSeparableNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = export.save_file

    def save_with_a_wrong_weight(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save({**tensors, "classifier.bias": tensors["classifier.bias"] + torch.tensor([0.5, 0, 0])}, path)

    monkeypatch.setattr(export, "save_file", save_with_a_wrong_weight)
    monkeypatch.setattr(export, "_export_graphs", lambda *_: {})
    with pytest.raises(RunError, match=r"model\.safetensors: differs from the network"):
        export_all(tmp_path, network, NORMALISE, CLASS_NAMES, images(8))


@pytest.mark.parametrize("difference", [1e-4, 0.01, float("nan")])
def test_a_near_tie_that_flips_ends_nothing_but_a_difference_beyond_the_tolerance_does(
    network: DepthwiseSeparableNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    tied, flipped = np.full((8, 3), -1.1, np.float32), np.full((8, 3), -1.1, np.float32)
    flipped[0, 2] += difference
    monkeypatch.setattr(export, "_outputs", lambda *_: tied)
    monkeypatch.setattr(export, "_export_graphs", lambda *_: {"model.onnx": flipped})
    if difference < export.TOLERANCE:
        found = export_all(tmp_path, network, NORMALISE, CLASS_NAMES, images(8))
        assert found["model.onnx"]["n_other_class"] == 1
    else:
        with pytest.raises(RunError, match=r"model\.onnx: differs from the network"):
            export_all(tmp_path, network, NORMALISE, CLASS_NAMES, images(8))
