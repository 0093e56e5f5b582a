"""Checks of an experiment after a fault. Pure functions; each returns its problems as sentences.

The product's own reader refuses a journal in which a trial or an epoch is missing, repeated or out of order
(`History.apply`). ASHA's rule is implemented here a second time, so that a mistake in `search.policy` is noticed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from scipy.stats import rankdata

from search.experiment.events import EndStatus, EpochDone, EpochRedone, Event, TrialEnded, TrialStarted
from search.experiment.history import History, Trial
from search.experiment.journal import event_from_line
from search.experiment.manifest import Session
from search.policy.rungs import FEWEST_PAIRS, SMALLEST_CORRELATION
from spaces import Space

# Accuracy at each rung by number of the trial, in the order in which they were recorded.
Values = Mapping[int, dict[int, float]]
# For each trial that a session trained: its epochs, in the order of training.
Trained = Mapping[int, Sequence[int]]

MOST_EPOCHS_REDONE = 1  # per trial and fault
OPTUNA_STATES = {
    "completed": "COMPLETE",
    "stopped": "PRUNED",
    "failed": "FAIL",
    "diverged": "FAIL",
    "running": "RUNNING",
}


def whole_lines(journal: bytes) -> bytes:
    """The journal without a last line that a crash tore."""
    return journal[: journal.rfind(b"\n") + 1]


def events_of(journal: bytes) -> list[Event]:
    """Events of a journal, without a torn last line."""
    return [event_from_line(line) for line in whole_lines(journal).splitlines()]


def prefix_problems(before: bytes, after: bytes) -> list[str]:
    """Journaled lines stay unchanged, byte for byte."""
    lines = whole_lines(before).splitlines(keepends=True)
    later = after.splitlines(keepends=True)
    changed = [n for n, line in enumerate(lines) if n >= len(later) or later[n] != line]
    return [f"the journal's line {changed[0] + 1} is changed or missing"] if changed else []


def history_problems(
    events: Sequence[Event],
    space: Space,
    chance: float | None,
    finished: bool,
    may_fail: frozenset[int] = frozenset(),
) -> list[str]:
    """The events contradict neither each other nor the space, and each trial ends where ASHA's rule ends it.

    Args:
        events: events of the whole journal.
        space: the searched space.
        chance: highest accuracy of a run that only guesses; None if it is unknown.
        finished: whether the search has ended.
        may_fail: numbers of the trials that may have failed.
    """
    try:
        history = History(events)
    except ValueError as error:
        return [str(error)]
    problems = rung_problems(events, space, chance)
    problems += [
        f"trial {number} failed ({trial.end.reason})"
        for number, trial in history.trials.items()
        if trial.end and trial.status == "failed" and number not in may_fail
    ]
    n_trials, limit, budget = len(history.trials), space.search.trials, space.search.epoch_budget
    is_used = budget is not None and history.n_epochs >= budget
    if (limit is not None and n_trials > limit) or (finished and not is_used and n_trials != limit):
        problems.append(f"{n_trials} trials were started, but the space has {limit}")
    if finished:
        problems += [f"trial {trial.number} has not ended" for trial in history.unfinished]
        problems += [f"replicate {run.number} has not ended" for run in history.unfinished_replicates]
    return problems


def rung_problems(events: Sequence[Event], space: Space, chance: float | None) -> list[str]:
    """Each trial stops or continues as ASHA's rule says of the results before.

    A trial without its end is no problem: the journal may break off before it.
    """
    problems: list[str] = []
    history = History()
    values: Values = {epoch: {} for epoch in space.rung_epochs[:-1]}
    # How each trial must end; None if it must continue.
    due: dict[int, EndStatus | None] = {}
    for event in events:
        match event:
            case TrialStarted(trial=number):
                problems += _start_problems(event, history, space)
                due[number] = None
            case EpochDone(trial=number) if due[number]:
                problems.append(f"trial {number} continues to epoch {event.epoch}, but had to end as {due[number]}")
            case TrialEnded(trial=number, status=status) if status != (due[number] or "failed"):
                problems.append(f"trial {number} ends as {status}, but had to {_duty(due[number])}")
        history.apply(event)
        if isinstance(event, EpochDone):
            due[event.trial] = _due(history.trials[event.trial], event, values, space, chance)
    return problems


def _duty(due: EndStatus | None) -> str:
    return f"end as {due}" if due else "continue"


def _start_problems(event: TrialStarted, history: History, space: Space) -> list[str]:
    """Problems of the start of a trial after the events of `history`."""
    budget = space.search.epoch_budget
    if budget is not None and history.n_epochs >= budget:
        return [f"trial {event.trial} starts after {history.n_epochs} epochs of {budget}"]
    return []


def _due(trial: Trial, result: EpochDone, values: Values, space: Space, chance: float | None) -> EndStatus | None:
    """How a trial must end after a result; None if it must continue. Adds the result to its rung's values."""
    exempt = trial.baseline or trial.audit
    if result.diverged:
        ahead = [epoch for epoch in values if epoch >= result.epoch]
        for epoch in ahead if exempt else ahead[:1]:
            values[epoch][trial.number] = 0.0
        return "diverged"
    if result.epoch >= space.rung_epochs[-1]:
        return "completed"
    if result.epoch not in values:
        return None
    others, is_open = list(values[result.epoch].values()), _is_open(result.epoch, values, space)
    values[result.epoch][trial.number] = result.validation_accuracy
    stops = is_open and not _passes(result.validation_accuracy, others, space.search.reduction_factor, chance)
    return "stopped" if stops and not exempt else None


