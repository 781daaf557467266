"""Data sets that people hand in, read for the trainer and the evaluator alike; no jax."""
