"""The tables of a report: all trials, the winner's configuration, and what everything was made with."""

from collections.abc import Sequence
from dataclasses import dataclass

from search.analysis.comparison import range_text
from search.analysis.ranking import Ranked, replicate_text
from search.pages.page import Cell, Column, Row
from search.pages.report_data import ReportData
from search.terminal.tables import SHORT_NAMES, short
from spaces.counted import counted

# A longer table is for `search.leaderboard --format csv`.
MOST_ROWS = 1000


@dataclass(frozen=True, slots=True)
class WinnerRow:
    """A hyperparameter of the winner."""

    name: str
    searched: str
    baseline: str
    winner: str


def trial_columns(known: ReportData) -> list[Column]:
    """Of the leaderboard."""
    columns = [
        Column("rank"),
        Column("trial"),
        Column("status", number=False),
        Column("epochs", first="descending"),
        Column("accuracy", first="descending", help="of the validation images, after its last epoch"),
        Column("loss", help="on the validation images, after its last epoch"),
        Column("seconds", help="of training and validation"),
    ]
    if any(row.replicates for row in known.ranked):
        help_text = "mean accuracy over runs with fresh seeds, half of its 95 % interval in points, and how many"
        columns.append(Column("replicates", first="descending", help=help_text))
        columns.append(Column("tied", number=False, help="cannot be told from the first"))
    columns += [Column(SHORT_NAMES.get(name, name), help=name) for name in known.space.searched]
    return [*columns, Column("why it ended", number=False)]


def trial_rows(known: ReportData, columns: Sequence[Column]) -> list[Row]:
    """The leaderboard's rows, best first."""
    return [_row(known, row, columns) for row in known.ranked[:MOST_ROWS]]


def _row(known: ReportData, row: Ranked, columns: Sequence[Column]) -> Row:
    marks = [text for text, holds in (("baseline", row.baseline), ("audit", row.audit)) if holds]
    status = "unfinished" if row.status == "running" and not known.is_live else row.status
    accuracy, loss = row.validation_accuracy, row.validation_loss
    cells = [
        Cell(str(row.rank), row.rank),
        Cell(" ".join([str(row.trial), *(f"({mark})" for mark in marks)]), row.trial),
        Cell(status, status),
        Cell(str(row.epochs), row.epochs),
        Cell("–" if accuracy is None else f"{accuracy:.2%}", accuracy),
        Cell("–" if loss is None else f"{loss:.4f}", loss),
        Cell(f"{row.seconds:.1f}", round(row.seconds, 3)),
    ]
    if any(column.name == "replicates" for column in columns):
        replicates = row.replicates
        text = f"{replicate_text(replicates)} ({replicates.n_runs})" if replicates else "–"
        cells.append(Cell(text, replicates.mean if replicates else None))
        cells.append(Cell("=" if row.tied else "", "=" if row.tied else None))
    values = row.config.as_dict()
    cells += [Cell(short(values[name]), values[name]) for name in known.space.searched]
    cells.append(Cell(row.reason, row.reason or None))
    is_best = row.trial == known.winner_number
    dimmed = {"stopped": "stopped", "failed": "failed", "diverged": "failed"}.get(row.status, "")
    return Row(cells, "winner" if is_best else dimmed)


def winner_rows(known: ReportData) -> list[WinnerRow]:
    """The winner's configuration, searched parameters first; nothing while there is no winner."""
    if known.best is None:
        return []
    found, hand_picked = known.best.config.as_dict(), known.space.baseline.as_dict()
    searched = known.space.searched
    return [
        WinnerRow(
            name=name,
            searched=range_text(searched[name]) if name in searched else "–",
            baseline=short(hand_picked[name]),
            winner=short(found[name]),
        )
        for name in [*searched, *(name for name in found if name not in searched)]
    ]


def facts(known: ReportData) -> list[tuple[str, str]]:
    """Name and value of what the results depend on."""
    manifest = known.manifest
    device, data = manifest.device, manifest.data
    sessions = "; ".join(f"{one.started_at}: {one.end or 'not ended'}" for one in manifest.sessions[:100])
    return [
        ("commit", manifest.git_commit or "not from a checkout"),
        ("device", f"{device.device} ({device.name}), {counted(device.trials_at_once, 'trial')} at once"),
        ("precision", f"{device.precision} ({device.precision_reason})"),
        ("images", f"{data.n_train:,} for training, {data.n_validation:,} for validation"),
        ("images’ SHA-256", data.content_sha256),
        ("seeds", f"search {manifest.seeds.experiment}, split {manifest.seeds.split}"),
        ("rungs", ", ".join(map(str, known.space.rung_epochs))),
        ("sessions", sessions or "none"),
        *((package, version) for package, version in sorted(manifest.versions.items())),
    ]
