"""Searches that are killed, lose their workers, or run out of disk: nothing that was journaled is lost or done again.

`python -m benchmarks.faults --rounds N` does more of the first for longer.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults.files import asked_of, read_or_empty
from benchmarks.faults.injection import OVERRIDES, SearchUnderFaults
from benchmarks.faults.invariants import events_of, history_problems, prefix_problems, rung_problems, trials_of
from benchmarks.faults.search_processes import SearchProcess, short_temporary_folder, wait_until_none
from benchmarks.faults.tally import ALL_KINDS, DRIVER_KINDS, tallies, total
from tests.conftest import TINY, set_options

pytestmark = [pytest.mark.cluster, pytest.mark.long]

N_KILLS = 20
GONE_S = 30.0


@pytest.fixture
def temporary() -> Iterator[Path]:
    folder = short_temporary_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(1500)
def test_a_search_killed_20_times_loses_and_repeats_nothing(tmp_path: Path) -> None:
    search = SearchUnderFaults(OVERRIDES, N_KILLS, seed=0, kinds=DRIVER_KINDS, work=tmp_path, tell=print)
    search.run()
    assert search.problems == []
    assert search.n_faults == N_KILLS, "the search ended before it was killed often enough"
    counted = tallies(search.launches)
    assert set(counted) == set(DRIVER_KINDS)
    assert sum(tally.in_start_up for tally in counted.values()) >= 1
    ends = total(search.launches, asked_of(search.folder))
    assert (ends.found, ends.repeated, ends.lost) == (ends.expected, 0, 0)
    assert ends.most_redone <= 1
    assert ends.redone <= ends.running


@pytest.mark.timeout(600)
def test_one_kill_of_each_kind_loses_and_repeats_nothing(tmp_path: Path) -> None:
    search = SearchUnderFaults((*OVERRIDES, "search.trials=12"), 5, seed=5, kinds=ALL_KINDS, work=tmp_path, tell=print)
    search.run()
    assert search.problems == []
    assert set(tallies(search.launches)) == set(ALL_KINDS)
    ends = total(search.launches, asked_of(search.folder))
    assert (ends.found, ends.repeated, ends.lost) == (ends.expected, 0, 0)


def trial_in(journal: Path, number: int, status: str | None = None) -> bool:
    """Whether the trial has begun, or with `status` whether it is that."""
    trial = trials_of(events_of(read_or_empty(journal))).get(number)
    return trial is not None and status in (None, trial.status)


def running_trials(journal: Path) -> set[int]:
    trials = trials_of(events_of(read_or_empty(journal)))
    return {number for number, trial in trials.items() if trial.status == "running"}


def wait_a_little(process: SearchProcess, deadline: float) -> None:
    """One turn of a loop that waits for something that the search does."""
    assert process.exit_code is None, process.errors
    assert time.monotonic() < deadline, "nothing came"
    time.sleep(0.01)


@pytest.mark.timeout(400)
def test_a_trial_that_loses_its_worker_thrice_fails_with_a_reason_and_the_search_goes_on(
    tmp_path: Path, temporary: Path
) -> None:
    overrides = (*TINY, "training.max_epochs=9", "search.grace_epochs=3", "search.trials=5")
    alone = set_options(*overrides, "resources.trials_at_once=1")
    process = SearchProcess([*alone, "--name", "lost", "--results", str(tmp_path)], temporary, tmp_path / "lost.out")
    journal = tmp_path / "lost" / "journal.jsonl"
    deadline = time.monotonic() + 200
    try:
        while not trial_in(journal, 1):
            wait_a_little(process, deadline)
        killed: set[int] = set()
        while trial_in(journal, 1, "running"):
            # With one place, whatever worker there is holds this trial. But where one dies between two trials, Ray may
            # leave this one for the end, and others come first.
            if running_trials(journal) == {1}:
                fresh = [pid for pid in process.workers() if pid not in killed]
                process.kill(fresh)
                killed.update(fresh)
            wait_a_little(process, deadline)
        assert process.wait(200) == 0, process.errors
    finally:
        process.end_all()
    events = events_of(journal.read_bytes())
    lost = trials_of(events)[1]
    assert lost.status == "failed"
    assert lost.end is not None
    assert len(lost.end["reason"]) > 10
    assert "\n" not in lost.end["reason"]
    output = (tmp_path / "lost.out").read_text()
    assert output.count("trial 1 lost its worker and is tried again") == 2, output
    assert len(killed) >= 3, output
    asked = asked_of(tmp_path / "lost")
    assert history_problems(events, asked, finished=True, may_fail=frozenset({1})) == []
    assert rung_problems(events, asked) == []
    assert process.errors == ""


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", *lines[3:]]))


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("journal.jsonl", cut_in_half),
    ("manifest.json", fill_with_zeros),
    ("experiment.yaml", Path.unlink),
    ("journal.jsonl", break_a_line),
)


@pytest.mark.timeout(600)
def test_a_search_whose_files_are_damaged_goes_on_from_their_copies_and_says_so(
    tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "damaged"
    journal, copy = folder / "journal.jsonl", folder / ".backup" / "journal.jsonl"

    def search_for(n_lines: int, *arguments: str) -> str:
        """Search until the journal has so many lines, then kill all of it; what it printed to standard error."""
        process = SearchProcess([*arguments, "--results", str(tmp_path)], temporary, tmp_path / "search.out")
        deadline = time.monotonic() + 200
        try:
            while read_or_empty(journal).count(b"\n") < n_lines:
                wait_a_little(process, deadline)
        finally:
            process.end_all()
        return process.errors

    settings = set_options(*TINY, "search.trials=12", "training.max_epochs=9")
    assert search_for(6, *settings, "--name", "damaged") == ""
    for name, damage in DAMAGES:
        # A kill between the two leaves the copy one line behind.
        before = (copy if name == journal.name else journal).read_bytes()
        damage(folder / name)
        told = search_for(before.count(b"\n") + 4, "--resume", "damaged")
        assert told.count("\n") == 1, told
        assert name in told
        assert prefix_problems(before, journal.read_bytes()) == []
    last = SearchProcess(["--resume", "damaged", "--results", str(tmp_path)], temporary, tmp_path / "last.out")
    try:
        assert last.wait(240) == 0, last.errors
    finally:
        last.end_all()
    assert last.errors == ""
    events, asked = events_of(journal.read_bytes()), asked_of(folder)
    assert history_problems(events, asked, finished=True) == []
    assert rung_problems(events, asked) == []
    assert journal.read_bytes() == copy.read_bytes()


# Runs in a namespace of its own, so that the small file system is gone with it.
FULL_DISK = """
set -u
mount -t tmpfs -o size=64m none "$RESULTS" || exit 1  # never fill the disk itself
python -m search.run $SETTINGS --name full --results "$RESULTS" >"$LOGS/first.out" 2>"$LOGS/first.err" &
search=$!
for _ in $(seq 1500); do
    [ "$(grep -c epoch_done "$RESULTS/full/journal.jsonl" 2>/dev/null)" -ge 3 ] 2>/dev/null && break
    sleep 0.1
