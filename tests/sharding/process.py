"""One process of a run of several.

    python -m tests.sharding.process DIRECTORY MESH STEPS PAUSE [COORDINATOR PROCESSES PROCESS]

trains a small model, with no more than a step every PAUSE seconds, and leaves the ids of the rows
that it was given in DIRECTORY/rows_PROCESS.jsonl, a line a step.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

from florence_jax.training.config import EvaluationConfig, ExportConfig, LoggingConfig, ModelConfig
from florence_jax.training.settings import OptimizerConfig
from tests.training.runs import a_config
from tests.training.small import CONFIG


def config_of(directory, mesh, steps):
    architecture = dataclasses.replace(
        CONFIG,
        vision=dataclasses.replace(CONFIG.vision, drop_path_rate=0.0),
        # What is drawn depends on a row's place in its batch, and that on the number of processes.
        text=dataclasses.replace(
            CONFIG.text,
            max_position_embeddings=320,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
        ),
    )
    config = a_config(directory, steps=steps)
    return dataclasses.replace(
        config,
        batch_size=4,
        mesh=mesh,
        model=ModelConfig(
            architecture=architecture, processor="train.shapes.tokenizer:save_processor"
        ),
        # Several processes pad every batch to the longest; one then has the same arrays.
        data=dataclasses.replace(config.data, min_prompt_bucket=16, min_labels_bucket=32, valid=()),
        optimizer=OptimizerConfig(
            learning_rate=1e-2,
            schedule="constant",
            eps=1e-3,
            ema_decay=0.5,
            # The gradients of all else take four times as long to compile.
            rules=(("decoder/.*", 1.0), (".*", 0.0)),
        ),
        evaluation=EvaluationConfig(every=0),
        logging=LoggingConfig(every=1, tensorboard=False),
        export=ExportConfig(at_end=False),
    )


def run(directory: str, mesh: str, steps: int, pause: float = 0.0) -> int:
    """Train in this process, and note the rows; returns the exit status."""
    import jax

    from florence_jax.training.loop import Trainer, train

    count = Trainer._count

    def noted(trainer, batch):
        with (Path(directory) / f"rows_{jax.process_index()}.jsonl").open("a") as file:
            file.write(json.dumps(batch.ids) + "\n")
        time.sleep(pause)
        count(trainer, batch)

    with mock.patch.object(Trainer, "_count", noted):
        return int(train(config_of(directory, mesh, steps)))


def main() -> None:
    directory, mesh, steps, pause, *peers = sys.argv[1:]
    if peers:
        from florence_jax.training.distributed import join

        join(peers[0], int(peers[1]), int(peers[2]))
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    status = 1
    try:
        status = run(directory, mesh, int(steps), float(pause))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
