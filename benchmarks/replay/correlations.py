"""Rank correlations in stored learning curves: `python -m benchmarks.replay.correlations`.

Prints how well early epochs order configurations as the last epoch does, for each stored table, and how much the
shipped searches agree on which configurations are good.
"""

import argparse
import sys
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr

from benchmarks.replay.searches import EPOCHS
from benchmarks.replay.tables import random_configurations, read_table, stored_tables
from benchmarks.speed.report import print_json, table_text
from search.policy.memory import scores_at
from search.session.memory import shipped_searches
from spaces import load_space
from spaces.command import CommandParser, run_command

EARLY_EPOCHS = (1, 3, 9)
N_CONFIGS = 500


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay.correlations",
        description="Spearman's rank correlations of early epochs with the last one, and between the shipped searches.",
        epilog="example: python -m benchmarks.replay.correlations",
    )
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    of_epochs, of_searches = epoch_correlations(), search_correlations()
    titles = ("epochs", *(f"{epoch} and {EPOCHS}" for epoch in EARLY_EPOCHS))
    print(table_text(titles, [(name, *(f"{one:.2f}" for one in found)) for name, found in of_epochs.items()]))
    print()
    print(
        table_text(("final accuracies of", "correlation"), [(name, f"{one:.2f}") for name, one in of_searches.items()])
    )
    print_json({"benchmark": "correlations", "epochs": of_epochs, "searches": of_searches})
    return 0


def epoch_correlations() -> dict[str, list[float]]:
    """Correlations of the accuracies after `EARLY_EPOCHS` with those after `EPOCHS`, by name of the stored table."""
    found = {}
    for name in stored_tables():
        curves = read_table(name).curves
        found[name] = [_correlation(curves[:, epoch - 1], curves[:, EPOCHS - 1]) for epoch in EARLY_EPOCHS]
    return found


def search_correlations() -> dict[str, float]:
    """Correlations of the smoothed final accuracies of random configurations, by the names of two shipped searches."""
    space = load_space("cifar10")
    configs = [space.complete(values) for values in random_configurations(space, N_CONFIGS, seed=0)]
    scores = {one.name: scores_at(one, space, configs) for one in shipped_searches()}
    return {f"{a}, {b}": _correlation(scores[a], scores[b]) for a, b in combinations(scores, 2)}


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return round(float(spearmanr(first, second).statistic), 3)


if __name__ == "__main__":
    sys.exit(main())