done
cat /dev/zero >"$RESULTS/filler" 2>/dev/null
wait $search
echo $? >"$LOGS/first.code"
cp "$RESULTS/full/journal.jsonl" "$LOGS/first.jsonl"
python -m search.leaderboard full --results "$RESULTS" --format json >"$LOGS/leaderboard.json" 2>"$LOGS/leaderboard.err"
rm "$RESULTS/filler"
python -m search.run --resume full --results "$RESULTS" >"$LOGS/second.out" 2>"$LOGS/second.err"
echo $? >"$LOGS/second.code"
cp "$RESULTS/full/journal.jsonl" "$RESULTS"/full/{experiment.yaml,manifest.json} "$LOGS"
"""


def own_mounts() -> list[str]:
    """The command that gives a process mounts of its own; empty where that is not allowed."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        attempt = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
        if shutil.which("unshare") and subprocess.run(attempt, capture_output=True, check=False).returncode == 0:
            return command
    return []


@pytest.mark.timeout(400)
def test_a_full_disk_is_one_line_and_the_search_goes_on_when_there_is_room(tmp_path: Path, temporary: Path) -> None:
    unshare = own_mounts()
    if not unshare:
        pytest.skip("a small file system cannot be mounted here (no unshare, or not allowed)")
    results, logs = tmp_path / "results", tmp_path / "logs"
    results.mkdir()
    logs.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(temporary),
        "RESULTS": str(results),
        "LOGS": str(logs),
        "SETTINGS": " ".join(set_options(*TINY, "search.trials=6", "training.max_epochs=9", "search.grace_epochs=3")),
    }
    done = subprocess.run([*unshare, "bash", "-c", FULL_DISK], env=environment, timeout=380, check=False)
    assert done.returncode == 0

    errors = (logs / "first.err").read_text()
    assert (logs / "first.code").read_text().strip() == "1", errors
    assert errors.count("\n") == 1, errors
    assert "no space left on the disk" in errors
    assert "--resume full" in errors
    assert "Traceback" not in errors + (logs / "first.out").read_text()
    before = events_of((logs / "first.jsonl").read_bytes())
    asked = asked_of(logs)
    assert history_problems(before, asked, finished=False) == []
    assert (logs / "leaderboard.err").read_text() == ""
    assert len(json.loads((logs / "leaderboard.json").read_text())["trials"]) == len(trials_of(before))

    assert (logs / "second.code").read_text().strip() == "0", (logs / "second.err").read_text()
    after = events_of((logs / "journal.jsonl").read_bytes())
    assert after[: len(before)] == before
    assert history_problems(after, asked, finished=True) == []
    assert rung_problems(after, asked) == []
    assert wait_until_none(temporary, GONE_S) == []
    assert list(temporary.iterdir()) == []
