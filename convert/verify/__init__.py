"""Parity reports: every stage of a model compared with PyTorch's (`python -m convert.verify`)."""
