"""Commands that have to be ended from outside their main thread, in processes of their own; Ray is not needed."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.execution import cluster as cluster_module
from search.execution.cluster import LocalCluster
from search.processes.native_errors import native_errors_in

BEGINNING = """
    import ctypes, sys, threading, time
    from pathlib import Path
    from search.execution import stop_signal
    from search.execution.stop_signal import StopSignal
    from spaces.errors import RunError

    stop_signal.POLL_S, stop_signal.END_WITHIN_S = 0.05, 0.5

    def never_return():
        # Like C++ code that waits for an answer: the interpreter runs on, but not this thread, whatever signals come.
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)

    def last_words():
        Path(sys.argv[1]).write_text("written")
        return "nothing is lost."

    def tell():
        print("ready", flush=True)
"""


def start(program: str, written: Path) -> subprocess.Popen[str]:
    """A program that has printed a line."""
    code = textwrap.dedent(BEGINNING) + textwrap.dedent(program)
    command = [sys.executable, "-c", code, str(written)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ended(program: str, written: Path, *signals: int) -> tuple[int, str]:
    """The exit code and standard error of a program that gets `signals` once it has printed a line."""
    with start(program, written) as process:
        for number in signals:
            process.send_signal(number)
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    return process.returncode, errors


@pytest.mark.parametrize(
    ("number", "block"),
    [(signal.SIGTERM, "never_return()"), (signal.SIGINT, "threading.Lock().acquire() and time.sleep(100)")],
)
def test_a_signal_ends_a_command_whose_main_thread_does_not_return(tmp_path: Path, block: str, number: int) -> None:
    program = f"""
        with StopSignal() as stop:
            stop.leave_last_words(last_words)
            tell()
            {block}
    """
    code, errors = ended(program, tmp_path / "written", number)
    assert code == 130, errors
    assert (tmp_path / "written").read_text() == "written"
    assert errors.count("\n") == 1
    assert errors.endswith("nothing is lost.\n")


def test_a_lost_cluster_ends_a_command_that_is_inside_a_call_that_does_not_return(tmp_path: Path) -> None:
    program = """
        with StopSignal(lambda: "The cluster is gone") as stop:
            stop.leave_last_words(last_words)
            tell()
            with stop.inside_ray():
                never_return()
    """
    assert ended(program, tmp_path / "written") == (1, "The cluster is gone; nothing is lost.\n")
    assert (tmp_path / "written").read_text() == "written"


def test_what_ray_raises_is_the_loss_of_its_cluster_where_the_cluster_is_gone(tmp_path: Path) -> None:
    program = """
        lost = []
        with StopSignal(lambda: "The cluster is gone" if lost else None) as stop:
            tell()
            for what in (None, "gone"):
                try:
                    with stop.inside_ray():
                        lost.extend([what] if what else [])
                        raise ValueError("Ray's own words")
                except (RunError, ValueError) as error:
                    print(type(error).__name__, file=sys.stderr)
            stop.end()
            time.sleep(1)
            print("Files are written.", file=sys.stderr)
    """
    assert ended(program, tmp_path / "written") == (0, "ValueError\nRunError\nFiles are written.\n")


def test_a_stopped_process_is_not_ended_for_the_time_that_it_stood_still(tmp_path: Path) -> None:
    program = """
        stop_signal.END_WITHIN_S = 1.0
        with StopSignal() as stop:
            tell()
            while not stop.requested:
                time.sleep(0.01)
            time.sleep(0.3)
        print("ended by itself", file=sys.stderr)
    """
    with start(program, tmp_path / "written") as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "ended by itself\n")


@pytest.mark.cluster
def test_a_signal_after_the_cluster_has_ended_is_still_a_wish_to_end(tmp_path: Path) -> None:
    program = """
        from search.execution.cluster import LocalCluster
        with StopSignal() as stop, LocalCluster(1, 0) as cluster:
            cluster.end()
            tell()
            while not stop.requested:
                time.sleep(0.01)
        print("ended by itself", file=sys.stderr)
    """
    assert ended(program, tmp_path / "written", signal.SIGTERM) == (0, "ended by itself\n")


@pytest.mark.parametrize(("name", "is_needed"), [("raylet", True), ("gcs_server", True), ("dashboard", False)])
def test_a_cluster_is_gone_when_a_process_that_trials_need_has_ended(
    name: str, is_needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def info(exit_code: int | None) -> Any:
        return SimpleNamespace(process=SimpleNamespace(poll=lambda: exit_code))

    processes = {each: [info(None)] for each in ("raylet", "gcs_server", "dashboard")}
    monkeypatch.setattr(cluster_module, "node_of_this_process", lambda: SimpleNamespace(all_processes=processes))
    monkeypatch.setattr(LocalCluster, "_connect", lambda *_: None)
    monkeypatch.setattr(cluster_module, "keep_ray_to_itself", lambda: None)
    with LocalCluster(1, 0) as cluster:
        assert cluster.what_is_gone() is None
        processes[name] = [info(-9)]
        gone = f"Ray's process {name} is gone (killed, perhaps for its memory)" if is_needed else None
        assert cluster.what_is_gone() == gone
    assert cluster.what_is_gone() is None


def test_native_code_writes_to_a_file_and_python_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    first, second, unused = (tmp_path / name for name in ("first.err", "second.err", "unused.err"))
    with native_errors_in(first) as send_to:
        os.write(2, b"from C++\n")
        send_to(second)
        os.write(2, b"more\n")
        print("for the user", file=sys.stderr)
        send_to(unused)
    print("after it", file=sys.stderr)
    assert first.read_text() == "from C++\n"
    assert second.read_text().startswith("more\n")
    assert not unused.exists()
    assert "C++" not in capfd.readouterr().err


def test_python_errors_reach_the_terminal_while_native_ones_do_not(tmp_path: Path) -> None:
    program = """
        import os
        from search.processes.native_errors import native_errors_in
        with native_errors_in(Path(sys.argv[1])):
            tell()
            os.write(2, b"from C++")
            print("for the user", file=sys.stderr)
        print("after it", file=sys.stderr)
    """
    assert ended(program, tmp_path / "native.err") == (0, "for the user\nafter it\n")
    assert (tmp_path / "native.err").read_text() == "from C++"
