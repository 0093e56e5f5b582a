"""Review the trials of an experiment: `python -m search.leaderboard`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from search.cli.options import add_experiment_arguments, chosen_experiment
from search.experiment.command_lines import resume_line
from spaces.command import EXIT_INTERRUPTED, CommandParser, completed, run_command

if TYPE_CHECKING:
    from search.experiment.folder import Experiment


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.leaderboard",
        description=(
            "Rank the trials of an experiment: those that were chosen for replicates by the mean of these; then all "
            "others by their forecast, completed or not; then failed and diverged ones. Works while the search runs."
        ),
        epilog="example: python -m search.leaderboard --top 5 --sort validation_loss --format markdown",
    )
    add_experiment_arguments(parser)
    parser.add_argument("--top", type=int, metavar="N", help="show the first N trials only (in a table: 100)")
    sort = parser.add_argument(
        "--sort", default="rank", metavar="KEY", help="a column or a hyperparameter (default: rank)"
    )
    completed(sort, _complete_sort)
    parser.add_argument("--format", choices=("table", "csv", "json", "markdown"), default="table")
    parser.add_argument("--watch", action="store_true", help="show the screen of a running search")
    return run_command(parser, _show, arguments)


def _complete_sort(prefix: str, **_: Any) -> Iterable[str]:
    from search.analysis.columns import sort_keys

    return [key for key in sort_keys() if key.startswith(prefix.lower())]


def _show(options: argparse.Namespace) -> int:
    if options.watch:
        return _watch(options)
    return _print(options, chosen_experiment(options, options.experiment))


def _watch(options: argparse.Namespace) -> int:
    from rich.console import Console

    from search.terminal.live_screen import can_show_screens
    from search.terminal.watch import watch
    from spaces import InputError
    from spaces.printable import shell_word

    console = Console(highlight=False, markup=False)
    if not can_show_screens(console):
        raise InputError("--watch needs a terminal that shows screens. Without it, the leaderboard is printed once.")
    if options.top is not None or options.sort != "rank" or options.format != "table":
        raise InputError("--watch shows the screen of the search: it does not take --top, --sort or --format.")
    experiment = chosen_experiment(options, options.experiment)
    if not experiment.is_live():
        code = _print(options, experiment)
        where = shell_word(experiment.location)
        print(f"\nNo process searches in {where} now. Resume with: {resume_line(experiment)}")
        return code
    try:
        watch(experiment, console)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return _print(options, experiment)


def _print(options: argparse.Namespace, experiment: Experiment) -> int:
    from search.analysis.columns import sort_keys
    from search.analysis.csv_files import trials_csv
    from search.analysis.ranking import lead_sentence, rank, sort_by
    from search.experiment.manifest import use_of_test_set_text
    from search.policy.budget import progress_text
    from search.terminal import tables
    from spaces import InputError
    from spaces.printable import printable

    if options.top is not None and options.top < 1:
        raise InputError(f"--top is {options.top}, but must be at least 1.")
    keys = sort_keys()
    if options.sort.lower() not in keys:
        raise InputError(f"--sort is {options.sort}, but must be one of {', '.join(keys)}.")
    history = experiment.history()
    ranked = rank(history)
    shown = sort_by(ranked, keys[options.sort.lower()])[: options.top]
    parameters = tuple(experiment.space.searched)

    match options.format:
        case "json":
            print(tables.as_json(experiment.name, shown, history.metric, experiment.manifest.test_openings))
        case "csv":
            print(trials_csv(shown, parameters), end="")
        case "markdown":
            print(tables.as_markdown(shown, parameters))
        case _:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            live = experiment.is_live()
            now = ", running now" if live else ""
            print(f"{printable(experiment.name)}: {progress_text(history, experiment.space)}{now}\n")
            most_rows = tables.MOST_ROWS if options.top is None else None
            print(tables.as_table(shown, parameters, width, live, most_rows))
            print(f"\n{lead_sentence(history, ranked)}")
            for opening in experiment.manifest.test_openings:
                print(printable(use_of_test_set_text(opening)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
