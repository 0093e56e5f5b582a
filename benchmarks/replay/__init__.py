"""Searches replayed on stored learning curves."""
