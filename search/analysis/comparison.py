"""Experiments side by side: what differs in their spaces, settings and results."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.analysis.best_so_far import CurvePoint, best_so_far
from search.analysis.columns import replicate_text, short
from search.analysis.ranking import Ranked, best_completed, lead_sentence, over_baseline, points_text, rank, winner
from search.analysis.stopping_findings import saved_epochs
from search.experiment.final_results import read_final_results
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Manifest, seconds_used
from search.policy.replicate_statistics import ReplicateSummary
from spaces.counted import counted, duration_text
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
        test_accuracy: in words.
        curve: best accuracy so far, from the first completed trial to the end.
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
    keys = dict.fromkeys(key for column in columns for key in column)
    return [
        SummaryRow(section, name, [column.get((section, name), ABSENT) for column in columns])
        # Names that the first experiment does not have are last in their section.
        for section, name in sorted(keys, key=lambda key: _SECTIONS.index(key[0]))
    ]


def remarks(compared: Sequence[ExperimentSummary]) -> list[str]:
    """Sentences that say why accuracies of these experiments may not be comparable."""
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


def as_dict(compared: Sequence[ExperimentSummary], rows: Sequence[SummaryRow]) -> dict[str, Any]:
    """JSON-ready: `experiments`, `rows`, `curves` by experiment, `remarks`."""
    return {
        "experiments": [one.name for one in compared],
        "rows": [{**asdict(row), "differs": row.differs} for row in rows],
        "curves": {one.name: [asdict(point) for point in one.curve] for one in compared},
        "remarks": remarks(compared),
    }


def lead_of(one: ExperimentSummary) -> str:
    """The winner of an experiment and its lead, in a sentence."""
    return lead_sentence(one.history, one.ranked, one.manifest.data.chance)


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
        accuracy = _replicates_text(best.replicates) if best.replicates else one_seed
    n_stopped = sum(trial.status == "stopped" for trial in history.counting)
    return {
        "winner": f"trial {best.trial}" if best else "none: at chance" if best_completed(one.ranked) else ABSENT,
        "validation accuracy": accuracy,
        "lead over its baseline": _lead_text(one),
        "test accuracy": one.test_accuracy,
        "trials": f"{history.n_ended} ended, {n_stopped} stopped",
        "epochs": f"{history.n_epochs:,}",
        "epochs of replicates": f"{sum(run.n_epochs for run in history.replicates.values()):,}",
        "epochs saved by stopping": f"{saved_epochs(history, one.space).saved:,}",
        "time": duration_text(seconds_used(one.manifest.sessions, history)),
        "device": f"{one.manifest.device.name}, {one.manifest.device.precision}",
    }


def _replicates_text(replicates: ReplicateSummary) -> str:
    return f"{replicate_text(replicates)} ({counted(replicates.n_runs, 'replicate')})"


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
