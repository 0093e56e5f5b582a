"""Text from files on a terminal: it shows itself, and commands nothing."""

import functools
import shlex
import sys


def printable(text: object) -> str:
    """`text` on one line, with everything that does not show replaced by its escape, such as `\\x1b` or `\\u202e`.

    Names of folders, classes and files, and sentences from a journal, may hold sequences that move the cursor,
    hide what follows or turn its direction; and bytes that no encoding can print.
    """
    return "".join(character if character.isprintable() else _escape(character) for character in str(text))


def shortened(text: object, limit: int = 60) -> str:
    """`printable(text)`, cut to `limit` characters for a message."""
    shown = printable(text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def shell_word(text: object) -> str:
    """`text` as one word of a command line that a user may copy: quoted where a shell would see more in it."""
    return shlex.quote(printable(text))


def warn(line: str) -> None:
    """Print `line` on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


@functools.cache
def warn_once(line: str) -> None:
    """Print `line` on standard error, unless this process has printed it before."""
    warn(line)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
