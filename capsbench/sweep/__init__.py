"""The cells of a sweep, and the places where they run."""
