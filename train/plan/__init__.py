"""What a run would need on machines that one does not have: `python -m train.plan --help`."""
