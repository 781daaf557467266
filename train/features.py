"""`python -m train.features`: compute and store the vision tower's output for every image.

It takes the flags of `florence-jax train`. Images whose features are stored already are skipped, so
the same command resumes where it was stopped, and adds what was added to the data.
"""

import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from florence_jax.runtime.program import run_program
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import RunSettings, parse_program_flags

_DESCRIPTION = """\
Compute and store the vision tower's output for every image.

  It takes the flags of `florence-jax train`. Images whose features are stored already are skipped,
  so the same command resumes where it was stopped, and adds what was added to the data.

example:
  python -m train.features --config train/recipes/frozen_tower.py --data.directory my_data \\
      --data.cached-features my_features
  florence-jax train     (with the same flags)

exit status:
  0 done, 1 failed, 2 a wrong flag, 143 interrupted; computed features are kept in any case
"""


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Options of the program beside the settings of the run.

    Attributes:
        run: The settings of the run; data.cached_features is the directory to fill.
        config: Recipe: a .py file that holds `config = TrainConfig(...)`, or the config.json of a
            run. Flags replace its values.
        images_at_once: Images that the tower encodes at a time.
    """

    run: RunSettings
    config: Path | None = None
    images_at_once: int = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    return run_program("error", functools.partial(_run, words), failed=1)


def _run(arguments: Sequence[str]) -> int:
    options = parse_program_flags(
        FeatureOptions,
        arguments,
        prog="python -m train.features",
        description=_DESCRIPTION,
    )
    if not isinstance(options.run, TrainConfig):
        raise ValueError(f"{options.config} trains no Florence-2, and alone these cache features")
    return _fill(options.run, options.images_at_once)


def _fill(config: TrainConfig, batch_size: int) -> int:
    # Here and not above: --help and a wrong setting need not wait for jax.
    import jax.numpy as jnp

    from florence_jax.runtime.compilation_cache import use_compilation_cache
    from florence_jax.runtime.signals import Interrupted, Interruption
    from florence_jax.sharding import padded_rows
    from florence_jax.training.cached_features.store import filling
    from florence_jax.training.cached_features.vision_tower import (
        TOWER,
        check_constant,
        fill,
        origin_of,
        tower_program,
    )
    from florence_jax.training.prepare import prepare
    from florence_jax.training.pretrained import load_parameters

    if config.data.cached_features is None:
        raise ValueError("name the directory of the features: --data.cached-features DIR")
    if batch_size < 1:
        raise ValueError(f"--images-at-once must be at least 1, got {batch_size}")
    use_compilation_cache()
    directory = Path(config.data.cached_features)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="florence-features-") as files, Interruption() as asked:
        # On the devices that are here, and not those that the run divides its parameters over.
        prepared = prepare(dataclasses.replace(config, mesh=""), Path(files) / "processor")
        config, start, training = prepared.config, prepared.pretrained, prepared.setup
        check_constant(training)
        sources = [(name, source) for name, source, _ in prepared.data.train]
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
                    prepared.preprocessor,
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
        f"{len(writer) * origin.nbytes / 1e6:,.1f} MB; {len(problems)} rows without a usable "
        f"picture; {time.perf_counter() - began:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
