"""Retrain the winner, test it once, export it: `python -m search.retrain`."""

# PYTHON_ARGCOMPLETE_OK

import argparse
import sys

from search.cli.options import add_experiment_arguments, chosen_experiment
from spaces.command import CommandParser, run_command
from spaces.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.retrain",
        description=(
            "Train the winning configuration on training and validation images together, with several seeds; "
            "evaluate each seed once on the test images; export the first to EXPERIMENT/final/. Each epoch is saved: "
            "after Ctrl-C, kill -9 or a full disk, the same command resumes."
        ),
        epilog="example: python -m search.retrain --trial 7 --seeds 5",
    )
    add_experiment_arguments(parser)
    parser.add_argument("--trial", type=int, metavar="ID", help="another configuration than the winner's")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of runs (default: 3)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="E", help="epochs of each run (default: the search's max_epochs)")
    length.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help="instead, N full passes over the training images, the learning rate falling at the same shares of them",
    )
    parser.add_argument("--again", metavar="REASON", help="open the test set once more; the reason is recorded")
    return run_command(parser, _retrain, arguments)


def _retrain(options: argparse.Namespace) -> int:
    for name in ("seeds", "epochs", "passes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}, but must be at least 1.")
    experiment = chosen_experiment(options, options.experiment)

    from search.processes.guarded_folder import guarded_folder

    with guarded_folder():  # before torch is imported, because torch creates a folder for its compiler
        from search.retraining.session import planned, retrain_and_report

        plan = planned(experiment, options.trial, options.seeds, options.epochs, options.passes, options.again)
        retrain_and_report(plan)
    return 0


if __name__ == "__main__":
    sys.exit(main())
