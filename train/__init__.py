"""Fine-tuning: `python -m train.main --help`."""
