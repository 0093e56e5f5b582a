"""Options that several commands share. Imports nothing heavy."""

import argparse
from pathlib import Path


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where experiments lie (default: results)",
    )


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT and `--results`."""
    parser.add_argument(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT",
        help="a name under the results folder, or a path (default: the newest)",
    )
    add_results_argument(parser)
