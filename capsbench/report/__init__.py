"""Records and slopes as figures and tables: formatting only."""
