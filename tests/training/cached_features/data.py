"""A data set of small pictures, two of them used twice and one damaged; and runs that read it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from florence_jax.training.config import TrainConfig
from florence_jax.training.data.sources import JsonlConfig, SourceConfig
from tests.training.runs import a_config

DAMAGED = 3
PICTURES = 6


def write_pictures(folder: Path) -> SourceConfig:
    """Six pictures and eight rows; `DAMAGED` is the number of a row and of its picture."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    rows = []
    for number in range(PICTURES):
        pixels = draw.integers(0, 256, (30 + number, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    content = (folder / f"{DAMAGED}.png").read_bytes()
    (folder / f"{DAMAGED}.png").write_bytes(content[: len(content) // 2])
    for number in (*range(PICTURES), 0, 1):
        suffix = f"thing<loc_{number * 10}><loc_20><loc_300><loc_400>"
        rows.append({"image": f"{number}.png", "prefix": "<OD>", "suffix": suffix})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlConfig(path=str(folder / "rows.jsonl"))


def frozen_config(directory: Path, source: SourceConfig, features: Path | None = None, **changes):
    """A run on it whose vision tower is frozen; updates of two micro-batches."""
    config: TrainConfig = a_config(directory, steps=4, train=(source,))
    data = dataclasses.replace(
        config.data,
        quarantine_share=0.5,
        min_prompt_bucket=16,
        min_labels_bucket=32,
        cached_features=None if features is None else str(features),
    )
    return dataclasses.replace(
        config,
        batch_size=4,
        accumulation=2,
        model=dataclasses.replace(config.model, drop_path=0.0),
        data=data,
        optimizer=dataclasses.replace(
            config.optimizer, rules=((r"vision_tower/.*", 0.0), (r".*", 1.0))
        ),
        **changes,
    )
