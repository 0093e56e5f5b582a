"""Numbers as HTML: the report, and the frames of notebooks."""
