"""Processes that a command starts, and the guardian that ends them with it."""
