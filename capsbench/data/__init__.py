"""Real images, and their preparation as in the paper."""
