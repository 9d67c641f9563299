"""Real images, and how the paper prepares them."""
