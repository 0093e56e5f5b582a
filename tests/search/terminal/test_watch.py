"""`search.leaderboard --watch` on a search that another process runs."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from search import leaderboard
from search.experiment.events import TrialEnded, event_as_dict
from search.experiment.folder import Experiment
from search.experiment.journal import JournalFollower, read_history
from search.experiment.manifest import Session, timestamp
from search.terminal import watch
from spaces import InputError, Space, load_space
from tests.support.foreign import make_experiment
from tests.support.processes import listen_to_ctrl_c
from tests.support.simulation import result


@pytest.fixture
def experiment(tiny_space: Space, tmp_path: Path) -> Experiment:
    return make_experiment(tmp_path / "results", "mine", tiny_space)


@pytest.fixture(autouse=True)
def _a_terminal_that_can_do_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_followed_journal_says_what_the_whole_one_says(experiment: Experiment) -> None:
    path = experiment.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    follower = JournalFollower(path)
    path.write_bytes(lines[0])
    first = follower.history()
    with path.open("ab") as file:
        for line in lines[1:]:
            file.write(line[:7])
            file.flush()
            assert follower.history() is first, "a line that is being written is none yet"
            file.write(line[7:])
            file.flush()
            assert follower.history() is first, "what is known is not read again"
    assert [event_of(trial.epochs) for trial in first.trials.values()] == [
        event_of(trial.epochs) for trial in read_history(path).trials.values()
    ]
    assert len(first.events) == len(lines)


def event_of(epochs: list) -> list[dict]:  # type: ignore[type-arg]
    return [event_as_dict(epoch) for epoch in epochs]


def test_a_followed_journal_that_was_replaced_or_cut_is_read_anew(experiment: Experiment) -> None:
    path = experiment.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    follower = JournalFollower(path)
    assert len(follower.history().events) == len(lines)
    path.write_bytes(b"".join(lines[:3]))
    assert len(follower.history().events) == 3
    path.rename(path.with_name("before"))
    path.write_bytes(b"".join(lines))
    assert len(follower.history().events) == len(lines)


def test_a_followed_journal_that_is_damaged_is_read_from_its_copy(experiment: Experiment, told: list[str]) -> None:
    journal = experiment.journal()
    journal.append(result(1, 2, 0.5))
    follower = JournalFollower(journal.path)
    follower.history()
    with journal.path.open("ab") as file:
        file.write(b"garbage, and no event at all\n")
    history = follower.history()
    assert history.trials[1].n_epochs == 2
    assert follower.history() is history
    assert len(told) == 1
    assert ".backup/journal.jsonl is used" in told[0]
    (experiment.folder / ".backup" / "journal.jsonl").unlink()
    with journal.path.open("ab") as file:
        file.write(b"more garbage\n")
    with pytest.raises(InputError, match="is not an event of a search"):
        follower.history()


def test_it_follows_a_search_to_its_end(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("search.terminal.watch.REFRESH_S", 0.2)
    stream = StringIO()
    held = threading.Event()

    def search() -> None:
        with Experiment(experiment.folder).exclusive():
            journal = experiment.journal()
            held.set()
            time.sleep(0.5)
            journal.append(result(1, 2, 0.9123))
            journal.append(TrialEnded(1, "stopped", "91.23% at rung 2, below its cutoff 99%", time.time()))
            time.sleep(0.8)

    other = threading.Thread(target=search)
    other.start()
    held.wait()
    watch.watch(experiment, Console(file=stream, force_terminal=True, width=80, height=24))
    other.join()
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    first, _, after = text.partition("stopped   epoch   2")
    assert "mine  searching" in first
    assert "q leaves; the search goes on" in first
    assert "\x1b[?1049l" in after


def test_the_time_left_is_what_earlier_sessions_left_of_the_budget(tmp_path: Path) -> None:
    space = load_space("quickstart", ["search.trials=null", "search.time_budget=2h"])
    experiment = make_experiment(tmp_path / "results", "mine", space)
    now = time.time()
    sessions = [
        Session(started_at=timestamp(now - 9e5), seconds=3600.0),
        Session(started_at=timestamp(now - 1800)),
    ]
    experiment.write_manifest(experiment.manifest.model_copy(update={"sessions": sessions}))
    stream = StringIO()
    Console(file=stream, width=80).print(watch._Watched(experiment).draw(80, 24))
    assert stream.getvalue().splitlines()[0].rstrip().endswith("about 30 minutes left")


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_keys_leave_it_and_the_terminal_is_as_it_was(experiment: Experiment, key: bytes, tmp_path: Path) -> None:
    terminal, keyboard = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    before = termios.tcgetattr(keyboard)
    command = [sys.executable, "-m", "search.leaderboard", "mine", "--watch"]
    with experiment.exclusive():
        process = subprocess.Popen(
            command, cwd=tmp_path, stdin=keyboard, stdout=keyboard, stderr=keyboard, start_new_session=True,
            preexec_fn=lambda: _take_terminal(keyboard),
        )  # fmt: skip
        shown = read_until(terminal, b"workers", 120)
        assert b"\x1b[?1049h" in shown
        os.write(terminal, key)
        after = read_until(terminal, b"leads with" if key == b"q" else b"\x1b[?1049l", 120)
        assert process.wait(60) == (0 if key == b"q" else 130)
    assert b"\x1b[?1049l" in after
    assert b"Traceback" not in shown + after
    assert termios.tcgetattr(keyboard) == before
    if key == b"q":
        assert b"mine: 1 of 8 trials ended, running now" in after


def _take_terminal(handle: int) -> None:
    import fcntl

    listen_to_ctrl_c()
    fcntl.ioctl(handle, termios.TIOCSCTTY, 0)


def read_until(handle: int, wanted: bytes, timeout_s: float) -> bytes:
    deadline_s, seen = time.monotonic() + timeout_s, b""
    while wanted not in seen:
        assert time.monotonic() < deadline_s, seen.decode(errors="replace")
        if select.select([handle], [], [], 1.0)[0]:
            seen += os.read(handle, 65536)
    return seen


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def call_leaderboard(*arguments: str) -> tuple[int, str, str]:
        code = leaderboard.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call_leaderboard


def test_into_a_pipe_it_is_refused(experiment: Experiment, call: Callable[..., tuple[int, str, str]]) -> None:
    code, output, errors = call("mine", "--watch")
    assert (code, output) == (2, "")
    assert errors.splitlines() == [
        "--watch needs a terminal that shows screens. Without it, the leaderboard is printed once."
    ]


def test_what_does_not_run_is_shown_once_and_said_not_to(
    experiment: Experiment, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, output, errors = call("mine", "--watch")
    assert (code, errors) == (0, "")
    assert "mine: 1 of 8 trials ended\n" in output
    assert output.splitlines()[-1] == (
        "No process searches in results/mine now. Resume with: python -m search.run --resume mine"
    )
    code, output, errors = call("mine", "--watch", "--top", "3")
    assert (code, output) == (2, "")
    assert "does not take --top, --sort or --format" in errors
