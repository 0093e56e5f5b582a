"""Shares of the wall-clock time of a session. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from search.experiment.history import History, Replicate, Trial


@dataclass(frozen=True, slots=True)
class WallClock:
    """Shares of the time of all slots (seconds × trials at once); the remaining share was spent in epochs.

    Attributes:
        overhead: share of start-up, shutdown and the time between epochs, 0 to 1.
        idle: share of slots that were empty because no trial was left to dispatch, 0 to 1.
    """

    overhead: float
    idle: float


def wall_clock(history: History, started_at: float, seconds: float, trials_at_once: int) -> WallClock:
    """Shares of a session that began at `started_at` (seconds since 1970, UTC) and took `seconds`."""
    ended_at = started_at + seconds
    trained_s = sum(epoch.seconds for one in history.work for epoch in one.epochs if epoch.at >= started_at)
    times = [time for one in history.work for time in slot_times(one, ended_at)]
    # Trials of an earlier session are dispatched when Ray is ready.
    running = [(max(start, started_at), end) for start, end in times if end >= started_at]
    total_s = seconds * trials_at_once
    idle_s = _empty_slots_s(running, trials_at_once)
    return WallClock(overhead=max(0.0, total_s - trained_s - idle_s) / total_s, idle=idle_s / total_s)


def slot_times(one: Trial | Replicate, ended_at: float) -> list[tuple[float, float]]:
    """Start and end of each period in a slot. Unfinished ones last until `ended_at`.

    There is more than one in journals of an earlier version, whose trials waited at rungs.
    """
    starts = [one.started_at, *(promotion.at for promotion in one.promotions)]
    ends = [one.epochs[promotion.epoch - 1].at for promotion in one.promotions]
    if one.end is None:
        return list(zip(starts, [*ends, ended_at], strict=True))
    # A stopped trial left its slot at its last epoch.
    last = one.epochs[-1].at if one.end.status == "stopped" and one.epochs else one.end.at
    return list(zip(starts, [*ends, last], strict=True))


def _empty_slots_s(running: Sequence[tuple[float, float]], slots: int) -> float:
    """Seconds without a trial between the last start and the last end, summed over slots."""
    if not running:
        return 0.0
    last_start = max(start for start, _ in running)
    last_end = max(end for _, end in running)
    taken_s = sum(max(0.0, end - max(start, last_start)) for start, end in running)
    # The difference is negative if trials wait for a slot, as after a resume on fewer cores.
    return max(0.0, slots * (last_end - last_start) - taken_s)
