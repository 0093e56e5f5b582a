"""What every command shares: one-line errors, exit codes, and the options that choose a space.

Imports nothing heavy, so that `--help` answers at once.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from spaces.errors import InputError, RunError
from spaces.printable import printable

DEFAULT_SPACE = "quickstart"
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class CommandParser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose help ends with an example."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the whole trace of an error")

    def error(self, message: str) -> NoReturn:
        print(printable(f"{self.prog}: {message}. See --help."), file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def add_space_arguments(parser: argparse.ArgumentParser) -> None:
    """SPACE and `--set`."""
    parser.add_argument(
        "space",
        nargs="?",
        metavar="SPACE",
        help=f"a YAML file, an experiment's folder, or a shipped name (default: {DEFAULT_SPACE})",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value of the file, written as in YAML; may be repeated",
    )


def run_command(
    parser: CommandParser, action: Callable[[argparse.Namespace], int], arguments: list[str] | None = None
) -> int:
    """Parse, act, and turn what the user can mend into lines on standard error.

    Args:
        parser: the command's own.
        action: does the work and gives the exit code.
        arguments: instead of the process's own.

    Returns:
        The exit code: 2 for bad input, 1 for what the machine refused, 130 after Ctrl-C.
    """
    options = parser.parse_args(arguments)
    try:
        return action(options)
    except InputError as error:
        _show_trace(options)
        for line in error.lines:
            print(printable(line), file=sys.stderr)
        return EXIT_BAD_INPUT
    except RunError as error:
        _show_trace(options)
        print(printable(error), file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader (head, less) has had enough; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _show_trace(options)
        print(printable(f"{error.filename or parser.prog}: {error.strerror or error}."), file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _show_trace(options: argparse.Namespace) -> None:
    if options.debug:
        for line in traceback.format_exc().splitlines():
            print(printable(line), file=sys.stderr)
