"""What must be true of an experiment after any fault, told from the content of its files alone. Pure functions.

The journal is read here as plain JSON and ASHA's rule is written down once more, so that a mistake in
`search.experiment.events`, `search.policy.rungs` or `search.policy.state` cannot hide itself. Each check returns
sentences, none where all is well.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]
# For each trial that a session trained: the epochs, in the order in which they were trained.
Trained = Mapping[int, Sequence[int]]

# Cutoffs are interpolated: a value this near may count as either side of one.
CUTOFF_TOLERANCE = 1e-9
MOST_EPOCHS_REDONE = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What a space asks for.

    Attributes:
        trials: to be tried; None where the epoch budget alone says how many.
        rung_epochs: where trials are compared, ascending; at the last they end.
        reduction_factor: about one in so many passes a rung.
        promotes: whether trials wait at rungs to be promoted; else they are stopped there.
        epoch_budget: no trial is started when so many epochs are trained.
        chance: what a run has at most that only guesses; None where no rung asks.
    """

    trials: int | None
    rung_epochs: tuple[int, ...]
    reduction_factor: int
    promotes: bool = False
    epoch_budget: int | None = None
    chance: float | None = None

    @property
    def max_epochs(self) -> int:
        return self.rung_epochs[-1]


@dataclass(slots=True)
class TrialLines:
    """What a journal says of one trial: its lines, in their order; `end` is None while it can go on."""

    start: Event
    epochs: list[Event] = field(default_factory=list)
    end: Event | None = None

    @property
    def status(self) -> str:
        return str(self.end["status"]) if self.end else "running"

    @property
    def diverged(self) -> bool:
        return bool(self.epochs) and self.epochs[-1]["train_loss"] is None

    @property
    def accuracy(self) -> float | None:
        """After the last epoch; None before the first, and where training diverged."""
        return None if self.diverged or not self.epochs else float(self.epochs[-1]["validation_accuracy"])


def whole_lines(journal: bytes) -> bytes:
    """Without a last line that a crash tore."""
    return journal[: journal.rfind(b"\n") + 1]


def events_of(journal: bytes) -> list[Event]:
    """The events of a journal without their checksums; a torn last line is none."""
    events = [json.loads(line) for line in whole_lines(journal).splitlines()]
    return [{key: value for key, value in event.items() if key != "crc32"} for event in events]


def trials_of(events: Iterable[Event]) -> dict[int, TrialLines]:
    """Lines by trial; those that contradict each other are kept as they are (`history_problems` names them)."""
    trials: dict[int, TrialLines] = {}
    for event in events:
        match event["event"]:
            case "trial_started":
                trials.setdefault(event["trial"], TrialLines(event))
            case "epoch_done" if event["trial"] in trials:
                trials[event["trial"]].epochs.append(event)
            case "trial_ended" if event["trial"] in trials:
                trials[event["trial"]].end = event
    return trials


def prefix_problems(before: bytes, after: bytes) -> list[str]:
    """What was journaled once stays as it was, byte for byte."""
    kept = whole_lines(before)
    if after.startswith(kept):
        return []
    same = next((i for i, (one, other) in enumerate(zip(kept, after, strict=False)) if one != other), len(after))
    line = kept.count(b"\n", 0, same) + 1
    return [f"the journal's line {line} is not what it was before"]


def history_problems(
    events: Sequence[Event], asked: Asked, finished: bool, may_fail: frozenset[int] = frozenset()
) -> list[str]:
    """No trial is missing, run twice, or goes on after its end; no epoch is missing, journaled twice, or too much.

    The same holds for replicates of the best trials.

    Args:
        events: of the whole journal.
        asked: by the space.
        finished: whether the search says that it is.
        may_fail: trials that may have failed.
    """
    return [
        *_order_problems(events, "trial", _TRIAL_EVENTS, finished),
        *_order_problems(events, "run", _RUN_EVENTS, finished),
        *_end_problems(trials_of(events), asked, finished, may_fail),
        *budget_use_problems(events, asked),
    ]


_TRIAL_EVENTS = ("trial_started", "epoch_done", "trial_ended")
_RUN_EVENTS = ("run_started", "run_epoch_done", "run_ended")


