"""`python -m train.export RUN`: write a run's checkpoint as a model's directory."""

import sys

from florence_jax.training.checkpointing.export import main

if __name__ == "__main__":
    sys.exit(main())
