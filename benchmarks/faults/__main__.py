"""Kill searches again and again and count what is lost: `python -m benchmarks.faults --rounds 20`.

A round is one `kill -9`: of the driver alone, of the driver and everything that belongs to it (as in a power cut), of
Ray's raylet or gcs_server, after which the driver must end by itself, or of one worker. After each but the last the
search is resumed; when it ends, the next one begins, until all
rounds are done. Every invariant of `benchmarks.faults.invariants` is checked from the files each time.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faults.files import asked_of
from benchmarks.faults.injection import OVERRIDES, SPACE, SearchUnderFaults
from benchmarks.faults.tally import ALL_KINDS, Tally, tallies, total
from benchmarks.speed.report import machine, print_json, progress, table_text
from spaces import InputError
from spaces.command import CommandParser, run_command
from spaces.counted import duration_text

FIRST_ROUND_S = 20.0


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.faults",
        description="Kill searches at random moments, resume them, and count trials lost, repeated and epochs redone.",
        epilog="example: python -m benchmarks.faults --rounds 20 --seed 1",
    )
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="faults to inject (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and kinds of faults (default: 0)")
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
        # What was found until something broke is not lost with it.
        problems = [f"search {n}: {problem}" for n, search in enumerate(searches, 1) for problem in search.problems]
        complete = sum(search.n_faults for search in searches) == options.rounds and not problems
        if searches and searches[0].launches:
            _print(options, searches, problems, time.monotonic() - started_s)
        if complete:
            shutil.rmtree(work)
        else:
            progress(f"the experiments stay in {work}")
    return 1 if problems else 0


def _inject(options: argparse.Namespace, work: Path, searches: list[SearchUnderFaults]) -> None:
    started_s = time.monotonic()

    def tell(fault: str) -> None:
        n_done = sum(search.n_faults for search in searches)
        each_s = (time.monotonic() - started_s) / n_done if n_done else FIRST_ROUND_S
        left = duration_text((options.rounds - n_done) * each_s)
        n_problems = sum(len(search.problems) for search in searches)
        progress(
            f"round {n_done} of {options.rounds}, search {len(searches)}: {fault}; {n_problems} problems, "
            f"about {left} left"
        )

    while (n_left := options.rounds - sum(search.n_faults for search in searches)) > 0:
        number = len(searches) + 1
        overrides = [*OVERRIDES, f"search.seed={number - 1}", *options.set]
        folder = work / f"search_{number}"
        folder.mkdir()
        seed = 1000 * options.seed + number
        searches.append(SearchUnderFaults(overrides, n_left, seed, ALL_KINDS, folder, tell))
        progress(f"search {number} begins")
        searches[-1].run()
        progress(f"search {number} ended after {len(searches[-1].launches)} launches")


def rows_of(by_kind: Mapping[str, Tally], searches: Tally, n_searches: int) -> list[tuple[str, ...]]:
    """A line a kind of fault, and one for the searches as they ended."""
    named = [*by_kind.items(), (f"{n_searches} searches, at their end", searches)]
    return [
        (
            name,
            str(tally.faults),
            str(tally.in_start_up),
            str(tally.expected),
            str(tally.found),
            str(tally.repeated),
            str(tally.lost),
            str(tally.running),
            str(tally.redone),
            str(tally.most_redone),
        )
        for name, tally in named
    ]


HEADER = (
    "killed",
    "faults",
    "in start-up",
    "trials expected",
    "found",
    "repeated",
    "lost",
    "running",
    "epochs redone",
    "most of a trial",
)


def table(by_kind: Mapping[str, Tally], searches: Tally, n_searches: int) -> str:
    """The counts, and what they mean."""
    return (
        f"{table_text(HEADER, rows_of(by_kind, searches, n_searches))}\n\n"
        "trials expected: journaled when the fault came, added up; in the last line, asked for by the spaces.\n"
        "running: trials that had begun and not ended when the fault came; each may lose one epoch a fault."
    )


def summed(searches: Sequence[SearchUnderFaults]) -> tuple[dict[str, Tally], Tally]:
    """Counts by kind of fault over all searches, and those of the searches as they ended."""
    by_kind: dict[str, Tally] = {kind: Tally() for kind in ALL_KINDS}
    ends = Tally()
    for search in searches:
        for kind, tally in tallies(search.launches).items():
            by_kind[kind].add(tally)
        if search.folder.exists():
            ends.add(total(search.launches, asked_of(search.folder)))
    return by_kind, ends


def _print(
    options: argparse.Namespace, searches: Sequence[SearchUnderFaults], problems: Sequence[str], seconds: float
) -> None:
    by_kind, ends = summed(searches)
    print(table(by_kind, ends, len(searches)))
    for problem in problems:
        print(problem)
    content: dict[str, Any] = {
        "benchmark": "faults",
        "rounds": options.rounds,
        "seed": options.seed,
        "by_kind": {kind: asdict(tally) for kind, tally in by_kind.items()},
        "searches": {"n": len(searches), **asdict(ends)},
        "launches": [len(search.launches) for search in searches],
        "problems": problems,
        "seconds": round(seconds, 1),
        "settings": {"space": SPACE, "overrides": [*OVERRIDES, *options.set]},
        "machine": machine(),
    }
    print_json(content)


if __name__ == "__main__":
    sys.exit(main())
