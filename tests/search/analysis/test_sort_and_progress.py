"""The keys of `--sort`, and a retraining's progress on one line."""

from io import StringIO

import pytest
from rich.console import Console

from search.analysis.columns import sort_keys
from search.leaderboard import _complete_sort
from search.retraining.session import parts_that_fit, progress_bar, progress_parts
from search.retraining.training_runs import Progress

HEADS = {
    "accuracy": "validation_accuracy",
    "loss": "validation_loss",
    "ssr_p": "shift_scale_rotate_p",
    "hole_p": "coarse_dropout_p",
    "replicates": "replicate_accuracy",
    "lr": "lr",
    "rank": "rank",
}


@pytest.mark.parametrize(("head", "full"), HEADS.items())
def test_the_heads_of_the_table_and_full_names_are_sort_keys(head: str, full: str) -> None:
    assert sort_keys()[head] == full
    assert sort_keys()[full] == full
    assert head in _complete_sort(head[:2].upper())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_retraining_s_progress_is_not_cut(width: int) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    progress = Progress(number=1, epoch=8, train_loss=0.1234, train_accuracy=0.9757, seconds=12.3)
    parts = progress_parts(progress, 9)
    with progress_bar(console) as bar:
        room = width - 10 - 10 - 4 - len("/epochs,0:00:00") - 5
        bar.add_task("retraining", total=27, completed=8, latest=parts_that_fit(parts, room))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "8/27 epochs," in text
    assert "seed 1" in text
    assert "…" not in text
