"""Data sets, and batches of them that are a pure function of the seed and the step."""
