"""Statistics of samples, for whoever measures and whoever reports: numbers in, numbers out."""
