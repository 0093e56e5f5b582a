"""Shared parts of all commands: one-line errors, exit codes, and the options for a space.

Imports no large packages, so that `--help` is fast.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import IO, Any, NoReturn

from spaces.errors import InputError, RunError
from spaces.printable import printable

PACKAGE = "depthwise-search"
DEFAULT_SPACE = "quickstart"
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class CommandParser(argparse.ArgumentParser):
    """ArgumentParser with errors on one line and an example at the end of the help."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", help="print the version and exit")
        self.add_argument("--debug", action="store_true", help="show the whole trace of an error")

    @property
    def version(self) -> str:
        """Text of `--version`, which argparse asks for only when it is needed."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"{PACKAGE} {version(PACKAGE)}"
        except PackageNotFoundError:
            return f"{PACKAGE}, which is not installed, but run from a copy of its files"

    def error(self, message: str) -> NoReturn:
        print(printable(f"{self.prog}: {message}. See --help."), file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def completed(argument: argparse.Action, completer: Callable[..., Iterable[str]]) -> None:
    """Use `completer` for the Tab key: it takes the typed prefix and returns words that begin with it."""
    argument.completer = completer  # type: ignore[attr-defined]


def complete_spaces(prefix: str, **_: Any) -> Iterable[str]:
    """Names of shipped spaces and paths of YAML files that begin with `prefix`."""
    from argcomplete.completers import FilesCompleter

    from spaces.loader import shipped_spaces

    names = [name for name in shipped_spaces() if name.startswith(prefix)]
    return [*names, *FilesCompleter(["yaml", "yml"])(prefix)]


def complete_overrides(prefix: str, **_: Any) -> Iterable[str]:
    """All `section.key=` that begin with `prefix`, without values."""
    from spaces.schema import MODELS

    keys = [f"{section}.{key}=" for section, model in MODELS.items() for key in model.model_fields]
    return [key for key in keys if key.startswith(prefix)]


def add_space_arguments(parser: argparse.ArgumentParser) -> None:
    """Add SPACE and `--set`."""
    space = parser.add_argument(
        "space",
        nargs="?",
        metavar="SPACE",
        help=f"a YAML file, an experiment's folder, or a shipped name (default: {DEFAULT_SPACE})",
    )
    completed(space, complete_spaces)
    override = parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value of the file, written as in YAML; may be repeated",
    )
    completed(override, complete_overrides)


def run_command(
    parser: CommandParser, action: Callable[[argparse.Namespace], int], arguments: list[str] | None = None
) -> int:
    """Parse the arguments (None: the process's), run `action`, and print expected errors as lines on standard error.

    Returns:
        Exit code: that of `action`; 2 for invalid input, 1 for failed work, 130 after Ctrl-C.
    """
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)  # prints completions for the shell and exits
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on standard error: letters that its encoding lacks are escaped, and are no error.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parser.parse_intermixed_args(arguments)
    try:
        return action(options)
    except InputError as error:
        return _failed(error.lines, EXIT_BAD_INPUT, options.debug)
    except RunError as error:
        return _failed([error], EXIT_FAILED, options.debug)
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe. Python must not flush into it at exit.
        discard_output(sys.stdout)
        return 0
    except OSError as error:
        line = f"{error.filename or parser.prog}: {error.strerror or error}."
        return _failed([line], EXIT_FAILED, options.debug)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def discard_output(stream: IO[str]) -> None:
    """Redirect a stream to /dev/null, because its reader is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _failed(lines: Iterable[object], code: int, debug: bool) -> int:
    """Print the lines of the present exception, after its trace with `debug`, on standard error; return `code`."""
    trace = traceback.format_exc().splitlines() if debug else []
    for line in (*trace, *lines):
        print(printable(line), file=sys.stderr)
    return code
