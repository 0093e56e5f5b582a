"""Ends a command that was asked to end, or whose Ray cluster is gone."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from spaces.command import EXIT_FAILED, EXIT_INTERRUPTED
from spaces.errors import RunError
from spaces.printable import printable

POLL_S = 1.0
# From a signal or the loss of the cluster to the end of the process, unless the command ended before.
END_WITHIN_S = 10.0
# For the last words before that: they may wait for a disk or a terminal that does not answer.
LAST_WORDS_S = 2.0

_REQUESTS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Treats Ctrl-C and `kill` as a request to end cleanly; a second one ends at once. A context manager.

    Within it, a thread watches the command, because the main thread may be in a call to Ray's C++ code that never
    returns. The thread learns of signals from the kernel (`signal.set_wakeup_fd`), and asks every `POLL_S` whether
    the cluster is still there. A command that has not ended `END_WITHIN_S` later is ended by `os._exit`, after its
    last words; whatever it started is ended by its guardian (`search.processes.guarded_folder`).

    Args:
        what_is_gone: called every `POLL_S` in the thread; returns the reason of the cluster's loss, or None. Must
            not block.

    Attributes:
        requested: whether a signal was received.
        lost: reason of the cluster's loss in one line; None while it runs.
    """

    def __init__(self, what_is_gone: Callable[[], str | None] = lambda: None) -> None:
        self.requested = False
        self.lost: str | None = None
        self._before = {number: signal.getsignal(number) for number in _REQUESTS}
        self._what_is_gone = what_is_gone
        self._last_words: Callable[[], str] = lambda: "nothing was started."
        self._signalled = False
        self._wakeup = -1

    def listen(self) -> None:
        """Install the signal handlers; again after other code, such as `ray.init`, has replaced them."""
        for number in self._before:
            signal.signal(number, self._request)

    def leave_last_words(self, last_words: Callable[[], str]) -> None:
        """Call `last_words` where the command has to be ended, possibly in the watching thread.

        It writes what must be written, and returns the end of the command's last line: what is kept and what to do.
        """
        self._last_words = last_words

    @contextlib.contextmanager
    def inside_ray(self) -> Iterator[None]:
        """A block whose exceptions say less than the loss of the cluster, where that is their cause.

        Raises:
            RunError: the cluster is gone.
        """
        try:
            yield
        except Exception:
            if not self._cluster_is_gone():
                raise
        if self.lost:
            raise RunError(f"{self.lost}; {self._last_words()}")

    def end(self) -> None:
        """Stop watching: the time of the following steps is not limited."""
        if self._wakeup >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup)  # the thread reads the end of its pipe
            self._wakeup = -1

    def _request(self, signal_number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> "StopSignal":
        self.listen()
        reader, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="interruption", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _watch(self, reader: int) -> None:
        # Counted, not read from a clock: a process that was stopped (SIGSTOP) has not had the time that passed.
        waited_s = 0.0
        while self._is_watched(reader):
            if self._signalled or self._cluster_is_gone():
                waited_s += POLL_S
            if waited_s > END_WITHIN_S:
                self._end_process()
        os.close(reader)

    def _is_watched(self, reader: int) -> bool:
        """Wait for a second; False where the command has ended."""
        until_s = time.monotonic() + POLL_S
        while (left_s := until_s - time.monotonic()) > 0:
            if select.select([reader], [], [], left_s)[0]:
                numbers = os.read(reader, 64)
                if not numbers:
                    return False
                self._signalled |= any(number in _REQUESTS for number in numbers)
        return True

    def _cluster_is_gone(self) -> bool:
        self.lost = self.lost or self._what_is_gone()
        return self.lost is not None

    def _end_process(self) -> None:
        words = threading.Thread(target=self._say_last_words, daemon=True)
        words.start()
        words.join(LAST_WORDS_S)
        os._exit(EXIT_FAILED if self.lost else EXIT_INTERRUPTED)

    def _say_last_words(self) -> None:
        reason = self.lost or f"The command did not end within {END_WITHIN_S:.0f} s of the signal and was broken off"
        print(printable(f"{reason}; {self._last_words()}"), file=sys.stderr, flush=True)
