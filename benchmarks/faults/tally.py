"""What became of a search's trials over its faults, counted by kind of fault. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.faults.invariants import (
    Asked,
    Trained,
    events_of,
    lost_trials,
    redone_journaled,
    redone_within,
    trials_of,
)

Kind = Literal["driver alone", "driver and workers", "raylet", "gcs_server", "worker only"]
DRIVER_KINDS: tuple[Kind, ...] = ("driver alone", "driver and workers")
# Ray's own processes; the driver ends by itself when it has lost one.
SERVICE_KINDS: tuple[Kind, ...] = ("raylet", "gcs_server")
ALL_KINDS: tuple[Kind, ...] = (*DRIVER_KINDS, *SERVICE_KINDS, "worker only")


@dataclass(slots=True)
class Launch:
    """One process of a search, from its start to its end.

    Attributes:
        before, after: the journal when it was started, and when it had ended.
        trained: by it, as Ray's logs tell; they miss at most the last result of each trial.
        killed_by: how it was ended; None where it ended by itself.
        in_start_up: whether it was killed before it journaled anything.
        workers_killed: the journal at each time that a worker of it was killed.
        started_at, ended_at: seconds since 1970.
    """

    before: bytes
    after: bytes = b""
    trained: Trained = field(default_factory=dict)
    killed_by: Kind | None = None
    in_start_up: bool = False
    workers_killed: list[bytes] = field(default_factory=list)
    started_at: float = 0.0
    ended_at: float = 0.0


@dataclass(slots=True)
class Tally:
    """What became of trials over one kind of fault.

    Attributes:
        faults: how many, and how many of them `in_start_up`, before the launch had journaled anything.
        expected: trials that were journaled when the faults came, added up.
        found: of those, how many had all their lines afterwards.
        repeated: had ended before the fault, and were trained after it.
        lost: `expected` less `found`.
        running: trials that had begun and not ended when the faults came.
        redone: epochs that were known before the fault and trained again after it; `most_redone` of one trial.
    """

    faults: int = 0
    in_start_up: int = 0
    expected: int = 0
    found: int = 0
    repeated: int = 0
    lost: int = 0
    running: int = 0
    redone: int = 0
    most_redone: int = 0

    def add(self, other: "Tally") -> None:
        for name in self.__dataclass_fields__:
            both = getattr(self, name), getattr(other, name)
            setattr(self, name, max(both) if name == "most_redone" else sum(both))


def tallies(launches: Sequence[Launch]) -> dict[Kind, Tally]:
    """By kind of fault, what became of the trials of one search."""
    found: dict[Kind, Tally] = {}
    nexts: list[Launch | None] = [*launches[1:], None]
    for launch, after in zip(launches, nexts, strict=True):
        for i, journal in enumerate(launch.workers_killed):
            # Which of several losses in one launch an epoch was redone for, the files do not tell.
            redone = {} if i else redone_within(launch.trained)
            found.setdefault("worker only", Tally()).add(_tally(journal, launch.after, {}, redone))
        if launch.killed_by and after:
            tally = _tally(launch.after, after.after, after.trained, _redone_after_a_kill(after))
            tally.in_start_up = int(launch.in_start_up)
            found.setdefault(launch.killed_by, Tally()).add(tally)
    return found


def _redone_after_a_kill(launch: Launch) -> dict[int, int]:
    within = redone_within(launch.trained)
    journaled = redone_journaled(launch.before, launch.after)
    return {number: n - within.get(number, 0) for number, n in journaled.items()}


def _tally(before: bytes, after: bytes, trained: Trained, redone: Mapping[int, int]) -> Tally:
    events = events_of(before)
    trials = trials_of(events)
    n_lost = len(lost_trials(events, events_of(after)))
    return Tally(
        faults=1,
        expected=len(trials),
        found=len(trials) - n_lost,
        repeated=sum(number in trained for number, trial in trials.items() if trial.end),
        lost=n_lost,
        running=sum(trial.end is None for trial in trials.values()),
        redone=sum(redone.values()),
        most_redone=max(redone.values(), default=0),
    )


def total(search: Sequence[Launch], asked: Asked) -> Tally:
    """What became of the trials of one search by its end; `expected` are those that the space asks for."""
    events = events_of(search[-1].after or search[-1].before)
    starts = [event["trial"] for event in events if event["event"] == "trial_started"]
    ends = [event["trial"] for event in events if event["event"] == "trial_ended"]
    sums = Tally()
    for tally in tallies(search).values():
        sums.add(tally)
    # What an epoch budget was enough for is known by what was begun.
    sums.expected = len(set(starts)) if asked.trials is None else asked.trials
    sums.found = len(set(starts) & set(ends))
    sums.lost = sums.expected - sums.found
    sums.repeated += len(starts) - len(set(starts)) + len(ends) - len(set(ends))
    return sums
