"""Makes text from files safe to print on a terminal."""

import functools
import json
import shlex
import sys
from typing import Any


def printable(text: object) -> str:
    """`text` on one line, with each non-printable character replaced by its escape, such as `\\x1b` or `\\u202e`.

    Names of folders, classes and files, and sentences of a journal, may include sequences that move the cursor, hide
    text or reverse its direction, and bytes that cannot be encoded.
    """
    return "".join(character if character.isprintable() else _escape(character) for character in str(text))


def json_text(content: Any) -> str:
    """Indented JSON with letters of all scripts as they are; characters that are not printable are escaped.

    Raises:
        ValueError: `content` holds NaN or an infinity, which JSON cannot represent.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    if text.isascii():
        return text
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def shortened(text: object, limit: int = 60) -> str:
    """`printable(text)`, cut to `limit` characters for a message."""
    shown = printable(text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def shell_word(text: object) -> str:
    """`text` as one word of a command line that a user may copy, quoted if necessary."""
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
