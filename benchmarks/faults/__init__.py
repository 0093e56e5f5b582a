"""Searches whose processes are killed."""
