"""From a history to numbers and findings, without layout. Pure functions."""
