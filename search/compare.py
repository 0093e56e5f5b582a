"""Experiments side by side: `python -m search.compare`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import shutil
import sys

from search.cli.options import add_results_argument, chosen_experiment, complete_experiments
from spaces.command import CommandParser, completed, run_command


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.compare",
        description=(
            "Show spaces, settings and winners of several experiments side by side, differences marked, and how fast "
            "each found its best."
        ),
        epilog="example: python -m search.compare random-1 tpe-1 --format json",
    )
    completed(
        parser.add_argument(
            "experiments", nargs="+", metavar="EXPERIMENT", help="two or more: names under the results folder, or paths"
        ),
        complete_experiments,
    )
    add_results_argument(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return run_command(parser, _compare, arguments)


def _compare(options: argparse.Namespace) -> int:
    import json

    from search.analysis.comparison import as_dict, compared_rows, read_compared
    from search.terminal.comparison import comparison_text
    from spaces.errors import InputError

    if len(options.experiments) < 2:
        raise InputError(f"EXPERIMENT is {options.experiments[0]} alone, but must be two or more to compare.")
    compared = read_compared([chosen_experiment(options, given) for given in options.experiments])
    rows = compared_rows(compared)
    if options.format == "json":
        print(json.dumps(as_dict(compared, rows), indent=2, allow_nan=False))
    else:
        print(comparison_text(compared, rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
