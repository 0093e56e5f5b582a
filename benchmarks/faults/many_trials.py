"""One search with a thousand very small trials: does it stay as fast and as small?

Run: `python -m benchmarks.faults.many_trials`.

Trials train a few dozen of the smallest images, so that what is measured is the search itself: proposing, starting
and ending trials, taking in results, keeping files up to date.
"""

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.files import read_or_empty
from benchmarks.faults.invariants import Event, events_of
from benchmarks.faults.search_processes import SearchProcess, short_temporary_folder
from benchmarks.speed.report import cores_busy, machine, number_text, print_json, progress, table_text
from spaces import InputError
from spaces.command import CommandParser, run_command
from spaces.counted import duration_text
from spaces.errors import RunError

SPACE = "quickstart"
OVERRIDES = (
    "dataset.image_size=17",
    "dataset.train_limit=60",
    "training.batch_size=64",
    "training.max_epochs=3",
    "search.grace_epochs=1",
)
SAMPLED_EVERY_S = 0.5
TOLD_EVERY_S = 20.0
NAME = "many"


@dataclass(frozen=True, slots=True)
class Sample:
    """The driver's memory at one moment: `at` in seconds since 1970, resident MiB."""

    at: float
    driver_mib: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the search.

    Attributes:
        trials: how many had ended at its end.
        seconds: that it took.
        results: epochs that came in.
        seconds_per_result, seconds_per_trial: of the whole machine.
        median_gap_s, longest_gap_s: between two lines of the journal.
        driver_mib: the most memory that the driver had in it; None where it was not looked at.
        journal_kib: at its end.
    """

    trials: int
    seconds: float
    results: int
    seconds_per_result: float
    seconds_per_trial: float
    median_gap_s: float
    longest_gap_s: float
    driver_mib: float | None
    journal_kib: float


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.faults.many_trials",
        description="Memory of the driver and time per result over one search with very many tiny trials.",
        epilog="example: python -m benchmarks.faults.many_trials --trials 1000",
    )
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--every", type=int, default=100, metavar="N", help="trials a line of the table (default: 100)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for the search")
    return run_command(parser, _run, arguments)


def stretches(
    events: Sequence[Event], line_bytes: Sequence[int], samples: Sequence[Sample], every: int
) -> list[Stretch]:
    """Cut a search after each `every` ended trials; what is left over is the last stretch.

    Args:
        events: of the journal, with `at`.
        line_bytes: the length of each one's line.
        samples: of the driver's memory, in order of time.
        every: trials.
    """
    found: list[Stretch] = []
    n_ended = first = 0
    for last, event in enumerate(events):
        n_ended += event["event"] == "trial_ended"
        cut = event["event"] == "trial_ended" and n_ended % every == 0
        if cut or (last == len(events) - 1 and last > first):
            new_trials = n_ended - (found[-1].trials if found else 0)
            journal_kib = sum(line_bytes[: last + 1]) / 1024
            found.append(_stretch(events[first : last + 1], n_ended, new_trials, samples, journal_kib))
            first = last
    return found


def _stretch(
    events: Sequence[Event], n_ended: int, new_trials: int, samples: Sequence[Sample], journal_kib: float
) -> Stretch:
    start, end = events[0]["at"], events[-1]["at"]
    gaps = [after["at"] - before["at"] for before, after in itertools.pairwise(events)]
    # The first event closed the stretch before.
    results = sum(event["event"] == "epoch_done" for event in events[1:])
    memory = [sample.driver_mib for sample in samples if start <= sample.at <= end]
    return Stretch(
        trials=n_ended,
        seconds=end - start,
        results=results,
        seconds_per_result=(end - start) / max(results, 1),
        seconds_per_trial=(end - start) / max(new_trials, 1),
        median_gap_s=statistics.median(gaps),
        longest_gap_s=max(gaps),
        driver_mib=max(memory, default=None),
        journal_kib=journal_kib,
    )


def table(found: Sequence[Stretch]) -> str:
    """A line a stretch."""
    rows = [
        (
            number_text(part.trials),
            number_text(part.driver_mib),
            number_text(part.seconds_per_result, 3),
            number_text(part.seconds_per_trial, 3),
            number_text(1000 * part.median_gap_s, 1),
            number_text(part.longest_gap_s, 2),
            number_text(part.results),
            number_text(part.journal_kib),
        )
        for part in found
    ]
    header = (
        "trials ended",
        "driver MiB",
        "s/result",
        "s/trial",
        "median ms between lines",
        "longest s between lines",
        "results",
        "journal KiB",
    )
    return table_text(header, rows)


def _run(options: argparse.Namespace) -> int:
    for name in ("trials", "every"):
        if getattr(options, name) < 2:
            raise InputError(f"--{name} is {getattr(options, name)}, but must be at least 2.")
    busy = cores_busy()
    with tempfile.TemporaryDirectory(prefix="dws-benchmark-") as work:
        journal, samples, seconds = _search(options, Path(work))
    lines = journal.splitlines(keepends=True)
    found = stretches(events_of(journal), [len(line) for line in lines], samples, options.every)
    print(table(found))
    print(f"\n{seconds:.0f} s from launch to exit")
    content: dict[str, Any] = {
        "benchmark": "many_trials",
        "stretches": [asdict(part) for part in found],
        "seconds": round(seconds, 1),
        "cores_busy_before": busy,
        "settings": {"space": SPACE, "trials": options.trials, "overrides": [*OVERRIDES, *options.set]},
        "machine": machine(),
    }
    print_json(content)
    return 0


def _search(options: argparse.Namespace, work: Path) -> tuple[bytes, list[Sample], float]:
    """Run it.

    Returns:
        The journal, samples of the driver's memory, and seconds from launch to exit.
    """
    overrides = [*OVERRIDES, f"search.trials={options.trials}", *options.set]
    chosen = [word for override in overrides for word in ("--set", override)]
    temporary = short_temporary_folder()
    started_s = time.monotonic()
    arguments = [SPACE, *chosen, "--name", NAME, "--results", str(work / "results")]
    process = SearchProcess(arguments, temporary, work / "search.out")
    try:
        samples = _watch(process, work / "results" / NAME / "journal.jsonl", options.trials)
        seconds = time.monotonic() - started_s
        if process.exit_code != 0:
            raise RunError(f"search.run ended with code {process.exit_code}: {process.errors[-2000:]}")
        return read_or_empty(work / "results" / NAME / "journal.jsonl"), samples, seconds
    finally:
        process.end_all()
        shutil.rmtree(temporary, ignore_errors=True)


def _watch(process: SearchProcess, journal: Path, n_trials: int) -> list[Sample]:
    samples: list[Sample] = []
    started_s = told_s = time.monotonic()
    while process.exit_code is None:
        memory = resident_mib(process.pid)
        if memory is not None:
            samples.append(Sample(time.time(), memory))
        now_s = time.monotonic()
        if now_s - told_s >= TOLD_EVERY_S:
            told_s = now_s
            n_ended = read_or_empty(journal).count(b'"trial_ended"')
            left = duration_text((now_s - started_s) / n_ended * (n_trials - n_ended)) if n_ended else "?"
            progress(f"{n_ended} of {n_trials} trials ended, driver {memory or 0:.0f} MiB, about {left} left")
        time.sleep(SAMPLED_EVERY_S)
    return samples


def resident_mib(pid: int) -> float | None:
    """A process's resident memory; None where it has ended."""
    for line in read_or_empty(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(b"VmRSS:"):
            return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    sys.exit(main())
