import itertools

import pytest
import torch
from torch import nn

from spaces.schema import SMALLEST_IMAGE_PX, Pooling
from trainable.network.model import DepthwiseSeparableNet, receptive_field_px


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_is_the_network_that_was_specified(pooling: Pooling) -> None:
    def block(channels: int) -> list[nn.Module]:
        dilated = [(channels, 24), (24, 48)]
        layers: list[nn.Module] = []
        for n_in, n_out in dilated:
            layers += [nn.Conv2d(n_in, n_out, 3, dilation=2, padding=1, bias=False), nn.BatchNorm2d(n_out)]
            layers += [nn.ReLU(), nn.Dropout(0.1)]
        for n_in in (48, 64):
            layers += [nn.Conv2d(n_in, n_in, 3, padding=1, groups=n_in, bias=False)]
            layers += [nn.Conv2d(n_in, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
            layers += [nn.Dropout(0.1)] if n_in == 48 else []
        return layers

    flat = [*itertools.chain(*(block(channels) for channels in (3, 64, 64, 64)))]
    flat += [nn.AdaptiveAvgPool2d(1) if pooling == "average" else nn.AdaptiveMaxPool2d(1)]
    flat += [nn.Conv2d(64, 10, 1), nn.Flatten(), nn.LogSoftmax(1)]
    specified = nn.Sequential(*flat)
    network = DepthwiseSeparableNet(10, 0.1, fused=False, pooling=pooling)
    specified.load_state_dict(dict(zip(specified.state_dict(), network.state_dict().values(), strict=True)))

    images = torch.randn(5, 3, 32, 32)
    for mode in (True, False):
        torch.manual_seed(0)
        expected = specified.train(mode)(images)
        torch.manual_seed(0)
        torch.testing.assert_close(network.train(mode)(images), expected)


@pytest.mark.parametrize(("side", "n_classes"), [(32, 10), (17, 2), (18, 3), (64, 100)])
def test_takes_other_sizes_and_class_counts(side: int, n_classes: int) -> None:
    network = DepthwiseSeparableNet(n_classes).eval()
    images = torch.randn(2, 3, side, side)
    assert network.blocks(images).shape == (2, 64, side - 16, side - 16)
    assert torch.allclose(network(images).exp().sum(1), torch.ones(2), atol=1e-5)


def test_the_smallest_image_is_the_smallest() -> None:
    network = DepthwiseSeparableNet().eval()
    assert network(torch.randn(1, 3, SMALLEST_IMAGE_PX, SMALLEST_IMAGE_PX)).shape == (1, 10)
    with pytest.raises(RuntimeError):
        network(torch.randn(1, 3, SMALLEST_IMAGE_PX - 1, SMALLEST_IMAGE_PX - 1))


def test_the_computed_receptive_field_is_what_gradients_reach() -> None:
    network = DepthwiseSeparableNet(dropout=0.0).eval()
    assert receptive_field_px(network.blocks) == 49
    for layer in network.modules():  # let every path through
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    images = torch.ones(1, 3, 81, 81, requires_grad=True)
    features = network.blocks(images)
    features[0, 0, features.shape[2] // 2, features.shape[3] // 2].backward()
    assert images.grad is not None
    rows = images.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 49


def test_starting_weights_come_from_the_generator_and_follow_torchs_law() -> None:
    def weights(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return DepthwiseSeparableNet(10, 0.1, generator).blocks[1][4].weight.detach()

    torch.manual_seed(1)
    first = weights(3)
    torch.manual_seed(2)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))
    torchs_own = nn.Conv2d(24, 48, 3, bias=False).weight
    assert abs(first.std() / torchs_own.std() - 1) < 0.05
    assert first.abs().max() <= torchs_own[0].numel() ** -0.5
