"""Records and slopes as pictures: formatting only."""
