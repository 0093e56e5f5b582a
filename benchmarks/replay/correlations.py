"""Rank correlations in stored learning curves: `python -m benchmarks.replay.correlations`.

Prints how well early epochs order configurations as the last epoch does, for each stored table, and how much the
shipped searches agree on which configurations are good.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr

from benchmarks.replay import published
from benchmarks.replay.tables import Array, random_configurations, read_table, stored_tables
from benchmarks.speed.report import print_json, table_text
from search.experiment.folder import Experiment
from search.policy.memory import scores_at
from search.session.memory import shipped_searches
from spaces import load_space
from spaces.command import CommandParser, run_command

PAIRS = ((1, 9), (3, 9), (1, 27), (3, 27), (9, 27))
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
    titles = ("epochs", *(f"{first} and {last}" for first, last in PAIRS))
    print(table_text(titles, [(name, *(f"{one:.2f}" for one in found)) for name, found in of_epochs.items()]))
    print()
    print(
        table_text(("final accuracies of", "correlation"), [(name, f"{one:.2f}") for name, one in of_searches.items()])
    )
    print_json({"benchmark": "correlations", "epochs": of_epochs, "searches": of_searches})
    return 0


def epoch_correlations() -> dict[str, list[float]]:
    """Correlations of the accuracies after the epochs of `PAIRS`, by name of the stored table.

    `results/cifar10` is the published search, of which only trials that reached both epochs count.
    """
    curves = {name: list(read_table(name).curves) for name in stored_tables()}
    trials = Experiment(published.FOLDER).history().trials.values()
    curves["results/cifar10"] = [np.array([epoch.validation_accuracy for epoch in trial.epochs]) for trial in trials]
    return {name: [_correlation(*_both(several, *pair)) for pair in PAIRS] for name, several in curves.items()}


def _both(curves: Sequence[Array], first: int, last: int) -> tuple[Array, Array]:
    known = np.array([(curve[first - 1], curve[last - 1]) for curve in curves if len(curve) >= last])
    return known[:, 0], known[:, 1]


def search_correlations() -> dict[str, float]:
    """Correlations of the smoothed final accuracies of random configurations, by the names of two shipped searches."""
    space = load_space("cifar10")
    configs = [space.complete(values) for values in random_configurations(space, N_CONFIGS, seed=0)]
    scores = {one.name: scores_at(one, space, configs) for one in shipped_searches()}
    return {f"{a}, {b}": _correlation(scores[a], scores[b]) for a, b in combinations(scores, 2)}


def _correlation(first: Array, second: Array) -> float:
    return round(float(spearmanr(first, second).statistic), 3)


if __name__ == "__main__":
    sys.exit(main())
