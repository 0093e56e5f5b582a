"""Seconds of a proposal after 50, 200 and 1,000 trials: `python -m benchmarks.speed.proposals`."""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from threadpoolctl import threadpool_limits

from benchmarks.replay.arms import OwnArm, space_of
from benchmarks.replay.searches import EPOCHS, OwnSearch, surrogate_of
from benchmarks.replay.surrogate import PROCESS, Surrogate
from benchmarks.replay.tables import in_unit_cube
from benchmarks.speed.report import cores_busy, machine, number_text, print_json, table_text
from search.experiment.events import SpaceSet
from search.experiment.history import History
from search.policy.state import SearchState
from spaces.command import CommandParser, run_command

TABLE = "digits"
ARM = OwnArm("random-adaptive", asha="adaptive")
N_TRIALS = (50, 200, 1000)
SAMPLERS = ("curves", "tpe", "gp")
N_TIMED = 11


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.speed.proposals",
        description="Time proposals of each sampler in a search with adaptive rungs, on stored learning curves.",
        epilog="example: python -m benchmarks.speed.proposals --trials 50 --trials 200",
    )
    parser.add_argument("--trials", type=int, action="append", metavar="N", help="default: 50, 200 and 1,000")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    busy, found = cores_busy(), {}
    surrogate = surrogate_of(TABLE, PROCESS)
    with threadpool_limits(1, user_api="blas"):  # as in a search
        for n_trials in options.trials or N_TRIALS:
            history = history_with(n_trials, surrogate)
            found[n_trials] = {sampler: seconds_of(history, sampler, surrogate) for sampler in SAMPLERS}
    print(table(found))
    print_json({"benchmark": "proposals", "seconds": found, "cores_busy_before": busy, "machine": machine()})
    return 0


def history_with(n_trials: int, surrogate: Surrogate) -> History:
    """A search of random proposals with adaptive rungs, in which `n_trials` trials have ended."""
    search = OwnSearch.of(ARM, surrogate, seed=0)
    for _ in range(n_trials):
        _train(search.state, surrogate)
    return search.history


def _train(state: SearchState, surrogate: Surrogate) -> float:
    """Train the next trial of a search; returns the seconds that its proposal took."""
    start = time.perf_counter()
    assignment = state.next_assignment()
    seconds = time.perf_counter() - start
    assert assignment is not None
    values = state.history.trials[assignment.number].suggested
    accuracies, epoch = surrogate.run(in_unit_cube(surrogate.table.space, values), 0)[0], 1
    search = OwnSearch(state)
    while search.record(assignment.number, epoch, float(accuracies[epoch - 1])):
        epoch += 1
    return seconds


def seconds_of(history: History, sampler: str, surrogate: Surrogate) -> float:
    """Median seconds of `N_TIMED` proposals, each after the results of one more trial."""
    space = space_of(ARM, surrogate.table.space, EPOCHS, 0)
    space = replace(space, search=space.search.model_copy(update={"sampler": sampler}))
    own = History([*history.events, SpaceSet(space.as_dict(), [], 0.0)], history.chances)
    state = SearchState(space, own, now=lambda: 0.0)
    timed = list[float]()
    while len(timed) < N_TIMED:
        seconds = _train(state, surrogate)
        if own.trials[len(own.trials) - 1].proposed_by == "sampler":
            timed.append(seconds)
    return median(timed)


def table(found: Mapping[int, Mapping[str, float]]) -> str:
    """One line for each number of trials: milliseconds of a proposal."""
    rows = [[number_text(n), *(number_text(1000 * row[name]) for name in SAMPLERS)] for n, row in found.items()]
    return table_text(("trials before", *(f"{name}, ms" for name in SAMPLERS)), rows)


if __name__ == "__main__":
    sys.exit(main())
