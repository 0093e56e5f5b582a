"""Searches that are killed, lose their workers, or run out of disk: no journaled result is lost or repeated.

`python -m benchmarks.faults --rounds N` injects more faults.
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

from benchmarks.faults.files import ALL_KINDS, read_or_empty
from benchmarks.faults.injection import OVERRIDES, SearchUnderFaults
from benchmarks.faults.invariants import events_of, history_problems, prefix_problems
from benchmarks.faults.search_processes import SearchProcess, short_temporary_folder, wait_until_none
from search.experiment.events import EpochRedone
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.journal import read_history
from tests.conftest import TINY, set_options
from tests.search.test_end_to_end import assert_trained_as_alone

pytestmark = [pytest.mark.cluster, pytest.mark.long]

N_FAULTS = 6
FEWER = ("dataset.train_limit=200",)  # images
GONE_S = 30.0


@pytest.fixture
def temporary() -> Iterator[Path]:
    folder = short_temporary_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(900)
def test_a_search_under_faults_of_all_kinds_loses_and_repeats_nothing(tmp_path: Path) -> None:
    search = SearchUnderFaults(
        (*OVERRIDES, *FEWER, "search.trials=8", "confirm.top=0"), N_FAULTS, 5, ALL_KINDS, tmp_path, tell=print
    )
    search.run()
    assert search.problems == []
    assert len(search.faults) == N_FAULTS, "the search ended before the last fault"
    assert {fault.kind for fault in search.faults} == set(ALL_KINDS)
    assert any(fault.in_start_up for fault in search.faults)
    summary = search.summary()
    assert (summary.found, summary.repeated) == (summary.expected, 0)
    assert summary.redone <= sum(fault.n_running for fault in search.faults)
    experiment = Experiment(search.folder)
    redone = [event.trial for event in events_of(search.launches[-1].after) if isinstance(event, EpochRedone)]
    for number in {0, *redone[:1]}:  # the baseline runs during most faults
        assert_trained_as_alone(experiment.history(), experiment.space, number)


def running_trials(journal: Path) -> set[int]:
    return {trial.number for trial in read_history(journal).unfinished}


def problems_in(folder: Path, may_fail: frozenset[int] = frozenset()) -> list[str]:
    """Problems of the journal of a finished search."""
    experiment, events = Experiment(folder), events_of((folder / "journal.jsonl").read_bytes())
    return history_problems(events, experiment.space, experiment.manifest.data.chance, True, may_fail)


def wait_a_little(process: SearchProcess, deadline: float) -> None:
    """One turn of a loop that waits for the search."""
    assert process.exit_code is None, process.errors
    assert time.monotonic() < deadline, "the search made no progress"
    time.sleep(0.01)


@pytest.mark.timeout(400)
def test_a_trial_that_loses_its_worker_thrice_fails_with_a_reason_and_the_search_goes_on(
    tmp_path: Path, temporary: Path
) -> None:
    overrides = (*TINY, *FEWER, "training.max_epochs=9", "search.grace_epochs=3", "search.trials=3")
    alone = set_options(*overrides, "resources.trials_at_once=1")
    process = SearchProcess([*alone, "--name", "lost", "--results", str(tmp_path)], temporary, tmp_path / "lost.out")
    journal = tmp_path / "lost" / "journal.jsonl"
    deadline = time.monotonic() + 200
    try:
        while 1 not in read_history(journal).trials:
            wait_a_little(process, deadline)
        killed: set[int] = set()
        while 1 in running_trials(journal):
            # With one slot, the worker holds this trial. If a worker died between two trials, Ray may train others
            # first.
            if running_trials(journal) == {1}:
                fresh = [pid for pid in process.workers() if pid not in killed]
                process.kill(fresh)
                killed.update(fresh)
            wait_a_little(process, deadline)
        assert process.wait(200) == 0, process.errors
    finally:
        process.end_all()
    lost = read_history(journal).trials[1]
    assert lost.status == "failed"
    assert lost.end is not None
    assert len(lost.end.reason) > 10
    assert "\n" not in lost.end.reason
    output = (tmp_path / "lost.out").read_text()
    assert output.count("trial 1 lost its worker and is tried again") == 2, output
    assert len(killed) >= 3, output
    assert problems_in(tmp_path / "lost", may_fail=frozenset({1})) == []
    assert process.errors == ""


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", *lines[3:]]))


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: tuple[dict[str, Callable[[Path], None]], ...] = (
    {"journal.jsonl": cut_in_half, "manifest.json": fill_with_zeros},
    {"experiment.yaml": Path.unlink, "journal.jsonl": break_a_line},
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

    settings = set_options(*TINY, *FEWER, "training.max_epochs=9", "search.trials=4")
    assert search_for(6, *settings, "--name", "damaged") == ""
    for damages in DAMAGES:
        # A kill between the two leaves the copy one line behind.
        before = copy.read_bytes()
        for name, damage in damages.items():
            damage(folder / name)
        told = search_for(before.count(b"\n") + 4, "--resume", "damaged")
        assert told.count("\n") == len(damages), told
        assert all(name in told for name in damages), told
        assert prefix_problems(before, journal.read_bytes()) == []
    last = SearchProcess(["--resume", "damaged", "--results", str(tmp_path)], temporary, tmp_path / "last.out")
    try:
        assert last.wait(240) == 0, last.errors
    finally:
        last.end_all()
    assert last.errors == ""
    assert problems_in(folder) == []
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
        "SETTINGS": " ".join(
            set_options(*TINY, *FEWER, "search.trials=4", "training.max_epochs=9", "search.grace_epochs=3")
        ),
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
    assert (logs / "leaderboard.err").read_text() == ""
    assert len(json.loads((logs / "leaderboard.json").read_text())["trials"]) == len(History(before).trials)

    assert (logs / "second.code").read_text().strip() == "0", (logs / "second.err").read_text()
    after = events_of((logs / "journal.jsonl").read_bytes())
    assert after[: len(before)] == before
    assert problems_in(logs) == []
    assert wait_until_none(temporary, GONE_S) == []
    assert list(temporary.iterdir()) == []
