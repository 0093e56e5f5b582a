"""The leaderboard's columns, for its table, page, CSV and JSON; a new column is added to `LEADERBOARD` only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from search.policy.replicate_statistics import ReplicateSummary
from spaces.parameters import HYPERPARAMETER_NAMES, Number
from trainable.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from search.analysis.ranking import Ranked

_LAST_DROPPED = 8  # the largest drop order
# Columns that hold values of the searched metric, whichever that is.
OF_METRIC = ("replicate_mean", "forecast_mean")
# In headings of tables; CSV, JSON and Markdown keep the full names.
SHORT_NAMES = {"shift_scale_rotate_p": "ssr_p", "coarse_dropout_p": "hole_p"}


def short(value: Number) -> str:
    """A hyperparameter's value with three significant digits."""
    return f"{value:.3g}"


def short_name(parameter: str) -> str:
    """A hyperparameter's name in headings."""
    return SHORT_NAMES.get(parameter, parameter)


def compact(values: Mapping[str, Number]) -> str:
    """Hyperparameters on one line, three significant digits each."""
    return " ".join(f"{short_name(name)}={short(value)}" for name, value in values.items())


def replicate_text(replicates: ReplicateSummary) -> str:
    """`90.60% ± 0.40`: the mean, and half of its 95 % interval in points; or `60.40%, 1 of 3 diverged`."""
    metric = replicates.metric
    mean = metric.text(replicates.mean)
    if replicates.n_diverged:
        return f"{mean}, {replicates.n_diverged} of {replicates.n_runs} diverged"
    return mean if replicates.half_width is None else f"{mean} ± {metric.size_text(replicates.half_width)}"


def forecast_text(row: Ranked) -> str | None:
    """`61.20% ± 2.10`: what the curve model expects after the last epoch, and half of its 95 % credible interval."""
    if row.forecast is None:
        return None
    return f"{row.metric.text(row.forecast.mean)} ± {row.metric.size_text(row.forecast.half_width)}"


def _trial_text(row: Ranked) -> str:
    """Number of the trial, and why no rung stops it."""
    exempt = " (baseline)" if row.baseline else " (audit)" if row.audit else ""
    return f"{row.trial}{exempt}"


@dataclass(frozen=True, slots=True)
class LeaderboardColumn:
    """A column of the leaderboard.

    Attributes:
        name: key in CSV and JSON.
        heading: in tables and on pages; empty where only CSV and JSON have the column.
        text: cell of a table, None for an empty cell; without it, `value` as it prints.
        value: what CSV and JSON hold and pages sort by; without it, the attribute `name` of the row.
        is_number: whether cells are aligned as numbers.
        more_is_better: whether sorting starts with the largest value.
        is_sort_key: whether `search.leaderboard --sort` takes it.
        only_with_replicates: whether tables show it only where a row has replicates.
        only_as_metric: whether tables show it only where the search ranks by it.
        after_parameters: whether it stands behind the hyperparameters, and tables in a terminal leave it out first.
        is_long: whether only pages have room for it, not tables in a terminal.
        drop_order: a narrow terminal leaves out columns in this order, 1 first; 0 is never left out.
        help: meaning, for pages.
    """

    name: str
    heading: str = ""
    text: Callable[[Ranked], str | None] | None = None
    value: Callable[[Ranked], Any] | None = None
    is_number: bool = True
    more_is_better: bool = False
    is_sort_key: bool = True
    only_with_replicates: bool = False
    only_as_metric: bool = False
    after_parameters: bool = False
    is_long: bool = False
    drop_order: int = 0
    help: str = ""

    def value_of(self, row: Ranked) -> Any:
        """The value in CSV and JSON."""
        return self.value(row) if self.value else attrgetter(self.name)(row)

    def text_of(self, row: Ranked, is_live: bool = True, absent: str = "-") -> str:
        """The cell of a table; where no search `is_live`, running trials are shown as unfinished."""
        if self.name == "status" and row.status == "running" and not is_live:
            return "unfinished"
        text = self.text(row) if self.text else str(self.value_of(row))
        return absent if text is None else text


def _label_metric(name: str, heading: str) -> LeaderboardColumn:
    value: Callable[[Ranked], float | None] = attrgetter(name)
    return LeaderboardColumn(
        name,
        heading,
        text=lambda row: None if value(row) is None else f"{value(row):.2%}",
        more_is_better=True,
        only_as_metric=True,
        drop_order=6,
        help="of the validation images, after its last epoch",
    )


