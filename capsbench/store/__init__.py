"""The folder of a report and its files, read once and written durably."""
