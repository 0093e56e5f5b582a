"""Experiments side by side: what differs in what they searched, set and found, and how fast they found it."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from io import StringIO
from itertools import accumulate
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.analysis.estimates import duration_text
from search.analysis.ranking import (
    Ranked,
    best_completed,
    lead_sentence,
    over_baseline,
    points_text,
    rank,
    replicate_text,
    winner,
)
from search.analysis.stopping_findings import savings
from search.experiment.final_results import read_final_results
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Manifest, seconds_used
from search.terminal.tables import short
from spaces.errors import InputError
from spaces.parameters import HYPERPARAMETER_NAMES, Fixed, Parameter
from spaces.printable import printable
from spaces.schema import SECTIONS, Space

ABSENT = "–"
_SECTIONS = ("outcome", "winner", "searched", "settings", "made with")
# A curve through more completed trials is thinned; the last point stays.
MOST_CURVE_POINTS = 2000


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The best completed trial so far.

    Attributes:
        epochs: that all trials had trained by then.
        seconds: that the search had run by then, without the pauses between its sessions.
        accuracy: of the validation images, 0 to 1.
    """

    epochs: int
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class ExperimentSummary:
    """One of the experiments.

    Attributes:
        name: of its folder, distinct from the others'.
        test_accuracy: in words.
        curve: best so far, from the first completed trial to the end.
    """

    name: str
    space: Space
    manifest: Manifest
    history: History
    ranked: list[Ranked]
    test_accuracy: str
    curve: list[CurvePoint]

    @property
    def best(self) -> Ranked | None:
        return winner(self.ranked)


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One thing in all experiments; `values` in their order."""

    section: str
    name: str
    values: list[str]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def read_compared(experiments: Sequence[Experiment]) -> list[ExperimentSummary]:
    """All that is compared; two folders of one name are told apart by their places.

    Raises:
        InputError: one of them cannot be read.
    """
    names = [experiment.name for experiment in experiments]
    distinct = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]
    return [_read(name, experiment) for name, experiment in zip(distinct, experiments, strict=True)]


def compared_rows(compared: Sequence[ExperimentSummary]) -> list[SummaryRow]:
    """What they found, with what winner, searching what, under which settings, made by what."""
    columns = [_described(one) for one in compared]
    keys = dict.fromkeys(key for column in columns for key in column)
    return [
        SummaryRow(section, name, [column.get((section, name), ABSENT) for column in columns])
        # What only a later one has comes last in its section.
        for section, name in sorted(keys, key=lambda key: _SECTIONS.index(key[0]))
    ]


def remarks(compared: Sequence[ExperimentSummary]) -> list[str]:
    """What forbids to compare their accuracies, in sentences."""
    found = []
    if len({one.manifest.data.content_sha256 for one in compared}) > 1:
        found.append("They are not of the same images, so that their accuracies do not compare.")
    cuts = {
        (one.space.dataset.split_seed, one.space.dataset.validation_fraction, one.space.dataset.train_limit)
        for one in compared
    }
    if len(cuts) > 1:
        found.append(
            "They hold out different images for validation: differences of their accuracies hold luck as well."
        )
    if any(one.best is not None and one.best.replicates is None for one in compared):
        found.append("An accuracy of one seed is the best of many noisy ones, and too high; replicates are not.")
    return found


def as_text(compared: Sequence[ExperimentSummary], rows: Sequence[SummaryRow], width: int | None = None) -> str:
    """A table; rows that differ are marked `≠`, and bold on a terminal of `width` characters."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    for one in compared:
        table.add_column(Text(printable(one.name)), overflow="fold")
    section = None
    for row in rows:
        if section is not None and row.section != section:
            table.add_section()
        section = row.section
        texts = [Text(printable(text)) for text in (row.name, *row.values)]
        table.add_row(Text("≠" if row.differs else ""), *texts, style="bold" if row.differs else "dim")
    buffer = StringIO()
    Console(file=buffer, width=width or 400, force_terminal=width is not None).print(table)
    lines = [line.rstrip() for line in buffer.getvalue().rstrip("\n").splitlines()]
    sentences = [f"{printable(one.name)}: {lead_of(one)}" for one in compared]
    return "\n".join([*lines, "", *sentences, *remarks(compared)])


def as_dict(compared: Sequence[ExperimentSummary], rows: Sequence[SummaryRow]) -> dict[str, Any]:
    """JSON-ready: `experiments`, `rows`, `curves` by experiment, `remarks`."""
    return {
        "experiments": [one.name for one in compared],
        "rows": [{**asdict(row), "differs": row.differs} for row in rows],
        "curves": {one.name: [asdict(point) for point in one.curve] for one in compared},
        "remarks": remarks(compared),
    }