LEADERBOARD = (
    LeaderboardColumn("rank", "rank"),
    LeaderboardColumn("trial", "trial", text=_trial_text),
    LeaderboardColumn("status", "status", is_number=False, drop_order=5),
    LeaderboardColumn("epochs", "epochs", more_is_better=True, drop_order=3),
    replace(_label_metric("validation_accuracy", "accuracy"), only_as_metric=False),
    _label_metric("validation_balanced_accuracy", "balanced"),
    _label_metric("validation_macro_f1", "macro F1"),
    LeaderboardColumn(
        "forecast_mean",
        "forecast",
        text=forecast_text,
        more_is_better=True,
        drop_order=7,
        help="expected after the last epoch, from all curves, with half of its 95 % credible interval",
    ),
    LeaderboardColumn("forecast_half_width", is_sort_key=False),
    LeaderboardColumn(
        "validation_loss",
        "loss",
        text=lambda row: None if row.validation_loss is None else f"{row.validation_loss:.4f}",
        drop_order=2,
        help="on the validation images, after its last epoch",
    ),
    LeaderboardColumn(
        "seconds",
        "seconds",
        text=lambda row: f"{row.seconds:.1f}",
        value=lambda row: round(row.seconds, 3),
        drop_order=1,
        help="of training and validation",
    ),
    LeaderboardColumn(
        "replicate_mean",
        "replicates",
        text=lambda row: f"{replicate_text(row.replicates)} ({row.n_replicates})" if row.replicates else None,
        more_is_better=True,
        only_with_replicates=True,
        help="mean of runs with fresh seeds, half of its 95 % interval, number of runs",
    ),
    LeaderboardColumn("replicate_accuracy", more_is_better=True),
    LeaderboardColumn("replicate_half_width", is_sort_key=False),
    LeaderboardColumn("n_replicates"),
    LeaderboardColumn(
        "tied",
        "tied",
        text=lambda row: "=" if row.tied else "",
        is_number=False,
        is_sort_key=False,
        only_with_replicates=True,
        drop_order=4,
        help="cannot be distinguished from the first",
    ),
    LeaderboardColumn("baseline", is_sort_key=False),
    LeaderboardColumn("audit", is_sort_key=False),
    LeaderboardColumn(
        "proposed_by",
        "from",
        text=lambda row: row.proposed_by,
        is_number=False,
        after_parameters=True,
        help="who proposed it: baseline, try_first (of the space), steer (by the user), memory (of earlier searches), "
        "prior (random), sampler, or tpe (in turn with the sampler `curves`)",
    ),
    LeaderboardColumn(
        "reason", "why it ended", is_number=False, is_sort_key=False, after_parameters=True, is_long=True
    ),
)


def parameter_column(name: str) -> LeaderboardColumn:
    """The column of a hyperparameter in tables and pages."""
    value = attrgetter(f"config.{name}")
    return LeaderboardColumn(name, short_name(name), text=lambda row: short(value(row)), value=value, help=name)


def shown_columns(has_replicates: bool, metric: Metric = ACCURACY) -> list[LeaderboardColumn]:
    """Columns of tables and pages, in order; those with `after_parameters` are last.

    The column of the metric is left out last on a narrow terminal.
    """
    shown = [
        replace(
            column,
            drop_order=_LAST_DROPPED if column.name == metric.column else column.drop_order,
            more_is_better=column.more_is_better and not (column.name in OF_METRIC and metric.is_loss),
        )
        for column in LEADERBOARD
        if column.heading
        and (has_replicates or not column.only_with_replicates)
        and (column.name == metric.column or not column.only_as_metric)
    ]
    return sorted(shown, key=attrgetter("after_parameters"))


def sort_keys() -> dict[str, str]:
    """Names that `--sort` takes and the column or hyperparameter of each: full names, and headings of tables."""
    sortable = [column for column in LEADERBOARD if column.is_sort_key]
    full = {name: name for name in (*(column.name for column in sortable), *HYPERPARAMETER_NAMES)}
    headings = {column.heading: column.name for column in sortable if column.heading}
    return {**full, **headings, **{heading: name for name, heading in SHORT_NAMES.items()}}
