"""What the project's speed is measured with, and against; nothing here is installed."""
