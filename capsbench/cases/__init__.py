"""Networks that a user brings, with their inputs: found by name, built, carried to other processes, known by their source."""
