"""The tables of a report: leaderboard, winner's configuration, and versions and settings."""

from search.analysis.columns import LeaderboardColumn, parameter_column, short, shown_columns
from search.analysis.comparison import range_text
from search.pages.report_data import ReportData
from spaces.counted import counted

MOST_ROWS = 1000  # `search.leaderboard --format csv` has all rows

Cell = tuple[str, float | str | None]  # text and sort key; None is sorted last


def leaderboard(known: ReportData) -> tuple[list[LeaderboardColumn], list[tuple[str, list[Cell]]]]:
    """The leaderboard, best first: its columns, and for each row its class in the style sheet and its cells."""
    shown = shown_columns(any(row.replicates for row in known.ranked), known.history.metric)
    n_results = sum(not column.after_parameters for column in shown)
    columns = [*shown[:n_results], *map(parameter_column, known.space.searched), *shown[n_results:]]
    kinds = {"stopped": "stopped", "failed": "failed", "diverged": "failed"}
    rows = []
    for row in known.ranked[:MOST_ROWS]:
        texts = [column.text_of(row, known.is_live, absent="–") for column in columns]
        keys = [
            column.value_of(row) if column.is_number else text or None
            for column, text in zip(columns, texts, strict=True)
        ]
        kind = "winner" if row.trial == known.winner_number else kinds.get(row.status, "")
        rows.append((kind, list(zip(texts, keys, strict=True))))
    return columns, rows


def winner_rows(known: ReportData) -> list[tuple[str, str, str, str]]:
    """Name, range, baseline's value and winner's value of each hyperparameter; empty without a winner."""
    if known.best is None:
        return []
    found, hand_picked = known.best.config.as_dict(), known.space.baseline.as_dict()
    searched = known.space.searched
    return [
        (name, range_text(searched[name]) if name in searched else "–", short(hand_picked[name]), short(found[name]))
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
