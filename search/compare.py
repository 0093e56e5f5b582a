"""Experiments side by side: `python -m search.compare`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from search.options import add_results_argument, chosen_experiment, complete_experiments
from spaces.command import CommandParser, completed, run_command


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.compare",
        description=(
            "Show spaces, settings and winners of several experiments side by side, differences marked, and how fast "
            "each found its best."
        ),
        epilog="example: python -m search.compare random-1 tpe-1 --output comparison.html",
    )
    completed(
        parser.add_argument(
            "experiments", nargs="+", metavar="EXPERIMENT", help="two or more: names under the results folder, or paths"
        ),
        complete_experiments,
    )
    add_results_argument(parser)
    parser.add_argument("--format", choices=("text", "json", "html"), default="text")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="write the page, with the curves, there")
    return run_command(parser, _compare, arguments)


def _compare(options: argparse.Namespace) -> int:
    import json

    from search.comparison import as_dict, as_text, compared_rows, read_compared
    from spaces.errors import InputError
    from spaces.printable import printable
    from trainable.files import write_text

    if len(options.experiments) < 2:
        raise InputError(f"EXPERIMENT is {options.experiments[0]} alone, but must be two or more to compare.")
    if options.output is not None and (options.output.is_dir() or not options.output.parent.is_dir()):
        raise InputError(f"--output is {options.output}, but must be a file's name in a folder that is there.")
    compared = read_compared([chosen_experiment(options, given) for given in options.experiments])
    rows = compared_rows(compared)
    match options.format:
        case "json":
            print(json.dumps(as_dict(compared, rows), indent=2, allow_nan=False))
        case "html" if options.output is None:
            from search.compare_page import comparison_html

            print(comparison_html(compared, rows))
        case "text":
            print(as_text(compared, rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if options.output is not None:
        from search.compare_page import comparison_html

        write_text(options.output, comparison_html(compared, rows))
        print(f"Wrote {printable(options.output)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
