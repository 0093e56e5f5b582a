"""Options that several commands share. Imports nothing heavy."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.experiment.command_lines import DEFAULT_RESULTS
from spaces.command import completed

if TYPE_CHECKING:
    from search.experiment.folder import Experiment

_PLAIN_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def add_results_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        default=str(DEFAULT_RESULTS),
        metavar="DIR",
        help="where experiments lie: a folder, or a URL such as s3://BUCKET/results (default: results)",
    )


def results_of(options: argparse.Namespace) -> tuple[Path, str | None]:
    """The folder of `--results` on this machine, and the URL that it is a copy of, or None."""
    if "://" not in options.results:
        return Path(options.results), None
    from search.experiment.remote_results import working_folder

    url = options.results.rstrip("/")
    return working_folder(url), url


def chosen_experiment(options: argparse.Namespace, given: str | None) -> "Experiment":
    """The experiment of a command, by name or path (None: the newest), in the folder or at the URL of `--results`.

    Raises:
        InputError: it does not exist; names those that exist.
    """
    folder, url = results_of(options)
    if url is not None:
        from search.experiment.remote_results import open_remote_experiment

        return open_remote_experiment(url, given)
    from search.experiment.folder import open_experiment

    return open_experiment(given, folder)


def add_experiment_arguments(parser: argparse.ArgumentParser, is_optional: bool = True) -> None:
    """Add the arguments EXPERIMENT, which is the newest by default if it `is_optional`, and `--results`."""
    what = "a name under the results folder, or a path"
    if is_optional:
        experiment = parser.add_argument(
            "experiment", nargs="?", metavar="EXPERIMENT", help=f"{what} (default: the newest)"
        )
    else:
        experiment = parser.add_argument("experiment", metavar="EXPERIMENT", help=what)
    completed(experiment, complete_experiments)
    add_results_argument(parser)


def complete_experiments(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
    """Names of experiments that start with `prefix`, for completion by the Tab key."""
    folder = results_of(parsed_args)[0]
    names = [path.name for path in folder.iterdir() if (path / "experiment.yaml").is_file()] if folder.is_dir() else []
    # A foreign folder can have any name, and completion must not insert shell syntax.
    return sorted(name for name in names if name.startswith(prefix) and _PLAIN_WORD.fullmatch(name))
