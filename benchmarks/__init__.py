"""Measurements of the project; not installed."""
