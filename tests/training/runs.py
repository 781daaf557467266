"""A run small enough for tests: tiny sizes, real loop, one shape of batch."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from florence_jax.runtime.jsonl import read_lines
from florence_jax.training.checkpointing.manager import Checkpoints, named_leaves
from florence_jax.training.config import (
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    TrainConfig,
)
from florence_jax.training.config_loader import from_tree
from florence_jax.training.prepare import build_training
from florence_jax.training.pretrained import read_pretrained
from florence_jax.training.settings import CheckpointConfig, OptimizerConfig
from florence_jax.training.state import drop_frozen
from tests.training.small import CONFIG
from train.shapes import SceneConfig
from train.shapes.source import ShapesConfig

# Dropout stays on: what a resumed step draws must be what it would have drawn.
ARCHITECTURE = dataclasses.replace(
    CONFIG, text=dataclasses.replace(CONFIG.text, max_position_embeddings=320)
)
SCENE = SceneConfig(side=64)
TASKS = ("<OD>", "<CAPTION>")


def world(split="train"):
    return ShapesConfig(scenes=50, split=split, scene=SCENE, tasks=TASKS)


def a_config(directory, *, steps=5, train=None, **changes) -> TrainConfig:
    return (
        TrainConfig(
            directory=str(directory),
            steps=steps,
            batch_size=2,
            model=ModelConfig(
                architecture=ARCHITECTURE, processor="train.shapes.tokenizer:save_processor"
            ),
            data=DataConfig(
                train=train or (world(),),
                valid=(world("valid"),),
                image_size=(64, 64),
                max_prompt=16,
                max_labels=32,
                threads=1,
            ),
            optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", ema_decay=0.5),
            evaluation=EvaluationConfig(every=4, examples=2, answers=2, images=1, max_new_tokens=8),
            checkpoint=CheckpointConfig(every=2),
            logging=LoggingConfig(every=1),
        )
        if not changes
        else dataclasses.replace(a_config(directory, steps=steps, train=train), **changes)
    )


def stored_config(directory) -> TrainConfig:
    return from_tree(TrainConfig, json.loads((Path(directory) / "config.json").read_text()))


def final_state(directory):
    """Every leaf of the newest checkpoint as bytes, by name."""
    config = stored_config(directory)
    training = build_training(config, read_pretrained(Path(directory) / "processor"))
    with Checkpoints(Path(directory) / "checkpoints", config.checkpoint, writes=False) as kept:
        state, _ = kept.restore(drop_frozen(training.abstract_state()))
    return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(state).items()}


def lines(directory, kind):
    return [row for row in read_lines(Path(directory) / "metrics.jsonl") if row["kind"] == kind]


def steps(directory):
    found = (Path(directory) / "checkpoints").glob("step_*")
    return sorted(int(path.name.removeprefix("step_")) for path in found)
