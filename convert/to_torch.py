"""Convert a checkpoint in any format to a PyTorch directory that transformers or timm reads.

python -m convert.to_torch SRC DEST --naming native|original|timm
"""

import sys
from collections.abc import Sequence

from florence_jax.cli.convert import convert_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return convert_program("convert.to_torch", "torch", arguments)


if __name__ == "__main__":
    sys.exit(main())
