"""An experiment on disk: events, history, journal, manifest and folder."""
