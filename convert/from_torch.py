"""Convert a published or fine-tuned PyTorch checkpoint to this library's format.

python -m convert.from_torch SRC DEST [--dtype bfloat16]
"""

import sys
from collections.abc import Sequence

from florence_jax.cli.convert import convert_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return convert_program("convert.from_torch", "jax", arguments)


if __name__ == "__main__":
    sys.exit(main())
