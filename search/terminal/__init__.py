"""Numbers on a terminal: tables, the live screen, the plan."""
