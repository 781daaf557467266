"""`python -m train.main`: train or fine-tune a Florence-2, as `florence-jax train` does."""

import contextlib
import os
import sys

from florence_jax.cli.train import main
from florence_jax.training.data.storage import discard_copies

if __name__ == "__main__":
    status = main()
    discard_copies()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # An interrupted compilation still runs on its thread, and nobody should wait for it.
    os._exit(status)
