"""Say why a trial was stopped or went on: `python -m search.why`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys

from search.cli.options import add_experiment_arguments, chosen_experiment
from spaces.command import CommandParser, run_command


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.why",
        description=(
            "Say why a trial was stopped or went on: at each rung that it reached, what it was compared with then, by "
            "how much it passed or missed, and whether audit trials that the rung refused came back; its replicates "
            "and its place now. Works while the search runs."
        ),
        epilog="example: python -m search.why quickstart-1 7",
    )
    add_experiment_arguments(parser)
    parser.add_argument("trial", type=int, metavar="TRIAL", help="number of the trial, as the leaderboard shows it")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return run_command(parser, _why, arguments)


def _why(options: argparse.Namespace) -> int:
    from search.analysis.trial_account import account
    from spaces.errors import InputError
    from spaces.printable import json_text, printable

    experiment = chosen_experiment(options, options.experiment)
    history = experiment.history()
    if options.trial not in history.trials:
        n = len(history.trials)
        has = f"trials 0 to {n - 1}" if n else "no trial yet"
        raise InputError(f"TRIAL is {options.trial}, but {experiment.name} has {has}.")
    found = account(history, experiment.space, options.trial)
    if options.format == "json":
        print(json_text({"experiment": experiment.name, **found.as_dict()}))
    else:
        print(printable(experiment.name), end=", ")
        print(*map(printable, found.lines(experiment.is_live())), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
