"""Options that several commands share. Imports nothing heavy."""

import argparse
from pathlib import Path

from spaces.printable import shell_word

DEFAULT_RESULTS = Path("results")


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=DEFAULT_RESULTS, metavar="DIR", help="where experiments lie (default: results)"
    )


def results_flag(options: argparse.Namespace) -> str:
    """What a command to type next needs to find the same results folder."""
    return "" if options.results == DEFAULT_RESULTS else f" --results {shell_word(options.results)}"


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT and `--results`."""
    parser.add_argument(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT",
        help="a name under the results folder, or a path (default: the newest)",
    )
    add_results_argument(parser)
