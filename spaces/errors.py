"""Errors that commands print as plain lines instead of a traceback."""

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path


class RunError(RuntimeError):
    """Work that failed although the input was valid. The message is one sentence that says what to do.

    Commands print it to standard error and exit with code 1.
    """


class InputError(ValueError):
    """Invalid input. Each line names the value, the rule and what to do.

    Commands print the lines to standard error and exit with code 2.

    Attributes:
        lines: complete sentences, one problem each.
    """

    def __init__(self, lines: str | Iterable[str]) -> None:
        self.lines: tuple[str, ...] = (lines,) if isinstance(lines, str) else tuple(lines)
        super().__init__("\n".join(self.lines))

    def __reduce__(self) -> tuple[type["InputError"], tuple[tuple[str, ...]]]:
        return (type(self), (self.lines,))


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` Did you mean …?` with the most similar of `words`, to append to a sentence; empty if none is similar."""
    match = nearest(word, words)
    return f" Did you mean `{match}`?" if match else ""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words`; None if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)), None)


def expanded(path: str | Path) -> Path:
    """`path` with `~` and `~user` expanded.

    Raises:
        InputError: the user does not exist, or no system can have such a path.
    """
    start = str(path)[:60]
    try:
        expanded_path = Path(path).expanduser()
        os.lstat(expanded_path)
    except RuntimeError:
        raise InputError(f"{start}: begins with the home of a user that this machine does not have.") from None
    except ValueError:
        raise InputError(f"{start}: holds characters that no path can have.") from None
    except OSError as error:  # other errors are reported where the path is opened
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{start}…: is too long for a path.") from None
    return expanded_path


def first_line(error: BaseException) -> str:
    """First line of an exception's message, at most 200 characters; its type's name where the message is empty."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
