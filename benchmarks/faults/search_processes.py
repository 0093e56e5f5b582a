"""A search as a process of its own, and all processes that belong to it: found, frozen, killed. Linux only (/proc)."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

# Ray's sockets lie under TMPDIR, and a longer one than this is passed over (`search.execution.cluster`).
LONGEST_TEMPORARY_PATH = 30
POLL_S = 0.002

_RESULTS_FILE = re.compile(r"/session_(\d+)/(?:driver_artifacts/)?trial_(\d+)(?:_(\d+))?/result\.json")


def short_temporary_folder() -> Path:
    """A new folder that is short enough to be a search's TMPDIR."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="f", dir=usual if len(usual) <= LONGEST_TEMPORARY_PATH - 10 else "/tmp"))


class SearchProcess:
    """One launch of `python -m search.run`, in a process group of its own.

    Args:
        arguments: of the command.
        temporary: its TMPDIR, by which the processes that belong to it are known.
        log: gets what it prints; errors go to the same name with `.err`.
    """

    def __init__(self, arguments: Sequence[str], temporary: Path, log: Path) -> None:
        self.temporary = temporary
        self.started_at = time.time()
        self._errors = log.with_suffix(".err")
        with log.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "search.run", *arguments],
                cwd=log.parent,
                env={**os.environ, "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def errors(self) -> str:
        """What it printed to standard error so far."""
        return self._errors.read_text(errors="replace")

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def freeze(self, others: bool) -> list[int]:
        """Stop the driver, and with `others` all processes that belong to it, so that their files can be looked at.

        Returns:
            The processes that stand still.
        """
        frozen: list[int] = []
        while new := [pid for pid in self._wanted(others) if pid not in frozen]:
            _signal(new, signal.SIGSTOP)
            _wait_until_still(new)
            frozen += new
        return frozen

    def kill(self, pids: Iterable[int]) -> None:
        """`kill -9`; returns when the driver is gone, if it is among them."""
        killed = list(pids)
        _signal(killed, signal.SIGKILL)
        if self.pid in killed:
            self._process.wait(30)

    def workers(self) -> list[int]:
        """The processes that hold a trial."""
        return [pid for pid in processes_of(self.temporary, {self.pid}) if b"Trainable" in _command(pid)]

    def services(self, name: str) -> list[int]:
        """The processes of Ray's program `name`, such as `raylet`."""
        wanted = name.encode()
        return [
            pid
            for pid in processes_of(self.temporary, {self.pid})
            if _command(pid).split(b"\0")[0].rpartition(b"/")[2] == wanted
        ]

    def end_all(self) -> None:
        """Kill whatever belongs to it."""
        self.kill(self.freeze(others=True))

    def _wanted(self, others: bool) -> list[int]:
        if others:
            return processes_of(self.temporary, {self.pid})
        return [self.pid] if self.exit_code is None else []


def processes_of(temporary: Path, groups: Iterable[int] = ()) -> list[int]:
    """Living processes of searches whose TMPDIR is `temporary`, or which are in one of these process groups."""
    wanted = set(groups)
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and _belongs(pid, str(temporary), wanted)]


def wait_until_none(temporary: Path, timeout_s: float) -> list[int]:
    """The processes that still live when the time is up."""
    deadline = time.monotonic() + timeout_s
    while (left := processes_of(temporary)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def described(pid: int) -> str:
    """A process's number and the beginning of its command line."""
    words = _command(pid).decode(errors="replace").replace("\0", " ")
    return f"{pid} ({words[:80].strip()})"


def trained_epochs(*folders: Path) -> dict[int, dict[int, list[int]]]:
    """By Ray's own logs, wherever they lie under `folders`: for each session and trial, the epochs in order."""
    found: dict[tuple[int, int], dict[int, list[int]]] = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            match = _RESULTS_FILE.search(f"{parent}/result.json") if "result.json" in names else None
            if match:
                session, trial, time_given = int(match[1]), int(match[2]), int(match[3] or 1)
                epochs = _logged_epochs(Path(parent, "result.json"))
                times = found.setdefault((session, trial), {})
                times[time_given] = max(times.get(time_given, []), epochs, key=len)
    trained: dict[int, dict[int, list[int]]] = {}
    for (session, trial), times in found.items():
        # One that was promoted has a file for each time that it was given out.
        trained.setdefault(session, {})[trial] = [epoch for _, epochs in sorted(times.items()) for epoch in epochs]
    return trained


def _logged_epochs(path: Path) -> list[int]:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [int(json.loads(line)["epoch"]) for line in lines if line.endswith(b"\n")]


def _belongs(pid: int, temporary: str, groups: set[int]) -> bool:
    if _state(pid) in ("Z", "X", None):
        return False
    # A process may overwrite its own environment with its title; its log files still say whose it is.
    marks = (_read(pid, "environ"), _command(pid))
    if any(temporary.encode() in mark for mark in marks):
        return True
    try:
        if os.getpgid(pid) in groups:
            return True
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(link.startswith(f"{temporary}/") for link in links)


def _wait_until_still(pids: Iterable[int], timeout_s: float = 2.0) -> None:
    deadline = time.monotonic() + timeout_s
    while any(_state(pid) not in ("T", "Z", "X", None) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.001)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _state(pid: int) -> str | None:
    text = _read(pid, "stat")
    return chr(text[text.rfind(b")") + 2]) if text else None


def _command(pid: int) -> bytes:
    return _read(pid, "cmdline")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
