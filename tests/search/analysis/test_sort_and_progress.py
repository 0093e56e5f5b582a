"""The keys of `--sort`."""

import pytest

from search.analysis.columns import sort_keys
from search.leaderboard import _complete_sort

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
