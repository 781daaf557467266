"""Programs that convert weights, describe them, and show where PyTorch and this library agree.

Run from a checkout: `python -m convert.<program> --help`.
"""