def _is_open(epoch: int, values: Values, space: Space) -> bool:
    """Whether a rung stops trials: with `asha: adaptive`, while its order is that of the last rung."""
    last = space.rung_epochs[-2]
    both = [number for number in values[last] if number in values[epoch]]
    if space.search.asha != "adaptive" or epoch == last:
        return True
    if len(both) < FEWEST_PAIRS:
        return False
    ranks = [rankdata([values[rung][number] for number in both]) for rung in (epoch, last)]
    spread = min(np.ptp(of_rung) for of_rung in ranks)
    return bool(spread > 0 and np.corrcoef(ranks)[0, 1] > SMALLEST_CORRELATION - 1e-9)


def _passes(value: float, others: Sequence[float], reduction_factor: int, chance: float | None) -> bool:
    if not others:
        return True
    cutoff = np.percentile(others, (1 - 1 / reduction_factor) * 100)
    if chance is not None and max(value, *others) <= chance:
        return bool(value >= cutoff)
    return bool(value > cutoff) and (chance is None or value > chance)


def checkpoint_problems(history: History, checkpoints: Mapping[int, int]) -> list[str]:
    """Each running trial can continue from its last epoch or the one before.

    Args:
        history: history of the search.
        checkpoints: epoch of the newest intact checkpoint of each trial that has one.
    """
    return [
        f"trial {trial.number} has {trial.n_epochs} epochs, but its newest intact checkpoint is of epoch "
        f"{checkpoints.get(trial.number, 0)}"
        for trial in history.unfinished
        if trial.n_epochs - checkpoints.get(trial.number, 0) > MOST_EPOCHS_REDONE
    ]


def training_problems(before: History, new: Sequence[Event], trained: Trained, n_workers_killed: int = 0) -> list[str]:
    """A session continues from the journal, repeats at most one epoch per trial and fault, and journals that.

    Args:
        before: history before the session.
        new: events of the session.
        trained: epochs of the session by Ray's logs, which may lack the last result of each trial.
        n_workers_killed: number of workers that were killed in the session.
    """
    journaled = Counter(event.trial for event in new if isinstance(event, EpochRedone))
    problems = []
    for number in sorted({*journaled, *trained}):
        epochs, known = trained.get(number, ()), before.trials.get(number)
        if epochs and known and known.end:
            problems.append(f"trial {number} was {known.status} and is trained again")
            continue
        n_known = known.n_epochs if known else 0
        gaps = [after for last, after in zip([n_known, *epochs], epochs, strict=False) if after > last + 1]
        if gaps:
            problems.append(f"trial {number} is trained in epoch {gaps[0]} without the one before it")
        logged = len(epochs) - len({epoch for epoch in epochs if epoch > n_known})
        if not logged <= journaled[number] <= logged + 1:
            problems.append(
                f"trial {number} repeats {journaled[number]} epochs by the journal and {logged} by Ray's logs"
            )
        if journaled[number] > MOST_EPOCHS_REDONE * (1 + n_workers_killed):
            problems.append(f"trial {number} repeats {journaled[number]} epochs in a session")
    return problems


