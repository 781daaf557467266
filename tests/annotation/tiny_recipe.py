"""The world of shapes at sizes for a test: the form of train/recipes/shapes.py, seconds to run."""

import dataclasses

from florence_jax.checkpoint import save_checkpoint
from florence_jax.model import random_params_with_spread_logits
from florence_jax.training.pretrained import prepare_pretrained
from tests.training.runs import ARCHITECTURE, a_config

_RUN = a_config("runs/tiny")

# Longer texts than the other tests' runs have; data.train and directory come from the command line.
config = dataclasses.replace(
    _RUN,
    batch_size=4,
    model=dataclasses.replace(
        _RUN.model,
        architecture=dataclasses.replace(
            ARCHITECTURE, text=dataclasses.replace(ARCHITECTURE.text, max_position_embeddings=640)
        ),
    ),
    # One shape of batch, and so one program.
    data=dataclasses.replace(
        _RUN.data,
        max_prompt=64,
        min_prompt_bucket=64,
        max_labels=256,
        min_labels_bucket=256,
        quarantine_share=1.0,
    ),
    evaluation=dataclasses.replace(_RUN.evaluation, every=0, answers=0),
)


def save_random(directory):
    """A checkpoint of the recipe's sizes with random weights."""
    start = prepare_pretrained(config, directory.with_name(f"{directory.name}-files"))
    save_checkpoint(
        directory,
        start.config,
        random_params_with_spread_logits(start.config, 0),
        files=start.files,
    )
