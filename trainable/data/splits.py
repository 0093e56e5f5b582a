"""Stratified subsets of labelled images."""

import numpy as np
from numpy.typing import NDArray


def stratified_pick(
    labels: NDArray[np.int64], n_picked: int, generator: np.random.Generator, leave_each: int = 0
) -> NDArray[np.int64]:
    """Pick `n_picked` rows at random so that each class keeps its share, to within one image.

    Args:
        labels: (N,) class of each row.
        n_picked: number of rows to pick, 0 to N.
        generator: source of randomness for the rows of a class and for ties between classes.
        leave_each: number of rows of each class that must stay unpicked.

    Returns:
        (n_picked,) row numbers, ascending; fewer if `leave_each` requires it.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * (n_picked / len(labels))
    quotas = np.floor(shares).astype(np.int64)
    # Classes with the largest remainders get the rows that rounding down left over; ties are broken at random.
    by_remainder = np.lexsort((generator.random(len(classes)), quotas - shares))
    quotas[by_remainder[: n_picked - quotas.sum()]] += 1
    quotas = np.minimum(quotas, np.maximum(counts - leave_each, 0))
    picked = [
        generator.permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(picked)).astype(np.int64)
