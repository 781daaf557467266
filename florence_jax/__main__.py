"""`python -m florence_jax` is the command `florence-jax`."""

import sys

from florence_jax.cli.main import main

sys.exit(main())
