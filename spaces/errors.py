"""Errors that a command tells in lines of its own instead of a trace."""

from collections.abc import Iterable
from pathlib import Path


class RunError(RuntimeError):
    """Work that could not be finished, through no fault of the input; one sentence that says what to do.

    Commands print it to standard error and exit with code 1.
    """


class InputError(ValueError):
    """Bad input: each line names the value, the rule and what to do.

    Commands print the lines to standard error and exit with code 2.

    Attributes:
        lines: one finding each, already complete sentences.
    """

    def __init__(self, lines: str | Iterable[str]) -> None:
        self.lines: tuple[str, ...] = (lines,) if isinstance(lines, str) else tuple(lines)
        super().__init__("\n".join(self.lines))

    def __reduce__(self) -> tuple[type["InputError"], tuple[tuple[str, ...]]]:
        return (type(self), (self.lines,))


def expanded(path: str | Path) -> Path:
    """`path` with `~` and `~user` expanded.

    Raises:
        InputError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: begins with the home of a user that this machine does not have.") from None