def lead_of(one: ExperimentSummary) -> str:
    """Who won in an experiment, in words."""
    return lead_sentence(one.history, one.ranked, one.manifest.data.chance)


def best_so_far(history: History, manifest: Manifest) -> list[CurvePoint]:
    """The best accuracy at the end of a completed trial, whenever one completed, and at the search's end."""
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


def range_text(parameter: Parameter) -> str:
    """`loguniform 0.001 to 0.5`, `choice 32, 64`, or the value where it is fixed."""
    if isinstance(parameter, Fixed):
        return short(parameter.value)
    ((kind, values),) = parameter.as_yaml().items()
    joiner = ", " if kind == "choice" else " to "
    return f"{kind} {joiner.join(short(value) for value in values)}"


def _read(name: str, experiment: Experiment) -> ExperimentSummary:
    history, manifest = experiment.history(), experiment.manifest
    try:
        final = read_final_results(experiment)
        tested = f"{final.test_accuracy_mean:.2%} (trial {final.trial})" if final else "not opened"
    except InputError:
        tested = "cannot be read"
    return ExperimentSummary(
        name=name,
        space=experiment.space,
        manifest=manifest,
        history=history,
        ranked=rank(history, manifest.data.chance),
        test_accuracy=tested,
        curve=best_so_far(history, manifest),
    )


def _described(one: ExperimentSummary) -> dict[tuple[str, str], str]:
    parts: dict[str, dict[str, str]] = {
        "outcome": _outcome(one),
        "winner": {name: short(value) for name, value in one.best.config.as_dict().items()} if one.best else {},
        "searched": {name: range_text(one.space.parameters[name]) for name in _in_order(one.space.parameters)},
        "settings": _settings(one.space),
        "made with": _made_with(one.manifest),
    }
    return {(section, name): text for section, texts in parts.items() for name, text in texts.items()}


def _outcome(one: ExperimentSummary) -> dict[str, str]:
    best, history = one.best, one.history
    accuracy = ABSENT
    if best is not None and best.validation_accuracy is not None:
        one_seed = f"{best.validation_accuracy:.2%} (one seed)"
        accuracy = _replicates_text(best.replicates.n_runs, best) if best.replicates else one_seed
    n_stopped = sum(trial.status == "stopped" for trial in history.counting)
    return {
        "winner": f"trial {best.trial}" if best else "none: at chance" if best_completed(one.ranked) else ABSENT,
        "validation accuracy": accuracy,
        "lead over its baseline": _lead_text(one),
        "test accuracy": one.test_accuracy,
        "trials": f"{history.n_ended} ended, {n_stopped} stopped",
        "epochs": f"{history.n_epochs:,}",
        "epochs of replicates": f"{sum(run.n_epochs for run in history.replicates.values()):,}",
        "epochs saved by stopping": f"{savings(history, one.space).numbers['saved']:,}",
        "time": duration_text(seconds_used(one.manifest.sessions, history)),
        "device": f"{one.manifest.device.name}, {one.manifest.device.precision}",
    }


def _replicates_text(n_runs: int, best: Ranked) -> str:
    assert best.replicates is not None
    return f"{replicate_text(best.replicates)} ({n_runs} replicate{'s' * (n_runs > 1)})"


def _lead_text(one: ExperimentSummary) -> str:
    over = over_baseline(one.history, one.ranked)
    if over.lead is None:
        return ABSENT
    doubt = "too few replicates" if over.kind == "replicates" else over.kind
    return points_text(over.lead) + (f" ({doubt})" if over.lead.half_width is None else "")


def _in_order(names: Iterable[str]) -> list[str]:
    known = set(names)
    return [name for name in HYPERPARAMETER_NAMES if name in known]


def _settings(space: Space) -> dict[str, str]:
    content = space.as_dict()
    return {
        f"{section}.{key}": ABSENT if value is None else str(value)
        for section in SECTIONS
        for key, value in content[section].items()
    }


def _made_with(manifest: Manifest) -> dict[str, str]:
    return {
        "begun": manifest.created_at,
        "commit": manifest.git_commit or "not from a checkout",
        "images": manifest.data.content_sha256[:16],
        **dict(sorted(manifest.versions.items())),
    }


def _clock(history: History, manifest: Manifest) -> Callable[[float], float]:
    """Seconds of the search's own time at a moment in seconds since 1970."""
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
    """At most about `MOST_CURVE_POINTS`, the last among them."""
    if len(points) <= MOST_CURVE_POINTS:
        return points
    step = math.ceil(len(points) / MOST_CURVE_POINTS)
    return [*points[:-1:step], points[-1]]
