"""The one kind of error that is the user's to mend."""

from collections.abc import Iterable


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
