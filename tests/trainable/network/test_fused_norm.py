"""`NormReluDropout` against `nn.BatchNorm2d`, `nn.ReLU` and `nn.Dropout`."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainable.network import dropout, kernels
from trainable.network.dropout import DropoutNoise
from trainable.network.fused_norm import NormReluDropout
from trainable.network.model import DepthwiseSeparableNet

BF16, FP32 = torch.bfloat16, torch.float32
# Half a unit in the last place, relative; and twice that where two roundings meet.
ROUNDING = {FP32: 2e-6, BF16: 2**-8}
N_CHANNELS = 24


def layer(p: float = 0.0, seed: int = 0, n_channels: int = N_CHANNELS) -> NormReluDropout:
    noise = DropoutNoise(p)
    noise.reseed(seed)
    made = NormReluDropout(n_channels, noise).train()
    generator = torch.Generator().manual_seed(7)
    nn.init.uniform_(made.weight, 0.5, 1.5, generator=generator)
    nn.init.uniform_(made.bias, -0.5, 0.5, generator=generator)
    return made


def features(dtype: torch.dtype, mean: float = 0.3, shape: tuple[int, ...] = (16, N_CHANNELS, 15, 13)) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + mean
    return drawn.to(dtype).to(memory_format=torch.channels_last).requires_grad_()


def reference(made: NormReluDropout, images: Tensor, factors: Tensor | float = 1.0) -> Tensor:
    """In fp64, from the same values."""
    weight, bias = made.weight.detach().double(), made.bias.detach().double()
    return F.relu(F.batch_norm(images.double(), None, None, weight, bias, training=True)) * factors


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected.double(), rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * scale)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_output_and_all_gradients_are_those_of_the_three_layers(p: float, dtype: torch.dtype) -> None:
    made, images = layer(p), features(dtype)
    output = made(images)
    assert output.dtype == dtype
    assert output.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = torch.autograd.grad(output, [images, made.weight, made.bias], upstream)

    plain = copy.deepcopy(made).double()
    source = images.detach().double().requires_grad_()
    # Where a unit was kept and active; elsewhere the reference decides whether it was active.
    factors = torch.where(output > 0, 1 / (1 - p), 0.0).double()
    normalised = F.batch_norm(source, None, None, plain.weight, plain.bias, training=True)
    expected = F.relu(normalised) * factors
    assert_close(output, expected.detach(), dtype)
    if p == 0:
        active = normalised.detach() > 0.01
        assert bool((output[active] > 0).all())
    gradients = torch.autograd.grad(expected, [source, plain.weight, plain.bias], upstream.double())
    for one, other in zip(found, gradients, strict=True):
        assert_close(one, other, dtype)


def test_bf16_is_rounded_as_torch_rounds_it() -> None:
    # Groups of eight fp32 numbers, evenly chosen from 1 to the second next number of bf16, with the ties between these.
    numbers = np.arange(0x3F80_0000, 0x3F82_0000, dtype=np.uint32).reshape(-1, 8)[::32].view(np.float32)
    ones = np.array([[0x3F80] * 8], np.uint16)  # 1 as bf16
    found = np.empty((1, 8), np.uint16)
    for row in numbers:
        kernels.forward(ones, row, np.zeros(8, np.float32), np.empty((0, 0), np.int16), found)
        assert torch.equal(torch.from_numpy(found[0]).view(BF16), torch.from_numpy(row).to(BF16))


def test_kernels_are_compiled_where_they_cannot_be_cached() -> None:
    program = """
