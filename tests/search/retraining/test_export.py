import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from search.retraining import export
from search.retraining.export import ExportError, export_all
from search.retraining.training_runs import DivergedError, FullRun, train_all
from spaces import Dataset, Hyperparameters
from trainable.compute import Compute
from trainable.data.datasets import prepare_training_data
from trainable.network.model import DepthwiseSeparableNet
from trainable.network.normalisation import Normalise

NORMALISE = Normalise((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))


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


def test_every_file_agrees_with_the_network(network: DepthwiseSeparableNet, tmp_path) -> None:  # type: ignore[no-untyped-def]
    sample = images(64)
    agreements = export_all(tmp_path, network, NORMALISE, ["a", "b", "c"], sample)
    assert agreements.keys() == {"model.safetensors", "model.onnx", "model.pt2"}
    assert all(agreement.n_images == 64 and agreement.max_difference < 1e-3 for agreement in agreements.values())
    with torch.inference_mode():
        outputs = network(NORMALISE(torch.from_numpy(sample)))
    assert outputs.std(0).min() > 1e-3, "a comparison of constants would prove nothing"


def test_a_file_that_computes_something_else_is_an_error(
    network: DepthwiseSeparableNet, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    save = export.save_file

    def save_with_a_wrong_weight(tensors, path):  # type: ignore[no-untyped-def]
        save({**tensors, "classifier.bias": tensors["classifier.bias"] + torch.tensor([0.5, 0, 0])}, path)

    monkeypatch.setattr(export, "save_file", save_with_a_wrong_weight)
    sample = images(8)
    with pytest.raises(ExportError, match=r"model\.safetensors: differs from the network"):
        export_all(tmp_path, network, NORMALISE, ["a", "b", "c"], sample)


@pytest.mark.parametrize("difference", [1e-4, 0.01, float("nan")])
def test_a_near_tie_that_flips_ends_nothing_but_a_difference_beyond_the_tolerance_does(
    network: DepthwiseSeparableNet, tmp_path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:  # type: ignore[no-untyped-def]
    flipped = export.Agreement(n_images=8, max_difference=difference, n_other_class=1)
    monkeypatch.setattr(export, "_export_safetensors", lambda *_: export.Agreement(8, 0.0, 0))
    monkeypatch.setattr(export, "_export_graphs", lambda *_: {"model.onnx": flipped})
    if difference < export.TOLERANCE:
        found = export_all(tmp_path, network, NORMALISE, ["a", "b", "c"], images(8))
        assert found["model.onnx"].n_other_class == 1
    else:
        with pytest.raises(ExportError, match=r"model\.onnx: differs from the network"):
            export_all(tmp_path, network, NORMALISE, ["a", "b", "c"], images(8))


def test_a_retraining_that_diverges_says_so(tiny_digits: Dataset, tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = prepare_training_data(tiny_digits)
    # SGD at the largest lr and weight decay that are allowed multiplies the weights by -9 a step.
    config = Hyperparameters(lr=10.0, weight_decay=1.0, momentum=0.99)
    run = FullRun(data.decoded.folder, tiny_digits, config, 0, 0, 6, Compute(), 1, tmp_path / "0")
    with pytest.raises(DivergedError, match="Retraining 0 diverged in epoch"):
        train_all([run], 1, lambda progress: None)
