"""An experiment as one HTML page: `python -m search.report`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from search.cli.options import add_experiment_arguments, chosen_experiment
from spaces.command import CommandParser, run_command

REPORT_NAME = "report.html"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.report",
        description=(
            "Write EXPERIMENT/report.html: who won and how surely, all trials, their curves, the rungs, what mattered, "
            "the test. One file that needs no network. Works while the search runs."
        ),
        epilog="example: python -m search.report quickstart-1 --open",
    )
    add_experiment_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"elsewhere than EXPERIMENT/{REPORT_NAME}")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    return run_command(parser, _report, arguments)


def _report(options: argparse.Namespace) -> int:
    import webbrowser

    from spaces.errors import InputError
    from spaces.printable import printable
    from trainable.files import write_text

    experiment = chosen_experiment(options, options.experiment)
    if options.output is None:
        experiment.must_be_plain()
    path = options.output or experiment.folder / REPORT_NAME
    if path.is_dir():
        raise InputError(f"{path}: is a folder, but a page is to be written there. Name a file: --output FILE")
    if not path.parent.is_dir():
        raise InputError(f"--output is {path}, but {path.parent} is not a folder. Make it first.")

    from search.pages.report import report_html

    write_text(path, report_html(experiment))
    print(f"Wrote {printable(path)}")
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        print("No browser was found to open it.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