def _order_problems(events: Sequence[Event], what: str, names: tuple[str, str, str], finished: bool) -> list[str]:
    started, _, ended_name = names
    problems: list[str] = []
    n_epochs: dict[int, int] = {}
    ended: set[int] = set()
    for line, event in enumerate(events, 1):
        kind = event["event"]
        if kind not in names:
            continue
        number = int(event[what])
        if kind == started:
            if number != len(n_epochs):
                problems.append(f"line {line}: {what} {number} starts after {len(n_epochs)} {what}s")
            n_epochs.setdefault(number, 0)
        elif number not in n_epochs:
            problems.append(f"line {line}: {what} {number} was never started")
        elif number in ended:
            problems.append(f"line {line}: {what} {number} has ended before")
        elif kind == ended_name:
            ended.add(number)
        else:
            if event["epoch"] != n_epochs[number] + 1:
                problems.append(f"line {line}: {what} {number} has epoch {event['epoch']} after {n_epochs[number]}")
            n_epochs[number] = event["epoch"]
    if finished:
        problems += [f"{what} {number} has not ended" for number in n_epochs if number not in ended]
    return problems


def _end_problems(
    trials: Mapping[int, TrialLines], asked: Asked, finished: bool, may_fail: frozenset[int]
) -> list[str]:
    problems = []
    for number, trial in trials.items():
        n_epochs = len(trial.epochs)
        if n_epochs > asked.max_epochs:
            problems.append(f"trial {number} has {n_epochs} epochs of {asked.max_epochs}")
        if trial.status == "completed" and n_epochs != asked.max_epochs:
            problems.append(f"trial {number} is completed after {n_epochs} epochs of {asked.max_epochs}")
        if trial.end and trial.status == "failed" and number not in may_fail:
            problems.append(f"trial {number} failed ({trial.end['reason']})")
    n_epochs = sum(len(trial.epochs) for trial in trials.values())
    is_used = asked.epoch_budget is not None and n_epochs >= asked.epoch_budget
    too_many = asked.trials is not None and len(trials) > asked.trials
    if too_many or (finished and not is_used and len(trials) != asked.trials):
        problems.append(f"{len(trials)} trials were begun of {asked.trials}")
    return problems


def budget_use_problems(events: Sequence[Event], asked: Asked) -> list[str]:
    """No trial is started, or promoted, once the epoch budget is used."""
    problems = []
    n_epochs = 0
    for event in events:
        n_epochs += event["event"] == "epoch_done"
        begins = event["event"] in ("trial_started", "trial_promoted")
        if begins and asked.epoch_budget is not None and n_epochs >= asked.epoch_budget:
            problems.append(f"trial {event['trial']} begins or goes on after {n_epochs} epochs of {asked.epoch_budget}")
    return problems


def rung_problems(events: Sequence[Event], asked: Asked) -> list[str]:
    """Each trial is stopped where, and only where, the results before it say so.

    A trial that is due to end may stand without its end only where the journal breaks off.
    """
    if asked.promotes:
        return promotion_problems(events, asked)
    problems: list[str] = []
    rungs: dict[int, list[float]] = {epoch: [] for epoch in asked.rung_epochs[:-1]}
    due: dict[int, str] = {}
    baselines = {event["trial"] for event in events if event["event"] == "trial_started" and event["baseline"]}
    for event in events:
        kind, trial = event["event"], event.get("trial")
        if kind == "epoch_done":
            was_due = due.pop(event["trial"], _NOT_DUE)
            if was_due not in (_NOT_DUE, _TIED):
                problems.append(f"trial {trial} goes on to epoch {event['epoch']}, but was {was_due}")
            verdict = _due(event, rungs, asked, event["trial"] in baselines)
            # The baseline always goes to the end.
            due[event["trial"]] = _NOT_DUE if trial in baselines and verdict in (_TIED, _DUE_STOPPED) else verdict
        elif kind == "trial_ended":
            was_due = due.pop(event["trial"], _NOT_DUE)
            # Losing its worker again and again ends a trial anywhere.
            if event["status"] not in (*_DUE_STATUSES[was_due], *(["failed"] if was_due == _NOT_DUE else [])):
                problems.append(f"trial {trial} is {event['status']}, but was {was_due}")
    return problems


