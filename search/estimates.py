"""What a search will cost, from its rungs. Pure functions."""

from functools import lru_cache

import numpy as np

from search.rungs import Rungs

N_SIMULATED = 200
# The share that passes a rung no longer changes beyond so many trials; more are extrapolated.
MAX_SIMULATED_TRIALS = 500


@lru_cache(maxsize=64)
def expected_epochs(trials: int, rung_epochs: tuple[int, ...], reduction_factor: int) -> float:
    """Epochs that ASHA is expected to train in all.

    Trials with random, steady ranks are sent through the real rungs one after the other; the first, as the
    baseline, goes to the end. Real curves cross, and proposals improve, so that more may pass.

    Args:
        trials: how many are started.
        rung_epochs: ascending; the last is where trials end.
        reduction_factor: of the rungs.
    """
    generator = np.random.default_rng(0)
    n_trials = min(trials, MAX_SIMULATED_TRIALS)
    n_simulated = max(1, min(N_SIMULATED, 10_000 // n_trials))
    totals = [
        sum(_epochs_of_each(generator.random(n_trials), rung_epochs, reduction_factor)) for _ in range(n_simulated)
    ]
    return float(np.mean(totals)) * trials / n_trials


def duration_text(seconds: float) -> str:
    """Such as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _epochs_of_each(values: np.ndarray, rung_epochs: tuple[int, ...], reduction_factor: int) -> list[int]:
    rungs = Rungs(rung_epochs, reduction_factor)
    epochs = []
    for number, value in enumerate(values):
        reached = rung_epochs[-1]
        for epoch in rung_epochs[:-1]:
            verdict = rungs.arrive(number, epoch, float(value))
            if number > 0 and verdict and not verdict.passed:
                reached = epoch
                break
        epochs.append(reached)
    return epochs
