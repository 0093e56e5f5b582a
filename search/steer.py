"""Steer a running search from another terminal: `python -m search.steer`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys

from search.cli.options import add_experiment_arguments, chosen_experiment
from spaces.command import CommandParser, run_command


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.steer",
        description=(
            "Steer a running search: stop a trial, add a configuration that is the next trial, or finish (no new "
            "trials: running ones end, then come the replicates). To pause a search, press Ctrl-C and resume it later."
        ),
        epilog="example: python -m search.steer first add lr=0.1 momentum=0.9",
    )
    add_experiment_arguments(parser, is_optional=False)
    parser.add_argument("action", choices=("stop", "add", "finish"))
    parser.add_argument(
        "values",
        nargs="*",
        metavar="VALUE",
        help="stop: number of the trial; add: NAME=VALUE for each hyperparameter, the others are the baseline's",
    )
    return run_command(parser, _steer, arguments)


def _steer(options: argparse.Namespace) -> int:
    from search.session.steering import answer_text, request_of, send

    experiment = chosen_experiment(options, options.experiment)
    request = request_of(experiment, options.action, options.values)
    send(experiment, request)
    print(answer_text(request, experiment))
    return 0


if __name__ == "__main__":
    sys.exit(main())
