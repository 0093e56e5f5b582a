"""The tables of a report: leaderboard, winner's configuration, and versions and settings."""

from dataclasses import dataclass

from search.analysis.columns import LeaderboardColumn, short, short_name, shown_columns
from search.analysis.comparison import range_text
from search.analysis.ranking import Ranked
from search.pages.page import Cell, Column, Row
from search.pages.report_data import ReportData
from spaces.counted import counted

MOST_ROWS = 1000  # `search.leaderboard --format csv` has all rows


@dataclass(frozen=True, slots=True)
class WinnerRow:
    """A hyperparameter of the winner."""

    name: str
    searched: str
    baseline: str
    winner: str


def trial_columns(known: ReportData) -> list[Column]:
    """The leaderboard's columns: results, searched hyperparameters, and the reason of each end."""
    results, last = _leaderboard_columns(known)
    parameters = [Column(short_name(name), help=name) for name in known.space.searched]
    return [*map(_page_column, results), *parameters, *map(_page_column, last)]


def trial_rows(known: ReportData) -> list[Row]:
    """The leaderboard's rows, best first."""
    return [_row(known, row) for row in known.ranked[:MOST_ROWS]]


def _leaderboard_columns(known: ReportData) -> tuple[list[LeaderboardColumn], list[LeaderboardColumn]]:
    """Columns before and after the hyperparameters."""
    shown = shown_columns(has_replicates=any(row.replicates for row in known.ranked))
    return [column for column in shown if not column.after_parameters], [c for c in shown if c.after_parameters]


def _page_column(column: LeaderboardColumn) -> Column:
    first = "descending" if column.more_is_better else "ascending"
    return Column(column.heading, column.is_number, first, column.help)


def _cell(column: LeaderboardColumn, row: Ranked, is_live: bool) -> Cell:
    text = column.text_of(row, is_live, absent="–")
    return Cell(text, column.value_of(row) if column.is_number else text or None)


def _row(known: ReportData, row: Ranked) -> Row:
    results, last = _leaderboard_columns(known)
    values = row.config.as_dict()
    cells = [
        *(_cell(column, row, known.is_live) for column in results),
        *(Cell(short(values[name]), values[name]) for name in known.space.searched),
        *(_cell(column, row, known.is_live) for column in last),
    ]
    dimmed = {"stopped": "stopped", "failed": "failed", "diverged": "failed"}.get(row.status, "")
    return Row(cells, "winner" if row.trial == known.winner_number else dimmed)


def winner_rows(known: ReportData) -> list[WinnerRow]:
    """The winner's configuration, searched parameters first; empty without a winner."""
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
    """Names and values of versions, devices, data and seeds."""
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
