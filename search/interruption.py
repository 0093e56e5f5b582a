"""Ctrl-C and `kill` as a wish."""

import signal
from types import FrameType


class Interruption:
    """Takes Ctrl-C and `kill` as a wish to end cleanly; a second one ends at once."""

    def __init__(self) -> None:
        self.wished = False
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def listen(self) -> None:
        """Take the signals; again after something else, such as `ray.init`, has taken them for itself."""
        for number in self._before:
            signal.signal(number, self._wish)

    def _wish(self, signal_number: int, frame: FrameType | None) -> None:
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True

    def __enter__(self) -> "Interruption":
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
