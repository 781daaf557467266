"""From files on disk to batches that are a pure function of the seed and the step."""