_NOT_DUE = "not to end"
_TIED = "as good as its rung's cutoff"
_DUE_STOPPED = "to be stopped"
_DUE_COMPLETED = "to be completed"
_DUE_FAILED = "to end as diverged"
_DUE_STATUSES = {
    _NOT_DUE: (),
    _TIED: ("stopped", "failed"),
    _DUE_STOPPED: ("stopped",),
    _DUE_COMPLETED: ("completed",),
    _DUE_FAILED: ("diverged",),
}


def _due(result: Event, rungs: Mapping[int, list[float]], asked: Asked, baseline: bool) -> str:
    """What a result means for its trial. Takes the result into its rung."""
    epoch = result["epoch"]
    if result["train_loss"] is None:
        # Worst at the rung that it would have come to; the baseline would have come to all of them.
        ahead = [rung for rung in rungs if rung >= epoch]
        for rung in ahead if baseline else ahead[:1]:
            rungs[rung].append(0.0)
        return _DUE_FAILED
    if epoch >= asked.max_epochs:
        return _DUE_COMPLETED
    if epoch not in rungs:
        return _NOT_DUE
    others, value = list(rungs[epoch]), float(result["validation_accuracy"])
    rungs[epoch].append(value)
    return _at_rung(value, others, asked) if others else _NOT_DUE


def _at_rung(value: float, others: Sequence[float], asked: Asked) -> str:
    someone_learned = asked.chance is None or max(value, *others) > asked.chance
    if asked.chance is not None and someone_learned and value <= asked.chance:
        return _DUE_STOPPED
    share = 1 - 1 / asked.reduction_factor
    over = value - quantile(others, share)
    if _lies_among_equals(value, others, share):
        return _DUE_STOPPED if someone_learned else _NOT_DUE
    if abs(over) < CUTOFF_TOLERANCE:
        return _TIED
    return _DUE_STOPPED if over < 0 else _NOT_DUE


def _lies_among_equals(value: float, others: Sequence[float], share: float) -> bool:
    """Whether the cutoff is exactly `value` however it is rounded: those on both sides of it are."""
    ordered = sorted(others)
    position = share * (len(ordered) - 1)
    low = max(0, math.floor(position - CUTOFF_TOLERANCE))
    high = min(len(ordered) - 1, math.ceil(position + CUTOFF_TOLERANCE))
    return ordered[low] == value == ordered[high]


def promotion_problems(events: Sequence[Event], asked: Asked) -> list[str]:
    """A trial goes on from a rung when, and only when, the results before it say that it is its turn.

    Likewise no trial is started while another can be promoted, and none ends at a rung but as stopped.
    """
    problems: list[str] = []
    trials: dict[int, TrialLines] = {}
    promoted: dict[int, int] = {}
    n_epochs = 0
    for event in events:
        kind, number = event["event"], event.get("trial")
        is_used = asked.epoch_budget is not None and n_epochs >= asked.epoch_budget
        begins = kind in ("trial_started", "trial_promoted") and not is_used
        first = first_to_promote(trials, promoted, asked) if begins else None
        if kind == "trial_started":
            if first is not None:
                problems.append(f"trial {number} starts, but trial {first} was to be promoted")
            trials[event["trial"]] = TrialLines(event)
        elif kind == "trial_promoted":
            if number != first:
                problems.append(
                    f"trial {number} is promoted at epoch {event['epoch']}, but the turn was trial {first}'s"
                )
            promoted[event["trial"]] = event["epoch"]
        elif kind == "epoch_done":
            if _waits(trials[event["trial"]], promoted, asked):
                problems.append(f"trial {number} goes on to epoch {event['epoch']}, but was not promoted")
            trials[event["trial"]].epochs.append(event)
            n_epochs += 1
        elif kind == "trial_ended":
            lines = trials[event["trial"]]
            if (event["status"] == "stopped") != _waits(lines, promoted, asked):
                problems.append(f"trial {number} is {event['status']} after {len(lines.epochs)} epochs")
            if (event["status"] == "diverged") != lines.diverged:
                problems.append(f"trial {number} is {event['status']}, but its loss says otherwise")
            lines.end = event
    return problems


