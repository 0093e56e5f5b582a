"""Review the trials of an experiment: `python -m search.leaderboard`."""

from __future__ import annotations

import argparse
import shutil
import sys

from search.options import add_experiment_arguments, chosen_experiment
from spaces.command import CommandParser, run_command


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.leaderboard",
        description=(
            "Rank the trials of an experiment: completed ones by validation accuracy, then stopped and running "
            "ones by epochs reached, then failed ones. Works while the search runs."
        ),
        epilog="example: python -m search.leaderboard --top 5 --sort validation_loss --format markdown",
    )
    add_experiment_arguments(parser)
    parser.add_argument("--top", type=int, metavar="N", help="show the first N trials only")
    parser.add_argument("--sort", default="rank", metavar="KEY", help="a column or a hyperparameter (default: rank)")
    parser.add_argument("--format", choices=("table", "csv", "json", "markdown"), default="table")
    return run_command(parser, _show, arguments)


def _show(options: argparse.Namespace) -> int:
    from search import tables
    from search.budget import progress_text
    from search.manifest import opening_text
    from search.ranking import SORT_KEYS, lead_sentence, rank, sort_by
    from spaces import InputError
    from spaces.parameters import HYPERPARAMETER_NAMES
    from spaces.printable import printable

    if options.top is not None and options.top < 1:
        raise InputError(f"--top is {options.top}, but must be at least 1.")
    keys = (*SORT_KEYS, *HYPERPARAMETER_NAMES)
    if options.sort not in keys:
        raise InputError(f"--sort is {options.sort}, but must be one of {', '.join(keys)}.")
    experiment = chosen_experiment(options, options.experiment)
    history = experiment.history()
    ranked = rank(history)
    shown = sort_by(ranked, options.sort)[: options.top]
    parameters = tuple(experiment.space.searched)

    match options.format:
        case "json":
            print(tables.as_json(experiment.name, shown, experiment.manifest.test_openings))
        case "csv":
            print(tables.as_csv(shown, parameters))
        case "markdown":
            print(tables.as_markdown(shown, parameters))
        case _:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            live = experiment.is_live()
            now = ", running now" if live else ""
            progress = progress_text(history, experiment.space)
            print(f"{printable(experiment.name)}: {progress}{now}\n")
            print(tables.as_table(shown, parameters, width, live))
            print(f"\n{lead_sentence(history)}")
            for opening in experiment.manifest.test_openings:
                print(printable(opening_text(opening)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
