"""Kills searches, resumes them, and counts losses: `python -m benchmarks.faults --rounds 20`."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.faults.files import ALL_KINDS
from benchmarks.faults.injection import OVERRIDES, SPACE, Fault, SearchUnderFaults, Summary
from benchmarks.speed.report import machine, print_json, progress, table_text
from spaces import InputError
from spaces.command import CommandParser, run_command
from spaces.counted import duration_text


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.faults",
        description="Kill searches at random moments, resume them, and count lost and repeated trials and epochs.",
        epilog="example: python -m benchmarks.faults --rounds 20 --seed 1",
    )
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="number of faults (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of kinds and moments of the faults (default: 0)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for the searches")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.rounds < 1:
        raise InputError(f"--rounds is {options.rounds}, but must be at least 1.")
    searches: list[SearchUnderFaults] = []
    work = Path(tempfile.mkdtemp(prefix="dws-benchmark-"))
    started_s = time.monotonic()
    try:
        _inject(options, work, searches)
    finally:
        # Also after an error: what was found until then is printed, and the experiments stay.
        problems = [f"search {n}: {problem}" for n, search in enumerate(searches, 1) for problem in search.problems]
        _print(options, searches, problems, time.monotonic() - started_s)
        if sum(len(search.faults) for search in searches) < options.rounds or problems:
            progress(f"the experiments stay in {work}")
        else:
            shutil.rmtree(work)
    return 1 if problems else 0


def _inject(options: argparse.Namespace, work: Path, searches: list[SearchUnderFaults]) -> None:
    started_s = time.monotonic()

    def tell(fault: str) -> None:
        n_done = sum(len(search.faults) for search in searches)
        left = duration_text((options.rounds - n_done) * (time.monotonic() - started_s) / n_done)
        n_problems = sum(len(search.problems) for search in searches)
        progress(f"round {n_done} of {options.rounds}: {fault}; {n_problems} problems, about {left} left")

    while (n_left := options.rounds - sum(len(search.faults) for search in searches)) > 0:
        number = len(searches) + 1
        overrides = [*OVERRIDES, f"search.seed={number - 1}", *options.set]
        folder = work / f"search_{number}"
        folder.mkdir()
        progress(f"search {number} starts")
        searches.append(SearchUnderFaults(overrides, n_left, 1000 * options.seed + number, ALL_KINDS, folder, tell))
        searches[-1].run()
        progress(f"search {number} ended after {len(searches[-1].launches)} launches")


def table(faults: Sequence[Fault], summaries: Sequence[Summary]) -> str:
    """One line per kind of fault, and the sums over the searches."""
    rows = []
    for kind in ALL_KINDS:
        own = [fault for fault in faults if fault.kind == kind]
        numbers = (
            len(own),
            sum(fault.in_start_up for fault in own),
            sum(fault.n_trials for fault in own),
            sum(fault.n_running for fault in own),
        )
        rows.append((kind, *map(str, numbers)))
    expected, found, repeated, redone = (
        sum(getattr(summary, name) for summary in summaries) for name in ("expected", "found", "repeated", "redone")
    )
    header = ("killed", "faults", "in start-up", "trials started", "trials running")
    return (
        f"{table_text(header, rows)}\n\n{len(summaries)} searches: {expected} trials expected, {found} found, "
        f"{expected - found} lost, {repeated} repeated; {redone} epochs trained twice"
    )


def _print(
    options: argparse.Namespace, searches: Sequence[SearchUnderFaults], problems: Sequence[str], seconds: float
) -> None:
    faults = [fault for search in searches for fault in search.faults]
    summaries = [search.summary() for search in searches if (search.folder / "manifest.json").exists()]
    print(table(faults, summaries))
    for problem in problems:
        print(problem)
    print_json(
        {
            "benchmark": "faults",
            "rounds": options.rounds,
            "seed": options.seed,
            "faults": [asdict(fault) for fault in faults],
            "searches": [asdict(summary) for summary in summaries],
            "launches": [len(search.launches) for search in searches],
            "problems": problems,
            "seconds": round(seconds, 1),
            "settings": {"space": SPACE, "overrides": [*OVERRIDES, *options.set]},
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
