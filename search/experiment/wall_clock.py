"""Where the wall-clock of a session went. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from search.experiment.history import History, Replicate, Trial


@dataclass(frozen=True, slots=True)
class WallClock:
    """Shares of the time of all places (seconds × trials at once); with the rest, which trains, they make 1.

    Attributes:
        overhead: start-up, Ray's end, and whatever lies between two epochs.
        idle: places that stood empty because no trial was left to give out.
    """

    overhead: float
    idle: float


def wall_clock(history: History, started_at: float, seconds: float, trials_at_once: int) -> WallClock:
    """Shares for one session.

    Args:
        history: with the session in it.
        started_at: when the session's command was given, in seconds since 1970 (UTC).
        seconds: that it took.
        trials_at_once: places.
    """
    ended_at = started_at + seconds
    work: list[Trial | Replicate] = [*history.trials.values(), *history.replicates.values()]
    trained_s = sum(epoch.seconds for one in work for epoch in one.epochs if epoch.at >= started_at)
    # What an earlier session left unfinished is given out as soon as Ray is there.
    running = [
        (max(start, started_at), end)
        for one in work
        for start, end in _places_taken(one, ended_at)
        if end >= started_at
    ]
    total_s = seconds * trials_at_once
    idle_s = _empty_places_s(running, trials_at_once)
    return WallClock(overhead=max(0.0, total_s - trained_s - idle_s) / total_s, idle=idle_s / total_s)


def _places_taken(one: Trial | Replicate, ended_at: float) -> list[tuple[float, float]]:
    """From when to when each; a trial that waits at a rung takes none. One that has not ended runs until `ended_at`."""
    promotions = one.promotions if isinstance(one, Trial) else []
    starts = [one.started_at, *(promotion.at for promotion in promotions)]
    ends = [one.epochs[promotion.epoch - 1].at for promotion in promotions]
    if one.end is None:
        return list(zip(starts, [*ends, ended_at], strict=True))
    # Who is stopped is stopped at once, or waited since.
    last = one.epochs[-1].at if one.end.status == "stopped" and one.epochs else one.end.at
    return list(zip(starts, [*ends, last], strict=True))


def _empty_places_s(running: Sequence[tuple[float, float]], places: int) -> float:
    """Seconds that places stood empty between the last trial's start and the last trial's end, summed over places."""
    if not running:
        return 0.0
    last_start = max(start for start, _ in running)
    last_end = max(end for _, end in running)
    taken_s = sum(max(0.0, end - max(start, last_start)) for start, end in running)
    # Trials that wait for a place, as after a resume on fewer cores, leave none empty.
    return max(0.0, places * (last_end - last_start) - taken_s)
