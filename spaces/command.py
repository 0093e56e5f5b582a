"""What every command shares: one-line errors, exit codes, and the options that choose a space.

Imports nothing heavy, so that `--help` answers at once.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, NoReturn

from spaces.errors import InputError, RunError
from spaces.printable import printable

PACKAGE = "depthwise-search"
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
        self.add_argument("--version", action=_Version)
        self.add_argument("--debug", action="store_true", help="show the whole trace of an error")

    def error(self, message: str) -> NoReturn:
        print(printable(f"{self.prog}: {message}. See --help."), file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


class _Version(argparse.Action):
    """As argparse's, which would have to know the version before it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"{PACKAGE} {version(PACKAGE)}")
        except PackageNotFoundError:
            print(f"{PACKAGE}, which is not installed, but run from a copy of its files")
        sys.exit(0)


def completed(argument: argparse.Action, completer: Callable[..., Iterable[str]]) -> None:
    """Have the Tab key offer what `completer` gives; see `spaces.completion`."""
    argument.completer = completer  # type: ignore[attr-defined]


def _complete_spaces(prefix: str, **values: Any) -> Iterable[str]:
    from spaces.completion import complete_spaces

    return complete_spaces(prefix, **values)


def _complete_overrides(prefix: str, **values: Any) -> Iterable[str]:
    from spaces.completion import complete_overrides

    return complete_overrides(prefix, **values)


def add_space_arguments(parser: argparse.ArgumentParser) -> None:
    """SPACE and `--set`."""
    space = parser.add_argument(
        "space",
        nargs="?",
        metavar="SPACE",
        help=f"a YAML file, an experiment's folder, or a shipped name (default: {DEFAULT_SPACE})",
    )
    completed(space, _complete_spaces)
    override = parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value of the file, written as in YAML; may be repeated",
    )
    completed(override, _complete_overrides)


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
    if "_ARGCOMPLETE" in os.environ:
        _answer_tab_key(parser)
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
        discard_output(sys.stdout)
        return 0
    except OSError as error:
        _show_trace(options)
        print(printable(f"{error.filename or parser.prog}: {error.strerror or error}."), file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def discard_output(stream: IO[str]) -> None:
    """Let what is still written to a stream go nowhere, because nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _answer_tab_key(parser: CommandParser) -> None:
    """Tell the shell what may follow what was typed, and exit; a shell that can ask has argcomplete."""
    import argcomplete
    from argcomplete.finders import safe_actions

    # Actions of our own are passed over unless they say that they only take a value down.
    safe_actions.update(type(each) for each in parser._actions if getattr(each, "only_stores", False))
    argcomplete.autocomplete(parser)


def _show_trace(options: argparse.Namespace) -> None:
    if options.debug:
        for line in traceback.format_exc().splitlines():
            print(printable(line), file=sys.stderr)
