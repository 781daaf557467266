"""Runs to start from, each a file to read."""