def study_problems(study: Sequence[FrozenTrial], history: History, current: bool) -> list[str]:
    """The Optuna study agrees with the history, or unless `current` with an earlier state of it."""
    n_trials = len(history.trials)
    numbers = [trial.number for trial in study]
    if numbers != list(range(len(study))) or len(study) > n_trials or (current and len(study) < n_trials):
        return [f"the study has the trials {numbers} of {n_trials}"]
    problems = []
    for told, trial in zip(study, history.trials.values(), strict=False):
        up_to_date = current or told.state.is_finished()
        values = {epoch.epoch: epoch.validation_accuracy for epoch in trial.epochs if not epoch.diverged}
        n_values = len(values) if up_to_date else len(told.intermediate_values)
        last = values.get(trial.n_epochs) if told.state.name in ("COMPLETE", "PRUNED") else None
        expected: dict[str, Any] = {
            "params": trial.suggested,
            "intermediate_values": dict(list(values.items())[:n_values]),
            "value": last,
        }
        if up_to_date and told.state.name != OPTUNA_STATES[trial.status]:
            problems.append(f"the study's trial {told.number} is {told.state.name}, but was {trial.status}")
        for name, value in expected.items():
            if getattr(told, name) != value:
                problems.append(f"the study's trial {told.number} has other {name}")
    return problems


def leaderboard_problems(rows: Sequence[Mapping[str, Any]], history: History, current: bool) -> list[str]:
    """A leaderboard agrees with the history, or unless `current` with an earlier state of it.

    Args:
        rows: rows with `rank`, `trial`, `status`, `epochs` and `validation_accuracy`.
        history: history of the search.
        current: whether the leaderboard must be up to date.
    """
    numbers, n_trials = sorted(row["trial"] for row in rows), len(history.trials)
    if numbers != list(range(len(rows))) or len(rows) > n_trials or (current and len(rows) < n_trials):
        return [f"the leaderboard has the trials {numbers} of {n_trials}"]
    problems = []
    if [row["rank"] for row in rows] != list(range(1, len(rows) + 1)):
        problems.append("the leaderboard's ranks do not count from 1")
    for row in rows:
        trial = history.trials[row["trial"]]
        earlier = not current and row["status"] == "running"
        epochs = trial.epochs[: row["epochs"]] if earlier else trial.epochs
        accuracy = epochs[-1].validation_accuracy if epochs and not epochs[-1].diverged else None
        expected = ("running" if earlier else trial.status, len(epochs), accuracy)
        found = (row["status"], row["epochs"], row["validation_accuracy"])
        if found != expected:
            problems.append(f"the leaderboard says {found} of trial {trial.number}, but it is {expected}")
    return problems


def session_problems(before: Sequence[Session], after: Sequence[Session]) -> list[str]:
    """The manifest keeps its sessions; only one that had not ended may get its end."""
    if len(after) < len(before):
        return [f"the manifest had {len(before)} sessions and has {len(after)}"]
    return [
        f"the manifest's session {number} is changed"
        for number, (old, new) in enumerate(zip(before, after, strict=False), 1)
        if new != old and (old.seconds is not None or new.started_at != old.started_at)
    ]


def time_problems(
    used_s: float, used_before_s: float, launches: Sequence[tuple[float, float]], history: History
) -> list[str]:
    """The used time lies between the span of the events and the run time of the processes, and never decreases.

    Args:
        used_s: used time by `seconds_used`; `used_before_s` after the launch before.
        launches: start and end of each process, seconds since 1970 (UTC).
        history: history of the search.
    """
    least_s = 0.0
    for start, end in launches:
        times = [at for at in history.event_times if start <= at <= end]
        least_s += max(times) - min(times) if times else 0.0
    most_s = sum(end - start for start, end in launches) + len(launches)  # sessions have whole seconds
    if not max(least_s, used_before_s) <= used_s + 1e-3 <= most_s + 2e-3:
        return [
            f"the used time is {used_s:.1f} s (before: {used_before_s:.1f} s), but must lie between {least_s:.1f} and "
            f"{most_s:.1f} s"
        ]
    return []
