"""Programs that move weights between PyTorch and florence_jax, and show where the two agree.

Run from a checkout: `python -m convert.<program> --help`.
"""
