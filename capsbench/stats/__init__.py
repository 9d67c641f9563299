"""Statistics of samples, for measuring and reporting alike: numbers in, numbers out."""
