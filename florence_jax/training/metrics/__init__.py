"""Metrics of a training run: task scores, throughput, logging and profiles."""
