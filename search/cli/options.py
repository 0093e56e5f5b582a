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
    """`results` is a folder of this machine; `results_url` what it is a copy of, or None."""

    # What the Tab key offers depends on it.
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
            from search.experiment.remote_files import working_folder

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
    """The experiment that a command names, in a folder or at a URL.

    Raises:
        InputError: there is none; names those that there are.
    """
    if options.results_url is not None:
        from search.experiment.remote_results import open_remote_experiment

        return open_remote_experiment(options.results_url, given)
    from search.experiment.folder import open_experiment

    return open_experiment(given, options.results)


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT and `--results`."""
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
    """Names under the results folder that begin with `prefix`, for the Tab key."""
    folder = parsed_args.results
    names = [path.name for path in folder.iterdir() if (path / "experiment.yaml").is_file()] if folder.is_dir() else []
    # A folder from elsewhere may be called anything; what Tab puts on a command line is a plain word.
    return sorted(name for name in names if name.startswith(prefix) and _PLAIN_WORD.fullmatch(name))
