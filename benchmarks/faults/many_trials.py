"""Memory and speed over one search with very many tiny trials: `python -m benchmarks.faults.many_trials`.

The trials train a few dozen of the smallest images, so that the search itself takes most of the time: proposing,
starting and ending trials, recording results, writing files.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faults.files import read_or_empty
from benchmarks.faults.invariants import events_of
from benchmarks.faults.search_processes import SearchProcess, short_temporary_folder
from benchmarks.speed.report import cores_busy, machine, number_text, print_json, progress, table_text
from search.experiment.events import EpochDone, Event, TrialEnded
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
SAMPLING_INTERVAL_S = 0.5
PROGRESS_INTERVAL_S = 20.0
NAME = "many"
TRIALS_PER_LINE = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory of the driver at one moment; `at` in seconds since 1970 (UTC)."""

    at: float
    driver_mib: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the search.

    Attributes:
        n_ended: number of trials that had ended at its end.
        seconds_per_result: its duration divided by the number of results in it.
        longest_gap_s: longest time between two events.
        driver_mib: highest memory of the driver; None without a sample.
    """

    n_ended: int
    seconds_per_result: float
    longest_gap_s: float
    driver_mib: float | None


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.faults.many_trials",
        description="Memory of the driver and time per result over one search with very many tiny trials.",
        epilog="example: python -m benchmarks.faults.many_trials --trials 1000",
    )
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="default: 1000")
    return run_command(parser, _run, arguments)


def stretches(events: Sequence[Event], samples: Sequence[Sample], every: int) -> list[Stretch]:
    """Cut a search after each `every` ended trials; the rest is the last stretch."""
    ends = [position for position, event in enumerate(events) if isinstance(event, TrialEnded)]
    cuts = sorted({0, *ends[every - 1 :: every], len(events) - 1})
    found = []
    for first, last in itertools.pairwise(cuts):
        part = events[first : last + 1]
        start, end = part[0].at, part[-1].at
        n_results = sum(isinstance(event, EpochDone) for event in part)
        memory = [sample.driver_mib for sample in samples if start <= sample.at <= end]
        found.append(
            Stretch(
                n_ended=sum(position <= last for position in ends),
                seconds_per_result=(end - start) / max(n_results, 1),
                longest_gap_s=max(after.at - before.at for before, after in itertools.pairwise(part)),
                driver_mib=max(memory, default=None),
            )
        )
    return found


def table(found: Sequence[Stretch]) -> str:
    """One line per stretch."""
    rows = [
        (
            number_text(part.n_ended),
            number_text(part.driver_mib),
            number_text(part.seconds_per_result, 3),
            number_text(part.longest_gap_s, 2),
        )
        for part in found
    ]
    return table_text(("trials ended", "driver MiB", "s/result", "longest s without event"), rows)


def _run(options: argparse.Namespace) -> int:
    if options.trials < 2:
        raise InputError(f"--trials is {options.trials}, but must be at least 2.")
    busy = cores_busy()
    with tempfile.TemporaryDirectory(prefix="dws-benchmark-") as work:
        journal, samples, seconds = _search(options.trials, Path(work))
    found = stretches(events_of(journal), samples, TRIALS_PER_LINE)
    print(table(found))
    print(f"\n{seconds:.0f} s from launch to exit")
    print_json(
        {
            "benchmark": "many_trials",
            "stretches": [asdict(part) for part in found],
            "seconds": round(seconds, 1),
            "cores_busy_before": busy,
            "settings": {"space": SPACE, "trials": options.trials, "overrides": OVERRIDES},
            "machine": machine(),
        }
    )
    return 0


def _search(n_trials: int, work: Path) -> tuple[bytes, list[Sample], float]:
    """Run the search: its journal, samples of the driver's memory, and seconds from launch to exit."""
    overrides = [*OVERRIDES, f"search.trials={n_trials}"]
    chosen = [word for override in overrides for word in ("--set", override)]
    journal, temporary = work / "results" / NAME / "journal.jsonl", short_temporary_folder()
    arguments = [SPACE, *chosen, "--name", NAME, "--results", str(work / "results")]
    process = SearchProcess(arguments, temporary, work / "search.out")
    try:
        samples = _watch(process, journal, n_trials)
        seconds = time.time() - process.started_at
        if process.exit_code != 0:
            raise RunError(f"search.run ended with code {process.exit_code}: {process.errors}")
        return read_or_empty(journal), samples, seconds
    finally:
        process.end_all()
        shutil.rmtree(temporary, ignore_errors=True)


def _watch(process: SearchProcess, journal: Path, n_trials: int) -> list[Sample]:
    samples: list[Sample] = []
    printed_at = process.started_at
    while process.exit_code is None:
        now = time.time()
        memory = resident_mib(process.pid)
        if memory is not None:
            samples.append(Sample(now, memory))
        if now - printed_at >= PROGRESS_INTERVAL_S:
            printed_at = now
            n_ended = read_or_empty(journal).count(b'"trial_ended"')
            left_s = (now - process.started_at) / max(n_ended, 1) * (n_trials - n_ended)
            left = duration_text(left_s) if n_ended else "?"
            progress(f"{n_ended} of {n_trials} trials ended, driver {memory or 0:.0f} MiB, about {left} left")
        time.sleep(SAMPLING_INTERVAL_S)
    return samples


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process; None after its end."""
    for line in read_or_empty(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(b"VmRSS:"):
            return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    sys.exit(main())
