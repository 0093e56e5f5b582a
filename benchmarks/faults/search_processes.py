"""A search as a process of its own, and the processes that belong to it: found, frozen, killed. Linux only (/proc)."""

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

from benchmarks.faults.files import read_or_empty

# Ray's sockets lie in TMPDIR; `search.execution.cluster` does not use a TMPDIR with a longer path.
LONGEST_TEMPORARY_PATH = 30
ENDED_STATES = ("Z", "X", "")
RESULTS_FILE = re.compile(r"/session_(\d+)/(?:driver_artifacts/)?trial_(\d+)(?:_(\d+))?/result\.json")


def short_temporary_folder() -> Path:
    """A new folder whose path is short enough for a search's TMPDIR."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="f", dir=usual if len(usual) <= LONGEST_TEMPORARY_PATH - 10 else "/tmp"))


class SearchProcess:
    """One launch of `python -m search.run`, in a process group of its own.

    Args:
        arguments: arguments of the command.
        temporary: its TMPDIR, by which the processes that belong to it are recognised.
        log: file for its output; its errors go to the same name with `.err`.
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
        return self._process.poll()

    @property
    def errors(self) -> str:
        """Its standard error so far."""
        return self._errors.read_text(errors="replace")

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def freeze(self, others: bool) -> list[int]:
        """Stop the driver, and with `others` all its processes, so that their files do not change.

        Returns:
            Ids of the stopped processes.
        """
        frozen: list[int] = []
        while new := [pid for pid in self._living(others) if pid not in frozen]:
            _signal(new, signal.SIGSTOP)
            deadline = time.monotonic() + 2
            while any(_state(pid) not in ("T", *ENDED_STATES) for pid in new) and time.monotonic() < deadline:
                time.sleep(0.001)
            frozen += new
        return frozen

    def kill(self, pids: Iterable[int]) -> None:
        """`kill -9`; if the driver is among them, waits until it has ended."""
        killed = list(pids)
        _signal(killed, signal.SIGKILL)
        if self.pid in killed:
            self._process.wait(30)

    def workers(self) -> list[int]:
        """Processes that hold a trial."""
        return [pid for pid in self._living(others=True) if b"Trainable" in _read(pid, "cmdline")]

    def services(self, name: str) -> list[int]:
        """Processes of one of Ray's programs, such as `raylet`."""
        programs = {pid: _read(pid, "cmdline").split(b"\0")[0] for pid in self._living(others=True)}
        return [pid for pid, program in programs.items() if program.endswith(f"/{name}".encode())]

    def end_all(self) -> None:
        """Kill all processes that belong to it."""
        self.kill(self.freeze(others=True))

    def _living(self, others: bool) -> list[int]:
        if others:
            return processes_of(self.temporary, self.pid)
        return [self.pid] if self.exit_code is None else []


def processes_of(temporary: Path, group: int | None = None) -> list[int]:
    """Living processes of the searches whose TMPDIR is `temporary`, or of a process group."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and _belongs(pid, str(temporary), group)]


def wait_until_none(temporary: Path, timeout_s: float) -> list[str]:
    """Id and command of each process that still lives after the time."""
    deadline = time.monotonic() + timeout_s
    while (left := processes_of(temporary)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"{pid} ({_read(pid, 'cmdline').decode(errors='replace')[:80]!r})" for pid in left]


def trained_epochs(session: int, *folders: Path) -> dict[int, list[int]]:
    """Epochs of each trial in a session, in the order of training, by Ray's logs anywhere in `folders`."""
    found: dict[tuple[int, int], list[int]] = {}
    for parent in (parent for folder in folders for parent, _, names in os.walk(folder) if "result.json" in names):
        match = RESULTS_FILE.search(f"{parent}/result.json")
        if match and int(match[1]) == session:
            lines = read_or_empty(Path(parent, "result.json")).splitlines(keepends=True)
            epochs = [int(json.loads(line)["epoch"]) for line in lines if line.endswith(b"\n")]
            # A trial whose worker was lost has one file for each time that it was dispatched, maybe in several folders.
            key = int(match[2]), int(match[3] or 1)
            found[key] = max(found.get(key, []), epochs, key=len)
    trained: dict[int, list[int]] = {}
    for (trial, _), epochs in sorted(found.items()):
        trained.setdefault(trial, []).extend(epochs)
    return trained


def _belongs(pid: int, temporary: str, group: int | None) -> bool:
    if _state(pid) in ENDED_STATES:
        return False
    if any(temporary.encode() in _read(pid, name) for name in ("environ", "cmdline")):
        return True
    try:
        # A process may overwrite its environment with its title; its open files still show the folder.
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        return os.getpgid(pid) == group or any(link.startswith(f"{temporary}/") for link in links)
    except OSError:
        return False


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _state(pid: int) -> str:
    """State of a process, one letter; empty without the process."""
    text = _read(pid, "stat")
    return chr(text[text.rfind(b")") + 2]) if text else ""


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
