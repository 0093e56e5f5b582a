"""Starts a new search or resumes one: the part of `search.run` that is not the command line."""
