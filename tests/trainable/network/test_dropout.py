import math

import numpy as np
import pytest
from numpy.typing import NDArray

from trainable.network import dropout
from trainable.network.dropout import DropoutNoise


def seeded(p: float, seed: int = 0) -> DropoutNoise:
    noise = DropoutNoise(p)
    noise.reseed(seed)
    return noise


def correlation(a: NDArray[np.int16], b: NDArray[np.int16]) -> float:
    return float(np.corrcoef(a.astype(float), b.astype(float))[0, 1])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.93])
def test_keeps_a_share_of_1_minus_p(p: float) -> None:
    kept = seeded(p).draw(1_000_000)
    assert set(np.unique(kept)) <= {-1, 0}
    assert abs((kept == -1).mean() - (1 - p)) <= 4 * math.sqrt(p * (1 - p) / len(kept))


def test_draws_of_steps_layers_and_neighbours_are_independent() -> None:
    noise = seeded(0.5)
    draws = [noise.draw(200_000) for _ in range(12)]
    bound = 5 / math.sqrt(200_000)
    for i in range(12):
        for j in range(i):
            assert abs(correlation(draws[i], draws[j])) < bound
    for lag in (1, 2, 4, 8, 64, 1024):
        assert abs(correlation(draws[0][lag:], draws[0][:-lag])) < bound


def test_across_steps_no_unit_is_kept_more_often_than_chance_allows() -> None:
    noise = seeded(0.5)
    n_kept = -np.stack([noise.draw(20_000) for _ in range(300)]).sum(axis=0, dtype=np.int64)
    assert abs(n_kept.var() / (300 * 0.25) - 1) < 0.1
    assert abs(n_kept.mean() - 150) < 1


def test_the_pool_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "POOL_UNITS", 1024)
    monkeypatch.setattr(dropout, "SERVINGS", 3)
    # The stretch is the whole pool, so that equal draws mean an equal pool.
    noise = seeded(0.5)
    draws = [noise.draw(1024) for _ in range(9)]
    assert [bool((draws[i] == draws[i - 1]).all()) for i in range(1, 9)] == [True, True, False] * 2 + [True, True]


def test_a_seed_repeats_and_another_does_not() -> None:
    first, again, other = (seeded(0.5, seed).draw(5000) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).all()
