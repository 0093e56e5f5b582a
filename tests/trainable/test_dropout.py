import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainable import dropout
from trainable.dropout import DropoutNoise, ReluDropout
from trainable.model import DepthwiseSeparableNet

DTYPES = (torch.float32, torch.bfloat16)


def layer(p: float, seed: int = 0, inplace: bool = False) -> ReluDropout:
    noise = DropoutNoise(p)
    noise.reseed(seed)
    return ReluDropout(noise, inplace).train()


def mask(module: nn.Module, n_units: int) -> Tensor:
    """Which of `n_units` active units are kept."""
    return module(torch.ones(n_units)) > 0


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_keeps_as_many_units_as_nn_dropout_with_the_same_values(p: float, dtype: torch.dtype) -> None:
    units = torch.full((1_000_000,), 3.0, dtype=dtype)
    torch.manual_seed(0)
    expected = nn.Dropout(p).train()(units)
    dropped = layer(p)(units)
    assert dropped.dtype == dtype
    assert set(dropped.unique().tolist()) == set(expected.unique().tolist())
    deviation = math.sqrt(p * (1 - p) / len(units))
    assert abs((dropped > 0).double().mean().item() - (1 - p)) < 4 * deviation


def test_mean_and_variance_are_nn_dropout_s() -> None:
    torch.manual_seed(0)
    features = torch.randn(64, 8, 20, 20)
    reference, ours = nn.Sequential(nn.ReLU(), nn.Dropout(0.3)).train(), layer(0.3)
    expected = torch.stack([reference(features) for _ in range(200)])
    dropped = torch.stack([ours(features) for _ in range(200)])
    standard_error = expected.std(0) / math.sqrt(200)
    z = (dropped.mean(0) - F.relu(features)) / standard_error.clamp_min(1e-9)
    active = F.relu(features) > 0
    assert abs(z[active].std().item() - 1) < 0.05
    assert abs(dropped.var(0).mean().item() / expected.var(0).mean().item() - 1) < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_that_of_relu_times_the_factors_drawn(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 6, 9, 9, dtype=dtype, requires_grad=True)
    module = layer(0.4)
    output = module(features)
    upstream = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, features, upstream)

    factors = torch.where(output > 0, module.noise.scale(dtype), 0.0).to(dtype)
    reference = features.detach().requires_grad_()
    (expected,) = torch.autograd.grad(F.relu(reference) * factors, reference, upstream)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


def test_inactive_units_get_no_gradient_and_nothing_is_made_up() -> None:
    features = torch.tensor([-1.0, 0.0, 2.0, float("nan")], requires_grad=True)
    output = layer(0.0)(features)
    assert output[:3].tolist() == [0.0, 0.0, 2.0]
    assert output[3].isnan()


def test_draws_of_steps_layers_and_neighbours_are_independent() -> None:
    module = layer(0.5)
    draws = [mask(module, 200_000) for _ in range(12)]
    bound = 5 / math.sqrt(200_000)
    for i in range(12):
        for j in range(i):
            assert abs(correlation(draws[i], draws[j])) < bound
    for lag in (1, 2, 4, 8, 64, 1024):
        assert abs(correlation(draws[0][lag:], draws[0][:-lag])) < bound
    # Across steps each unit is kept as often as it should be, and no unit more often than chance allows.
    kept = torch.stack([mask(module, 20_000) for _ in range(300)]).sum(0).double()
    assert abs(kept.var().item() / (300 * 0.25) - 1) < 0.1


def test_the_pool_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "POOL_UNITS", 1024)
    monkeypatch.setattr(dropout, "STRETCH_UNITS", 1024)
    monkeypatch.setattr(dropout, "SERVINGS", 3)
    # The stretch is the whole pool, so that equal masks mean an equal pool.
    module = layer(0.5)
    draws = [mask(module, 1024) for _ in range(9)]
    assert [bool((draws[i] == draws[i - 1]).all()) for i in range(1, 9)] == [True, True, False] * 2 + [True, True]


def test_activations_beyond_the_pool_are_served_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "POOL_UNITS", 4096)
    monkeypatch.setattr(dropout, "STRETCH_UNITS", 2048)
    kept = mask(layer(0.25), 100_000)
    assert abs(kept.double().mean().item() - 0.75) < 0.03
    assert abs(correlation(kept[:2048], kept[2048:4096])) < 0.15


def test_a_seed_repeats_and_the_global_generator_stays_out_of_it() -> None:
    before = torch.get_rng_state()
    first, again, other = (mask(layer(0.5, seed), 5000) for seed in (1, 1, 2))
    assert bool((first == again).all())
    assert not bool((first == other).all())
    assert bool((before == torch.get_rng_state()).all())


def test_without_a_seed_of_its_own_it_follows_the_global_generator_as_nn_dropout_does() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return mask(ReluDropout(DropoutNoise(0.5)).train(), 5000)

    assert bool((draw(3) == draw(3)).all())
    assert not bool((draw(3) == draw(4)).all())


def test_evaluation_and_p_of_0_are_relu() -> None:
    features = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(layer(0.5).eval()(features), F.relu(features))
    torch.testing.assert_close(layer(0.0)(features), F.relu(features))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["row-major", "channels_last", "with gaps", "transposed"])
def test_any_memory_layout_is_right(layout: str, inplace: bool) -> None:
    features = {
        "row-major": torch.ones(8, 6, 10, 10),
        "channels_last": torch.ones(8, 6, 10, 10).to(memory_format=torch.channels_last),
        "with gaps": torch.ones(8, 12, 10, 10)[:, ::2],
        "transposed": torch.ones(10, 6, 10, 8).transpose(0, 3),
    }[layout]
    dropped = layer(0.5, inplace=inplace)(features)
    assert dropped.shape == features.shape
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs((dropped > 0).double().mean().item() - 0.5) < 0.03
    if not inplace:
        assert bool((features == 1).all())


def test_a_network_with_it_shares_its_state_dict_with_the_plain_one() -> None:
    plain, fused = (DepthwiseSeparableNet(10, 0.1, torch.Generator().manual_seed(1), fused) for fused in (False, True))
    assert list(plain.state_dict()) == list(fused.state_dict())
    trained = copy.deepcopy(plain).train()
    trained(torch.randn(8, 3, 20, 20))
    fused.load_state_dict(trained.state_dict())
    plain.load_state_dict(fused.state_dict())
    images = torch.randn(4, 3, 20, 20)
    torch.testing.assert_close(fused.eval()(images), plain.eval()(images))


def test_a_network_with_it_trains_on_the_same_law() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 20, 20), torch.arange(32) % 10

    def losses(fused_dropout: bool) -> Tensor:
        network = DepthwiseSeparableNet(10, 0.5, torch.Generator().manual_seed(1), fused_dropout).train()
        return torch.stack([F.nll_loss(network(images), labels).detach() for _ in range(60)])

    plain, fused = losses(False), losses(True)
    standard_error = math.sqrt((plain.var() + fused.var()).item() / 60)
    assert abs((plain.mean() - fused.mean()).item()) < 4 * standard_error
    assert 0.5 < (fused.var() / plain.var()).item() < 2
