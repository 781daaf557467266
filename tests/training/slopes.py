"""A run's gradient beside the slope of its loss, parameter by parameter, by finite differences."""

from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from florence_jax.checkpoint.param_tree import flatten
from florence_jax.model import random_params_with_spread_logits
from florence_jax.runtime.signals import Interruption
from florence_jax.sharding import pad_rows
from florence_jax.training.aot_compile import AotCompiled
from florence_jax.training.config import TrainConfig
from florence_jax.training.losses import IGNORE
from florence_jax.training.prepare import prepare
from florence_jax.training.state import Batch
from florence_jax.training.step import build_evaluation

# Changes of the loss, in nats a token, large enough for float32 and small enough for a straight
# line; and as a share of the parameter, whichever is less.
CHANGE, SHARE = 1e-2, 3e-2


def slopes(config: TrainConfig, files: Path) -> dict[str, tuple[float, float]]:
    """Of each parameter that trains: its gradient's norm, and the measured slope along it.

    The gradient is what the run's own compiled step gives its optimizer of the first batch, with
    spread weights; the slope is that of the run's own evaluation. Both programs are those of the
    run, so that a run before this has left them in the compilation cache.
    """
    run = prepare(config, files)
    training, placement = run.setup, run.setup.placement
    whole = NamedSharding(placement.mesh, PartitionSpec())
    batch = run.loader.batch(0)
    params = {
        path: np.asarray(leaf)
        for path, leaf in flatten(random_params_with_spread_logits(run.pretrained.config, seed=0))
    }

    def placed(part):
        return placement.to_padded({path: jax.numpy.array(leaf) for path, leaf in part.items()})

    update = AotCompiled(
        training.padded_step,
        Interruption(),
        donate_first=True,
        mesh=placement.mesh,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, training.padded_state()), whole),
    )
    state = placement.to_padded(training.first_state(placed(params)))
    moved, metrics = update(state, placement.batch(batch))
    # Adam's first moment after one step: the clipped gradient, scaled.
    clipped = min(1.0, config.optimizer.clip_norm / float(metrics.grad_norm))
    moments = optax.tree.get(moved.opt_state, "mu")
    gradient = {
        path: np.asarray(leaf) / ((1.0 - config.optimizer.b1) * clipped)
        for path, leaf in moments.items()
    }

    evaluate = AotCompiled(
        build_evaluation(training.objective),
        Interruption(),
        mesh=placement.mesh,
        out_shardings=whole,
    )
    fills = Batch(images=0, input_ids=run.pretrained.tokenizer.pad_id, labels=IGNORE)
    rows = placement.common_batch(
        Batch(
            *(
                pad_rows(leaf, config.evaluation_rows, axis=1, fill=fill)
                for leaf, fill in zip(batch[:3], fills[:3], strict=True)
            )
        )
    )
    here = placed(params)

    def loss(path, change):
        sums = evaluate({**here, **placed({path: params[path] + change})}, rows)
        return float(sums.loss) / float(sums.tokens)

    found = {}
    for path, leaf in gradient.items():
        norm = float(np.linalg.norm(leaf))
        if not norm:
            found[path] = 0.0, 0.0
            continue
        far = min(CHANGE / norm, SHARE * max(float(np.linalg.norm(params[path])), 0.1))
        step = (far / norm * leaf).astype(np.float32)
        found[path] = norm, (loss(path, step) - loss(path, -step)) / (2.0 * far)
    return found
