"""Measurement of one cell by two fresh processes, one for time and one for memory."""