from numba.core import caching
caching.CacheImpl._locator_classes = []  # as where neither the package's folder nor the user's can be written
from trainable.network.fused_norm import compile_for
compile_for("fp32")
print("compiled")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "compiled\n", done.stderr


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_running_statistics_are_batch_norm_s(dtype: torch.dtype) -> None:
    made, plain = layer(), nn.BatchNorm2d(N_CHANNELS).train()
    for mean in (0.3, -1.0, 5.0):
        made(features(dtype, mean))
        plain(features(dtype, mean).detach().float())
    for name, tensor in plain.state_dict().items():
        if name.startswith(("running", "num")):
            torch.testing.assert_close(made.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_mean_far_from_zero_does_not_swallow_the_variance() -> None:
    images = features(FP32, mean=3000.0)
    assert_close(layer()(images), reference(layer(), images.detach()), BF16)


def test_the_batch_statistics_hold_for_millions_of_pixels() -> None:
    made = layer(n_channels=4)
    made(features(FP32, shape=(64, 4, 200, 200)))
    images = features(FP32, shape=(64, 4, 200, 200)).detach().double()
    variance = images.var(dim=(0, 2, 3), unbiased=True)
    assert made.running_var is not None
    torch.testing.assert_close(made.running_var.double(), 0.9 + 0.1 * variance, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_keeps_as_many_active_units_as_nn_dropout_and_scales_them_as_much(p: float, dtype: torch.dtype) -> None:
    made = layer(p)
    nn.init.constant_(made.bias, 100.0)  # all units are active
    images = features(dtype, shape=(64, N_CHANNELS, 26, 26))
    output, plain = made(images).detach(), reference(made, images.detach())
    kept = output > 0
    deviation = math.sqrt(p * (1 - p) / kept.numel())
    assert abs(kept.double().mean().item() - (1 - p)) < 4 * deviation
    assert_close(output[kept], (plain / (1 - p))[kept], dtype)
    assert bool((output[~kept] == 0).all())


def test_masks_of_steps_are_independent() -> None:
    made = layer(0.5)
    nn.init.constant_(made.bias, 100.0)
    images = features(FP32)
    masks = torch.stack([(made(images) > 0).flatten().double() for _ in range(6)])
    off_diagonal = torch.corrcoef(masks) - torch.eye(6)
    assert off_diagonal.abs().max().item() < 5 / math.sqrt(masks.shape[1])


def test_activations_beyond_the_pool_are_masked_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "POOL_UNITS", 4096)
    monkeypatch.setattr(dropout, "STRETCH_UNITS", 2048)
    made = layer(0.25)
    nn.init.constant_(made.bias, 100.0)
    kept = made(features(FP32, shape=(32, N_CHANNELS, 20, 20))) > 0
    assert abs(kept.double().mean().item() - 0.75) < 0.02


def test_what_is_not_a_number_stays_so() -> None:
    images = features(BF16).detach().clone(memory_format=torch.channels_last)
    images[3, 5, 2, 2] = float("nan")
    output = layer()(images)
    assert bool(output[:, 5].isnan().all())
    assert not bool(output[:, [0, 23]].isnan().any())


def test_evaluation_is_batch_norm_and_relu_on_running_statistics() -> None:
    made = layer(0.5)
    made(features(FP32))
    plain = nn.BatchNorm2d(N_CHANNELS)
    plain.load_state_dict(made.state_dict())
    images = torch.randn(3, N_CHANNELS, 5, 5)
    torch.testing.assert_close(made.eval()(images), F.relu(plain.eval()(images)))


def test_other_layouts_and_types_take_torch_s_own_layers_with_the_same_law() -> None:
    made = layer(0.5)
    nn.init.constant_(made.bias, 100.0)
    row_major = torch.randn(16, N_CHANNELS, 15, 13)
    for images in (row_major, row_major.double().to(memory_format=torch.channels_last)):
        output = made.to(images.dtype)(images)
        kept = output > 0
        assert abs(kept.double().mean().item() - 0.5) < 0.03
        expected = reference(made, images) * 2
        torch.testing.assert_close(output[kept].double(), expected[kept], rtol=1e-4, atol=1e-4)


def test_without_a_seed_of_its_own_it_follows_the_global_generator_as_nn_dropout_does() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        made = NormReluDropout(N_CHANNELS, DropoutNoise(0.5)).train()
        output: Tensor = made(features(FP32))
        return output

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_with_a_seed_the_global_generator_stays_out_of_it() -> None:
    before = torch.get_rng_state()
    assert torch.equal(layer(0.5, 1)(features(FP32)), layer(0.5, 1)(features(FP32)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_with_it_shares_its_state_dict_with_the_plain_one() -> None:
    plain, fused = (DepthwiseSeparableNet(10, 0.1, torch.Generator().manual_seed(1), fused) for fused in (False, True))
    assert list(plain.state_dict()) == list(fused.state_dict())
    fused.train()(torch.randn(8, 3, 20, 20).to(memory_format=torch.channels_last))
    plain.load_state_dict(fused.state_dict())
    images = torch.randn(4, 3, 20, 20)
    torch.testing.assert_close(fused.eval()(images), plain.eval()(images))


def test_a_network_with_it_trains_on_the_same_law() -> None:
    torch.manual_seed(0)
    images = torch.randn(32, 3, 20, 20).to(memory_format=torch.channels_last)
    labels = torch.arange(32) % 10

    def losses(fused: bool) -> Tensor:
        network = DepthwiseSeparableNet(10, 0.5, torch.Generator().manual_seed(1), fused).train()
        return torch.stack([F.nll_loss(network(images), labels).detach() for _ in range(60)])

    plain, fused = losses(False), losses(True)
    standard_error = math.sqrt((plain.var() + fused.var()).item() / 60)
    assert abs((plain.mean() - fused.mean()).item()) < 4 * standard_error
    assert 0.5 < (fused.var() / plain.var()).item() < 2


def test_without_dropout_a_network_with_it_has_the_plain_one_s_gradients() -> None:
    images = torch.randn(16, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(16) % 10
    gradients = []
    for fused in (False, True):
        # The average of feature maps has small gradients, in which the rounding at ReLU's kink would show.
        network = DepthwiseSeparableNet(10, 0.0, torch.Generator().manual_seed(1), fused, "max").train()
        loss = F.nll_loss(network(images), labels)
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for plain, fused_gradient in zip(*gradients, strict=True):
        assert ((plain - fused_gradient).norm() / plain.norm()).item() < 0.02