def first_to_promote(trials: Mapping[int, TrialLines], promoted: Mapping[int, int], asked: Asked) -> int | None:
    """The trial whose turn it is to be promoted: naively, from all results, as the paper's `get_job` has it.

    Args:
        trials: as far as they have come.
        promoted: for each trial that was, the highest rung that it was promoted from.
        asked: by the space.
    """
    for epoch in reversed(asked.rung_epochs[:-1]):
        arrived = sorted(_arrivals(trials, epoch, asked))
        best = -arrived[0][0] if arrived else 0.0
        for worse, _, number in arrived[: len(arrived) // asked.reduction_factor]:
            at_chance = asked.chance is not None and -worse <= asked.chance < best
            lines = trials[number]
            if len(lines.epochs) == epoch and _waits(lines, promoted, asked) and not at_chance:
                return number
    return None


def _waits(lines: TrialLines, promoted: Mapping[int, int], asked: Asked) -> bool:
    n_epochs, number = len(lines.epochs), lines.start["trial"]
    stands = n_epochs in asked.rung_epochs[:-1] and not lines.start["baseline"] and not lines.diverged
    return stands and lines.end is None and promoted.get(number, 0) < n_epochs


def _arrivals(trials: Mapping[int, TrialLines], epoch: int, asked: Asked) -> list[tuple[float, float, int]]:
    """Who came to a rung, or would have but for its divergence: negative accuracy, loss, number."""
    found = []
    for number, lines in trials.items():
        n_epochs = len(lines.epochs)
        if lines.diverged and n_epochs <= epoch:
            earlier = [rung for rung in asked.rung_epochs if n_epochs <= rung < epoch]
            if lines.start["baseline"] or not earlier:
                found.append((0.0, math.inf, number))
        elif n_epochs >= epoch:
            result = lines.epochs[epoch - 1]
            loss = math.inf if result["validation_loss"] is None else float(result["validation_loss"])
            found.append((-float(result["validation_accuracy"]), loss, number))
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Between the two nearest values, in proportion; `values` in any order, at least one."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def checkpoint_problems(events: Sequence[Event], checkpoints: Mapping[int, int]) -> list[str]:
    """A trial that can go on can do so from its last epoch but one at the earliest.

    Args:
        events: of the whole journal.
        checkpoints: for each trial that has any, the most epochs that an intact one holds.
    """
    problems = []
    for number, trial in trials_of(events).items():
        missing = len(trial.epochs) - checkpoints.get(number, 0)
        if trial.status == "running" and missing > MOST_EPOCHS_REDONE:
            problems.append(
                f"trial {number} has {len(trial.epochs)} epochs, but its newest intact checkpoint is of epoch "
                f"{checkpoints.get(number, 0)}"
            )
    return problems


def trained_problems(before: Sequence[Event], trained: Trained, n_workers_killed: int = 0) -> list[str]:
    """What a session trained follows on what was journaled before it.

    Args:
        before: events that were journaled before the session began.
        trained: by the session, as Ray's logs tell.
        n_workers_killed: in the session.
    """
    known = trials_of(before)
    problems = []
    for number, epochs in trained.items():
        trial = known.get(number)
        if trial is not None and trial.end is not None:
            problems.append(f"trial {number} was {trial.status} and is trained again")
            continue
        n_known = len(trial.epochs) if trial else 0
        steps = zip([n_known, *epochs], epochs, strict=False)
        gaps = [after for last, after in steps if after > last + 1]
        if gaps:
            problems.append(f"trial {number} is trained in epoch {gaps[0]} without the one before it")
        since, within = redone_since(before, {number: epochs}), redone_within({number: epochs})
        if since[number] > MOST_EPOCHS_REDONE:
            problems.append(f"trial {number} has {n_known} epochs, and {since[number]} of them are trained again")
        if within[number] > MOST_EPOCHS_REDONE * n_workers_killed:
            problems.append(f"trial {number} trains {within[number]} epochs twice in a session")
    return problems


def redone_since(before: Sequence[Event], trained: Trained) -> dict[int, int]:
    """For each trial, how many epochs that were journaled before a session the session trained again."""
    n_known = {number: len(trial.epochs) for number, trial in trials_of(before).items()}
    return {number: len({e for e in epochs if e <= n_known.get(number, 0)}) for number, epochs in trained.items()}


def redone_within(trained: Trained) -> dict[int, int]:
    """For each trial, how many epochs one session trained more than once."""
    return {number: len(epochs) - len(set(epochs)) for number, epochs in trained.items()}


def redone_journaled(before: bytes, after: bytes) -> dict[int, int]:
    """For each trial, how many epochs were redone by the lines that `after` has more than `before`."""
    new = events_of(whole_lines(after)[len(whole_lines(before)) :])
    return dict(Counter(event["trial"] for event in new if event["event"] == "epoch_redone"))


def redone_problems(before: bytes, after: bytes, trained: Trained, n_workers_killed: int) -> list[str]:
    """A session journals each epoch that it redid, and redid no more than one a trial and process lost.

    Args:
        before, after: the journal at its start and end.
        trained: by the session, as Ray's logs tell; they miss at most the last result of each trial.
        n_workers_killed: in the session.
    """
    journaled = redone_journaled(before, after)
    since, within = redone_since(events_of(before), trained), redone_within(trained)
    problems = []
    for number in sorted({*journaled, *trained}):
        says, logs = journaled.get(number, 0), since.get(number, 0) + within.get(number, 0)
        if not logs <= says <= logs + 1:
            problems.append(f"trial {number} redid {says} epochs by the journal and {logs} by Ray's logs")
        if says > MOST_EPOCHS_REDONE * (1 + n_workers_killed):
            problems.append(f"trial {number} redid {says} epochs in a session")
    return problems


def lost_trials(before: Sequence[Event], after: Sequence[Event]) -> list[int]:
    """Trials of which something was journaled before that is not there after."""
    left = Counter(json.dumps(event, sort_keys=True) for event in after)
    left.subtract(Counter(json.dumps(event, sort_keys=True) for event in before))
    missing = [json.loads(line) for line, n in left.items() if n < 0]
    return sorted({event["trial"] for event in missing if "trial" in event})


_OPTUNA_STATES = {
    "completed": "COMPLETE",
    "stopped": "PRUNED",
    "failed": "FAIL",
    "diverged": "FAIL",
    "running": "RUNNING",
}


@dataclass(frozen=True, slots=True)
class StudyTrial:
    """A trial as an Optuna study has it.

    Attributes:
        state: the name of Optuna's.
        params: what was suggested.
        values: accuracies by epoch.
        value: the final one; None where it has none.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    values: Mapping[int, float]
    value: float | None


def study_problems(study: Sequence[StudyTrial], events: Sequence[Event], current: bool) -> list[str]:
    """The study says what the journal says, or said at an earlier moment.

    Args:
        study: all trials of it.
        events: of the whole journal.
        current: whether it must be up to date.
    """
    trials = trials_of(events)
    if [trial.number for trial in study] != list(range(len(study))) or len(study) > len(trials):
        return [f"the study has the trials {[trial.number for trial in study]} of {len(trials)}"]
    problems = []
    if current and len(study) < len(trials):
        problems.append(f"the study has {len(study)} trials of {len(trials)}")
    for told in study:
        lines = trials[told.number]
        values = {e["epoch"]: e["validation_accuracy"] for e in lines.epochs if e["train_loss"] is not None}
        ended = told.state != "RUNNING"
        if told.params != lines.start["suggested"]:
            problems.append(f"the study's trial {told.number} has other parameters")
        if dict(told.values) != (values if ended or current else _first(values, len(told.values))):
            problems.append(f"the study's trial {told.number} has other values")
        if (ended or current) and told.state != _OPTUNA_STATES[lines.status]:
            problems.append(f"the study's trial {told.number} is {told.state}, but was {lines.status}")
        if told.state in ("COMPLETE", "PRUNED") and told.value != lines.accuracy:
            problems.append(f"the study's trial {told.number} ends with {told.value}, but had {lines.accuracy}")
    return problems


def _first(values: Mapping[int, float], n: int) -> dict[int, float]:
    return dict(list(values.items())[:n])


_GROUPS = {"completed": 0, "stopped": 1, "running": 1, "failed": 2, "diverged": 3}


def leaderboard_problems(rows: Sequence[Mapping[str, Any]], events: Sequence[Event], current: bool) -> list[str]:
    """A leaderboard says what the journal says, or said at an earlier moment, best first.

    Args:
        rows: with `rank`, `trial`, `status`, `epochs` and `validation_accuracy`; in order.
        events: of the whole journal.
        current: whether it must be up to date.
    """
    trials = trials_of(events)
    problems = []
    numbers = sorted(row["trial"] for row in rows)
    if numbers != list(range(len(rows))) or len(rows) > len(trials) or (current and len(rows) < len(trials)):
        return [f"the leaderboard has the trials {numbers} of {len(trials)}"]
    for row in rows:
        lines = trials[row["trial"]]
        at_that_time = lines.epochs[: row["epochs"]]
        accuracy = TrialLines(lines.start, at_that_time).accuracy
        late = not current and row["status"] == "running"
        if len(at_that_time) != row["epochs"] or not (late or row["epochs"] == len(lines.epochs)):
            problems.append(f"the leaderboard gives trial {row['trial']} {row['epochs']} epochs of {len(lines.epochs)}")
        if row["validation_accuracy"] != accuracy:
            problems.append(f"the leaderboard gives trial {row['trial']} {row['validation_accuracy']} for {accuracy}")
        if not late and row["status"] != lines.status:
            problems.append(f"the leaderboard says {row['status']} of trial {row['trial']}, which was {lines.status}")
    if [row["rank"] for row in rows] != list(range(1, len(rows) + 1)):
        problems.append("the leaderboard's ranks do not count from 1")
    if any(_better(after, before) for before, after in itertools.pairwise(rows)):
        problems.append("the leaderboard's order is not by status, epochs and accuracy")
    return problems


def _better(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    both_again = all(row.get("replicate_accuracy") is not None for row in (one, other))

    def key(row: Mapping[str, Any]) -> tuple[int, int, float]:
        # First those with replicates, by what these say; the baseline's count like an accuracy beside a trial without.
        if row.get("replicate_accuracy") is not None:
            return (0 if row["baseline"] and not both_again else -1, 0, -row["replicate_accuracy"])
        group = _GROUPS[row["status"]]
        accuracy = row["validation_accuracy"]
        return (group, 0 if group == 0 else -row["epochs"], 1.0 if accuracy is None else -accuracy)

    return key(one) < key(other)


def session_problems(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """The manifest's sessions stay as they were; one that had not ended may have ended since."""
    if len(after) < len(before):
        return [f"the manifest had {len(before)} sessions and has {len(after)}"]
    for number, (one, other) in enumerate(zip(before, after, strict=False), 1):
        kept = one if one.get("seconds") is not None else {"started_at": one["started_at"]}
        if any(other.get(key) != value for key, value in kept.items()):
            return [f"the manifest's session {number} is not what it was before"]
    return []


def budget_problems(
    used_s: float, used_before_s: float, launches: Sequence[tuple[float, float]], events: Sequence[Event]
) -> list[str]:
    """The time that a search says it used lies between what its events span and what its processes took.

    Args:
        used_s: as the product says now; `used_before_s` when it was asked last.
        launches: when each process was started and when it ended, in seconds since 1970.
        events: of the whole journal.
    """
    least_s = 0.0
    for start, end in launches:
        times = [event["at"] for event in events if "at" in event and start <= event["at"] <= end]
        least_s += max(times) - min(times) if times else 0.0
    # The manifest keeps whole seconds.
    most_s = sum(end - start for start, end in launches) + len(launches)
    problems = []
    if not least_s <= used_s + 1e-3 <= most_s + 1e-3:
        problems.append(f"{used_s:.1f} s are said to be used, but it was {least_s:.1f} to {most_s:.1f} s")
    if used_s < used_before_s - 1e-3:
        problems.append(f"{used_s:.1f} s are said to be used, and {used_before_s:.1f} s before that")
    return problems
