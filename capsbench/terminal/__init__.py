"""Records and slopes as tables for a terminal: formatting only."""
