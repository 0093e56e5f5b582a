"""Experiments side by side, as a table for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from search.analysis.comparison import ExperimentSummary, SummaryRow, remarks
from search.analysis.ranking import lead_sentence
from search.terminal.tables import printed_lines
from spaces.printable import printable


def comparison_text(compared: Sequence[ExperimentSummary], rows: Sequence[SummaryRow], width: int | None = None) -> str:
    """Experiments side by side, a column each, and a sentence about each.

    Rows that differ are marked with `≠`, and bold in a terminal, which has `width` characters; None gives plain text.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("", "", *(printable(one.name) for one in compared)):
        table.add_column(Text(heading), overflow="fold")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        texts = [Text(printable(text)) for text in ("≠" if row.differs else "", row.name, *row.values)]
        is_last = following is not None and following.section != row.section
        table.add_row(*texts, style="bold" if row.differs else "dim", end_section=is_last)
    sentences = [f"{printable(one.name)}: {lead_sentence(one.history, one.ranked)}" for one in compared]
    return "\n".join([*printed_lines(table, width), "", *sentences, *remarks(compared)])
