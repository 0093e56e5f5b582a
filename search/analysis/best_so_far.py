"""The best accuracy so far, over the epochs and seconds of a search."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from search.experiment.history import History
from search.experiment.manifest import Manifest

MOST_CURVE_POINTS = 2000  # a curve of more points is thinned; its last point stays


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The best accuracy of completed trials at a moment of the search.

    Attributes:
        epochs: epochs that all trials have trained until then.
        seconds: running time of the search until then, without the pauses between sessions.
        accuracy: best validation accuracy, 0 to 1.
    """

    epochs: int
    seconds: float
    accuracy: float


def best_so_far(history: History, manifest: Manifest) -> list[CurvePoint]:
    """A point for each trial that completed, and a last one for the end of the search."""
    clock = _clock(history, manifest)
    spent, best, points = 0, -math.inf, list[CurvePoint]()
    for result in history.results_in_order:
        trial = history.trials[result.trial]
        if trial.excluded:
            continue
        spent += 1
        if trial.status == "completed" and result.epoch == trial.n_epochs:
            best = max(best, result.validation_accuracy)
            points.append(CurvePoint(spent, round(clock(result.at), 3), best))
    if points:
        last = max(clock(result.at) for result in history.results_in_order)
        points.append(CurvePoint(spent, round(last, 3), best))
    return _thinned(points)


def _clock(history: History, manifest: Manifest) -> Callable[[float], float]:
    """A function from seconds since 1970 (UTC) to seconds of the search's running time."""
    sessions = manifest.sessions
    starts = [datetime.fromisoformat(session.started_at).timestamp() for session in sessions]
    if not starts:
        first = min(history.event_times, default=0.0)
        return lambda at: max(0.0, at - first)
    times = list(history.event_times)
    durations = [
        session.seconds
        if session.seconds is not None
        else max((at - start for at in times if start <= at < following), default=0.0)
        for session, start, following in zip(sessions, starts, [*starts[1:], math.inf], strict=True)
    ]
    before = [0.0, *accumulate(durations)]

    def clock(at: float) -> float:
        i = max(0, bisect_right(starts, at) - 1)
        return before[i] + max(0.0, at - starts[i])

    return clock


def _thinned(points: list[CurvePoint]) -> list[CurvePoint]:
    """About `MOST_CURVE_POINTS` of the points at most; the last point is kept."""
    if len(points) <= MOST_CURVE_POINTS:
        return points
    step = math.ceil(len(points) / MOST_CURVE_POINTS)
    return [*points[:-1:step], points[-1]]
