"""Predictions for a device that is not here: the figures of a step, and the largest network or batch that fits."""
