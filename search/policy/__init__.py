"""Decisions: what to train next, which trial stops, which trials get replicates. Pure Python, no Ray."""
