"""Commands to type next, as messages show them. Imports nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING

from spaces.printable import shell_word

if TYPE_CHECKING:
    from search.experiment.folder import Experiment

DEFAULT_RESULTS = Path("results")


def command_line(command: str, *words: object, results: str | Path, more: str = "") -> str:
    """A command to type, such as `python -m search.run --resume NAME --results DIR`.

    Args:
        command: a module of `search`.
        words: an experiment's name and the like; quoted where a shell would see more in them.
        results: a folder or URL for `--results`, which is left out where it is the default.
        more: what follows, as it is to be typed, such as `IMAGE…`.
    """
    parts = [f"python -m search.{command}", *map(shell_word, words)]
    if str(results) != str(DEFAULT_RESULTS):
        parts += ["--results", shell_word(results)]
    return " ".join([*parts, *filter(None, [more.strip()])])


def resume_line(experiment: "Experiment", more: str = "") -> str:
    """The command that resumes a search, from anywhere."""
    return command_line("run", "--resume", experiment.name, results=experiment.results, more=more)


def command_on(command: str, experiment: "Experiment", more: str = "") -> str:
    """A command that takes an experiment, for this one, from anywhere."""
    return command_line(command, experiment.name, results=experiment.results, more=more)
