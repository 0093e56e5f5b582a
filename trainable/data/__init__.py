"""Images: sources, cache, splits, batches, and the held-out test set."""
