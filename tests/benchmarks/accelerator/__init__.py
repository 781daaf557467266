"""One run on a GPU or TPU: correctness, speed, training and profiles, in one table."""
