"""The figures of a device that is not here, and what fits it."""
