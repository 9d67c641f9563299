"""Which cells to measure, and where they run."""
