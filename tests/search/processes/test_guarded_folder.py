"""What is left after a command, however it ends: nothing."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from search.processes import guardian
from search.processes.guarded_folder import guarded_folder
from tests.support.processes import marked_commands, wait_until

# Starts a child, one that ignores SIGTERM in a session of its own, and one whose parent is gone; then waits for a line.
COMMAND = """
import subprocess, sys
from search.processes.guarded_folder import guarded_folder

with guarded_folder() as guarded:
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600; sleep 600"], start_new_session=True)
    subprocess.run(["sh", "-c", "sleep 600 &"])
    print(guarded, flush=True)
    sys.stdin.readline()
"""


@dataclass
class Command:
    """A command that runs, and the folder that goes with it."""

    process: subprocess.Popen[str]
    folder: Path

    def is_gone(self) -> bool:
        return not (self.folder.exists() or marked_commands(self.folder))


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the test's own, also in this process; short, as long ones are not used."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def command(temporary: Path) -> Iterator[Command]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        yield Command(process, folder)
        process.kill()
    wait_until(lambda: guardian_pid(folder) is None)
    guardian.end_marked(folder)


def guardian_pid(folder: Path) -> int | None:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if guardian.__file__.encode() in words and str(folder).encode() in words:
                return int(process.name)
    return None


def must_have_a_guardian(folder: Path) -> int:
    wait_until(lambda: guardian_pid(folder) is not None)
    pid = guardian_pid(folder)
    assert pid is not None
    return pid


def stale_folder(parent: Path, owner: str = "1") -> Path:
    folder = Path(tempfile.mkdtemp(prefix=guardian.PREFIX, dir=parent))
    (folder / guardian.OWNER).write_text(owner)
    (folder / "sub").mkdir()
    return folder


def test_within_the_block_children_are_marked_and_keep_their_temporary_files_in_the_folder(temporary: Path) -> None:
    before = dict(os.environ)
    with guarded_folder() as guarded:
        assert guarded.parent == temporary
        assert guarded.stat().st_mode & 0o777 == 0o700
        child = subprocess.Popen(["sleep", "600"])
        # For a moment after it has become another program, a process has no environment to read.
        wait_until(lambda: guardian.marked_processes(guarded) == [child.pid])
        made = subprocess.run(
            [sys.executable, "-Ic", "import tempfile; print(tempfile.mkdtemp())"], capture_output=True
        )
        assert Path(made.stdout.decode().strip()).parent == guarded
    assert os.environ == before
    assert child.wait(0) == -signal.SIGTERM
    assert list(temporary.iterdir()) == []


def test_an_orderly_end_leaves_nothing_when_it_returns(command: Command) -> None:
    assert command.folder.exists()
    # For a moment after it has become another program, a process has no environment to read.
    wait_until(lambda: len(marked_commands(command.folder)) >= 4)
    command.process.communicate("end\n", timeout=10)
    assert command.process.returncode == 0
    assert command.is_gone()


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["alone", "with its group"])
def test_kill_9_of_the_command_leaves_nothing(command: Command, kill: Callable[[int, int], None]) -> None:
    kill(command.process.pid, signal.SIGKILL)
    wait_until(command.is_gone)


def test_a_guardian_ends_for_nothing_but_its_command_and_is_small(temporary: Path) -> None:
    with guarded_folder() as guarded:
        pid = must_have_a_guardian(guarded)
        status = Path(f"/proc/{pid}/status")
        # The mask of ignored signals says that it has got beyond its own start.
        wait_until(lambda: int(status.read_text().split("SigIgn:")[1].split()[0], 16) & 1 << signal.SIGTERM - 1 != 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert os.getsid(pid) == pid
        assert int(status.read_text().split("VmRSS:")[1].split()[0]) < 20_000, "kB"
        assert guardian_pid(guarded) == pid
    assert guardian_pid(guarded) is None


def test_processes_of_others_stay(command: Command, temporary: Path) -> None:
    with guarded_folder() as other:
        stranger = subprocess.Popen(["sleep", "600"])
        os.kill(command.process.pid, signal.SIGKILL)
        wait_until(command.is_gone)
        assert stranger.poll() is None
        assert other.exists()


def test_python_s_tracker_of_shared_memory_is_left_to_clear_up_and_ends_by_itself(temporary: Path) -> None:
    program = (
        "import multiprocessing, sys\n"
        "from search.processes.guarded_folder import guarded_folder\n"
        "with guarded_folder() as guarded:\n"
        "    queue = multiprocessing.get_context('spawn').Queue()\n"
        "    print(guarded, queue._rlock._semlock.name, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, semaphore = process.stdout.readline().split()
        semaphores = Path(f"/dev/shm/sem.{semaphore.removeprefix('/')}")
        assert semaphores.exists()
        assert len(marked_commands(Path(folder))) == 1
        process.kill()
    wait_until(lambda: not (Path(folder).exists() or marked_commands(Path(folder)) or semaphores.exists()))


@pytest.mark.parametrize("is_killed_too", [False, True])
def test_a_guardian_that_was_killed_is_missed_only_by_a_command_that_is_killed_too(
    command: Command, is_killed_too: bool
) -> None:
    os.kill(must_have_a_guardian(command.folder), signal.SIGKILL)
    wait_until(lambda: guardian_pid(command.folder) is None)
    guardian.remove_stale_folders(command.folder.parent)
    assert command.folder.exists(), "the command lives"
    assert marked_commands(command.folder)
    if not is_killed_too:
        command.process.communicate("end\n", timeout=10)
        assert command.process.returncode == 0
        assert command.is_gone()
        return
    # As a power cut does, except for the processes that the command started; the next command ends those.
    command.process.kill()
    command.process.wait()
    assert marked_commands(command.folder)
    with guarded_folder():
        wait_until(command.is_gone)


def test_a_folder_stays_where_its_lock_is_held_whatever_its_owner_file_says(temporary: Path) -> None:
    folder = stale_folder(temporary, owner=str(os.getpid()))
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    guardian.remove_stale_folders(temporary)
    assert folder.exists()
    os.close(lock)
    guardian.remove_stale_folders(temporary)
    assert not folder.exists()


def test_whatever_may_be_somebody_else_s_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = temporary / "target"
    target.mkdir(mode=0o700)
    (target / guardian.OWNER).write_text("1")
    (temporary / "dws-link").symlink_to(target)
    stale_folder(temporary).chmod(0o755)
    (stale_folder(temporary) / guardian.OWNER).unlink()
    stale_folder(temporary, owner="")
    (temporary / "dws-file").write_text("")
    before = sorted(temporary.rglob("*"))
    guardian.remove_stale_folders(temporary)
    assert sorted(temporary.rglob("*")) == before

    foreign = stale_folder(temporary)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        guardian.remove_stale_folders(temporary)
        assert foreign.exists()
    guardian.remove_stale_folders(temporary)
    assert not foreign.exists()


def test_a_link_within_a_folder_is_removed_and_what_it_leads_to_stays(temporary: Path) -> None:
    kept = temporary / "kept"
    kept.mkdir()
    (stale_folder(temporary) / "link").symlink_to(kept)
    guardian.remove_stale_folders(temporary)
    assert list(temporary.iterdir()) == [kept]


def test_a_temporary_folder_whose_path_is_too_long_for_sockets_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / "a folder with a long name"
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with guarded_folder() as guarded:
        assert guarded.parent == Path("/tmp")
