"""Runs assignments on Ray. The only folder of `search` that imports ray."""
