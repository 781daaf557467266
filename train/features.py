"""`python -m train.features`: fill the directory of features that a run's settings name.

It takes the settings of `python -m train.main`. Pictures whose features are there are passed over,
so the same command goes on where it was stopped, and adds what was added to the data.
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from pathlib import Path

from florence_jax.runtime.program import run_program
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import load_settings

_EPILOG = """
example:
  python -m train.features --config train/recipes/frozen_tower.py data.directory=my_data \\
      data.cached_features=my_features
  python -m train.main     (with the same settings)

Exit status: 0 done, 1 failed, 143 interrupted; what was computed is kept in any case.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program("error", functools.partial(_run, arguments), failed=1)


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train.features",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="in place of the recipe's")
    parser.add_argument("--config", type=Path, metavar="RECIPE", help="a .py or .yaml file")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="pictures at a time"
    )
    options = parser.parse_intermixed_args(arguments)
    config = load_settings(TrainConfig, options.config, options.settings)
    return _fill(config, options.batch_size)


def _fill(config: TrainConfig, batch_size: int) -> int:
    # Here and not above: --help and a wrong setting need not wait for jax.
    import jax.numpy as jnp

    from florence_jax.runtime.compilation_cache import use_compilation_cache
    from florence_jax.runtime.signals import Interrupted, Interruption
    from florence_jax.sharding import padded_rows
    from florence_jax.training.build import make_preprocessor
    from florence_jax.training.cached_features.fill import fill
    from florence_jax.training.cached_features.vision_tower import (
        TOWER,
        check_constant,
        origin_of,
        tower_program,
    )
    from florence_jax.training.cached_features.writer import filling
    from florence_jax.training.preflight import prepare
    from florence_jax.training.pretrained import load_parameters

    if config.data.cached_features is None:
        raise ValueError("name the directory of the features: data.cached_features=DIR")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    use_compilation_cache()
    directory = Path(config.data.cached_features)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="florence-features-") as files, Interruption() as asked:
        # On the devices that are here, and not those that the run divides its parameters over.
        prepared = prepare(dataclasses.replace(config, mesh=""), Path(files) / "processor")
        config, start, training = prepared.config, prepared.pretrained, prepared.setup
        check_constant(training)
        sources = [(name, source) for name, source, _ in prepared.sources]
        tower = {
            path: jnp.asarray(leaf, config.model.frozen_dtype)
            for path, leaf in load_parameters(config, start, training.placement.layout).items()
            if path.startswith(TOWER)
        }
        origin = origin_of(training, tower)
        with filling(directory, origin) as writer:
            before = len(writer)
            try:
                problems = fill(
                    writer,
                    sources,
                    make_preprocessor(config.data, start, training=True),
                    tower_program(training, tower),
                    asked,
                    batch_size=padded_rows(training.placement.mesh, batch_size),
                    threads=config.data.threads,
                )
            except Interrupted:
                writer.flush()
                print(f"interrupted: {len(writer)} pictures are in {directory}", file=sys.stderr)
                return 143
    for row, reason in problems[:10]:
        print(f"unusable: {row}: {reason}", file=sys.stderr)
    print(
        f"{directory}: {len(writer)} pictures, {len(writer) - before} of them new, "
        f"{len(writer) * origin.bytes / 1e6:,.1f} MB; {len(problems)} rows without a usable "
        f"picture; {time.perf_counter() - began:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
