"""Data sets as their authors publish them, read from disk."""
