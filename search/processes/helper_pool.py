"""Helper processes of a command. Each has a pipe to the command, which ends with the process."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from spaces.errors import RunError

END_WITHIN_S = 60.0

Work = Callable[[Connection], None]


class HelperLostError(RunError):
    """A helper process was killed."""

    def __init__(self) -> None:
        super().__init__("A helper process was killed; most often memory ran out.")


@dataclass(frozen=True, slots=True)
class _Failed:
    """Message of a helper whose work raised an exception."""

    error: Exception


@dataclass(frozen=True, eq=False, slots=True)
class Helper:
    """A helper process, as the command sees it."""

    process: BaseProcess
    pipe: Connection

    def receive(self, timeout_s: float) -> Any:
        """The next message of the work.

        Raises:
            TimeoutError: no message came within `timeout_s`.
            HelperLostError: the process has ended.
            Exception: the work raised it.
        """
        try:
            if not self.pipe.poll(max(timeout_s, 0)):
                raise TimeoutError(f"A helper process sent nothing within {timeout_s:.0f} s.")
            message = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise HelperLostError from None
        if isinstance(message, _Failed):
            raise message.error
        return message


class HelperPool:
    """Starts helper processes; on leaving the context, for whatever reason, all of them are ended.

    Attributes:
        helpers: the processes that have not ended, in the order of their start.
    """

    def __init__(self) -> None:
        self.helpers: list[Helper] = []

    def start(self, work: Work) -> Helper:
        """Start a process.

        Args:
            work: called in the process with its end of the pipe. Picklable: a function of a module, or a
                `functools.partial` of one.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(work, theirs), daemon=True)
        process.start()
        theirs.close()  # otherwise the pipe would not end with the process
        self.helpers.append(Helper(process, ours))
        return self.helpers[-1]

    def messages(self, timeout_s: float) -> Iterator[Any]:
        """At most one message of each helper, waiting `timeout_s` for the first; drops helpers that have ended.

        Raises:
            HelperLostError: a process was killed.
            Exception: the work of a helper raised it.
        """
        by_pipe = {helper.pipe: helper for helper in self.helpers}
        for pipe in wait(list(by_pipe), timeout_s):
            helper = by_pipe[pipe]  # type: ignore[index]
            try:
                yield helper.receive(0)
            except HelperLostError:
                helper.process.join()
                if helper.process.exitcode:
                    raise
                self.helpers.remove(helper)
                helper.pipe.close()

    def __enter__(self) -> "HelperPool":
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self.helpers:
            helper.process.terminate()
        for helper in self.helpers:
            helper.process.join(timeout=END_WITHIN_S)
            helper.process.kill()
            helper.process.join()
            helper.pipe.close()


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _work(work: Work, pipe: Connection) -> None:
    # A terminal sends Ctrl-C to all processes; the command ends its helpers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work(pipe)
    except Exception as error:
        with contextlib.suppress(BrokenPipeError):  # the command is gone
            try:
                pipe.send(_Failed(error))
            except (TypeError, AttributeError):  # the error cannot be pickled
                pipe.send(_Failed(RunError(f"{type(error).__name__}: {error}")))
