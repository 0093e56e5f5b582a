"""Experiments side by side: what differs in their spaces, settings and results."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.analysis.columns import short
from search.analysis.ranking import Ranked, leader, over_baseline, points_text, rank, winner
from search.analysis.stopping_findings import saved_epochs
from search.experiment.final_results import read_final_results
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Manifest, seconds_used
from spaces.counted import duration_text
from spaces.errors import InputError
from spaces.parameters import HYPERPARAMETER_NAMES, Fixed, Parameter
from spaces.schema import SECTIONS, Space

ABSENT = "–"
_SECTIONS = ("outcome", "winner", "searched", "settings", "made with")


@dataclass(frozen=True)
class ExperimentSummary:
    """What is compared of an experiment.

    Attributes:
        name: name of its folder; numbered where two folders have the same name.
        tested: results on the test images in words, by name.
    """

    name: str
    space: Space
    manifest: Manifest
    history: History
    ranked: list[Ranked]
    tested: dict[str, str]

    @property
    def best(self) -> Ranked | None:
        return winner(self.ranked)


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A property of all experiments; `values` has a text for each, in their order."""

    section: str
    name: str
    values: list[str]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def read_compared(experiments: Sequence[Experiment]) -> list[ExperimentSummary]:
    """Read experiments. Two folders of the same name get their positions as numbers, such as `s0 (1)`.

    Raises:
        InputError: an experiment cannot be read.
    """
    names = [experiment.name for experiment in experiments]
    distinct = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]
    return [_read(name, experiment) for name, experiment in zip(distinct, experiments, strict=True)]


def compared_rows(compared: Sequence[ExperimentSummary]) -> list[SummaryRow]:
    """Rows of the comparison: outcomes, winners, searched ranges, settings, and versions."""
    columns = [_described(one) for one in compared]
    rows = []
    for section in _SECTIONS:
        # Names that the first experiment does not have are last in their section.
        names = dict.fromkeys(name for column in columns for name in column[section])
        rows += [SummaryRow(section, name, [column[section].get(name, ABSENT) for column in columns]) for name in names]
    return rows


def remarks(compared: Sequence[ExperimentSummary]) -> list[str]:
    """Sentences that say why accuracies of these experiments may not be comparable."""
    found = []
    if len({one.manifest.data.content_sha256 for one in compared}) > 1:
        found.append("They are not of the same images, so that their results do not compare.")
    if len(metrics := {one.history.metric.title: None for one in compared}) > 1:
        found.append(f"They rank by different metrics: {', '.join(metrics)}.")
    cuts = {
        (one.space.dataset.split_seed, one.space.dataset.validation_fraction, one.space.dataset.train_limit)
        for one in compared
    }
    if len(cuts) > 1:
        found.append("They hold out different images for validation: differences of their results hold luck as well.")
    if any(one.best is not None and one.best.replicates is None for one in compared):
        found.append("A forecast rests on single runs, on the images that chose the trial; replicates say more.")
    return found


def as_dict(compared: Sequence[ExperimentSummary], rows: Sequence[SummaryRow]) -> dict[str, Any]:
    """JSON-ready: `experiments`, `rows`, `curves` by experiment, `remarks`."""
    return {
        "experiments": [one.name for one in compared],
        "rows": [{**asdict(row), "differs": row.differs} for row in rows],
        "curves": {one.name: best_so_far(one.history) for one in compared},
        "remarks": remarks(compared),
    }


def best_so_far(history: History) -> list[dict[str, float]]:
    """After each completed trial: the epochs that all trials have trained until then, and the best value by name."""
    metric, best, points = history.metric, -math.inf, list[dict[str, float]]()
    for n_epochs, result in history.completions():
        best = max(best, metric.score(result))
        points.append({"epochs": n_epochs, metric.name: metric.value(best)})
    return points


def range_text(parameter: Parameter) -> str:
    """`loguniform 0.001 to 0.5`, `choice 32, 64`, or the value where it is fixed."""
    if isinstance(parameter, Fixed):
        return short(parameter.value)
    ((kind, values),) = parameter.as_yaml().items()
    joiner = ", " if kind == "choice" else " to "
    return f"{kind} {joiner.join(short(value) for value in values)}"


def _read(name: str, experiment: Experiment) -> ExperimentSummary:
    history, manifest = experiment.history(), experiment.manifest
    metric, tested = history.metric, {"accuracy": "not opened"}
    try:
        if final := read_final_results(experiment):
            tested = {"accuracy": f"{final.test_accuracy_mean:.2%} (trial {final.trial})"}
            if searched := final.test_metrics.get(metric.name):
                tested[metric.title] = f"{metric.text(metric.value(searched.mean))} (trial {final.trial})"
    except InputError:
        tested = {"accuracy": "cannot be read"}
    ranked = rank(history)
    return ExperimentSummary(name, experiment.space, manifest, history, ranked, tested)


def _described(one: ExperimentSummary) -> dict[str, dict[str, str]]:
    """Texts by section and name."""
    parameters, manifest, content = one.space.parameters, one.manifest, one.space.as_dict()
    return {
        "outcome": _outcome(one),
        "winner": {name: short(value) for name, value in one.best.config.as_dict().items()} if one.best else {},
        "searched": {name: range_text(parameters[name]) for name in HYPERPARAMETER_NAMES if name in parameters},
        "settings": {
            f"{section}.{key}": ABSENT if value is None else str(value)
            for section in SECTIONS
            for key, value in content[section].items()
        },
        "made with": {
            "begun": manifest.created_at,
            "commit": manifest.git_commit or "not from a checkout",
            "images": manifest.data.content_sha256[:16],
            **dict(sorted(manifest.versions.items())),
        },
    }


def _outcome(one: ExperimentSummary) -> dict[str, str]:
    best, history, device = one.best, one.history, one.manifest.device
    n_stopped = sum(trial.status == "stopped" for trial in history.counting)
    return {
        "winner": f"trial {best.trial}" if best else "none: at chance" if leader(one.ranked) else ABSENT,
        f"validation {history.metric.title}": best.result_text if best else ABSENT,
        "lead over its baseline": _lead_text(one),
        **{f"test {name}": text for name, text in one.tested.items()},
        "trials": f"{history.n_ended} ended, {n_stopped} stopped",
        "epochs": f"{history.n_epochs:,}",
        "epochs of replicates": f"{sum(run.n_epochs for run in history.replicates.values()):,}",
        "epochs saved by stopping": f"{saved_epochs(history, one.space):,}",
        "time": duration_text(seconds_used(one.manifest.sessions, history)),
        "device": f"{device.name}, {device.precision}",
    }


def _lead_text(one: ExperimentSummary) -> str:
    over = over_baseline(one.history, one.ranked)
    if over is None or over.lead is None:
        return ABSENT
    return points_text(over.lead) + (f" ({over.doubt})" if over.doubt else "")
