"""Measuring one cell: two fresh processes, one for time and one for memory."""
