"""Options that several commands share. Imports nothing heavy."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.experiment.command_lines import DEFAULT_RESULTS
from spaces.command import completed

if TYPE_CHECKING:
    from search.experiment.folder import Experiment

_PLAIN_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _ResultsAction(argparse.Action):
    """Sets `results` to a folder of this machine, and `results_url` to the URL that it is a copy of, or None."""

    # Completion runs this action.
    only_stores = True

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = str(values)
        namespace.results, namespace.results_url = Path(given), None
        if "://" in given:
            from search.experiment.remote_results import working_folder

            namespace.results_url = given.rstrip("/")
            namespace.results = working_folder(namespace.results_url)


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(results_url=None)
    parser.add_argument(
        "--results",
        action=_ResultsAction,
        default=DEFAULT_RESULTS,
        metavar="DIR",
        help="where experiments lie: a folder, or a URL such as s3://BUCKET/results (default: results)",
    )


def chosen_experiment(options: argparse.Namespace, given: str | None) -> "Experiment":
    """The experiment of a command, in a folder or at a URL.

    Args:
        options: parsed by a parser with `add_results_argument`.
        given: name or path of the experiment; None for the newest.

    Raises:
        InputError: it does not exist; names those that exist.
    """
    if options.results_url is not None:
        from search.experiment.remote_results import open_remote_experiment

        return open_remote_experiment(options.results_url, given)
    from search.experiment.folder import open_experiment

    return open_experiment(given, options.results)


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments EXPERIMENT and `--results`."""
    completed(
        parser.add_argument(
            "experiment",
            nargs="?",
            metavar="EXPERIMENT",
            help="a name under the results folder, or a path (default: the newest)",
        ),
        complete_experiments,
    )
    add_results_argument(parser)


def complete_experiments(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
    """Names of experiments that start with `prefix`, for completion by the Tab key."""
    folder = parsed_args.results
    names = [path.name for path in folder.iterdir() if (path / "experiment.yaml").is_file()] if folder.is_dir() else []
    # A foreign folder can have any name, and completion must not insert shell syntax.
    return sorted(name for name in names if name.startswith(prefix) and _PLAIN_WORD.fullmatch(name))
