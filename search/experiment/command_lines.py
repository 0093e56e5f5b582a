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
        command: name of a module of `search`.
        words: arguments, such as the name of an experiment; quoted for a shell.
        results: folder or URL for `--results`, which is left out if it is the default.
        more: text that is appended unquoted, such as `IMAGE…`.
    """
    parts = [f"python -m search.{command}", *map(shell_word, words)]
    if str(results) != str(DEFAULT_RESULTS):
        parts += ["--results", shell_word(results)]
    return " ".join([*parts, *filter(None, [more.strip()])])


def resume_line(experiment: "Experiment", more: str = "") -> str:
    """The command that resumes a search."""
    return command_line("run", "--resume", experiment.name, results=experiment.results, more=more)


def command_on(command: str, experiment: "Experiment", more: str = "") -> str:
    """The command line of `search.COMMAND` for this experiment."""
    return command_line(command, experiment.name, results=experiment.results, more=more)
