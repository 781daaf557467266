"""A data set that a small model learns in half a minute: a coloured square in one of four corners.

`<CAPTION>` names the colour, `<OD>` the colour and the corner, so that half of what is learnt is
where something is. Guessing is right for one in six, and for one in twenty-four.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from florence_jax.config import BartConfig, DaViTConfig, Florence2Config
from florence_jax.training.config import (
    DataConfig,
    EvaluationConfig,
    ExportConfig,
    LoggingConfig,
    ModelConfig,
    TrainConfig,
)
from florence_jax.training.settings import CheckpointConfig, OptimizerConfig

SIDE = 32
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 70, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 50, 180),
    "white": (240, 240, 240),
}
VALID = 64

# Two stages and both kinds of attention, an encoder and a decoder layer.
ARCHITECTURE = Florence2Config(
    vision=DaViTConfig(
        embed_dims=(16, 32),
        depths=(1, 1),
        num_heads=(2, 4),
        num_groups=(2, 4),
        patch_sizes=(7, 3),
        patch_strides=(4, 2),
        patch_paddings=(3, 1),
        patch_prenorm=(False, True),
        window_size=4,
        drop_path_rate=0.0,
    ),
    text=BartConfig(
        # The processor's vocabulary replaces this one.
        vocab_size=64,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=64,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    ),
    image_token_id=63,
)


def write_squares(directory: Path, seed: int) -> Path:
    """`directory` in the train/valid convention."""
    draw = np.random.default_rng(seed)
    for split, count in (("train", 512), ("valid", VALID)):
        folder = directory / split
        folder.mkdir(parents=True)
        rows = []
        for number in range(count):
            picture, colour, box = a_square(draw)
            name = f"{number:04d}.png"
            picture.save(folder / name)
            corners = "".join(f"<loc_{corner * 1000 // SIDE}>" for corner in box)
            rows += [
                {"image": name, "prefix": "<CAPTION>", "suffix": f"A {colour} square."},
                {"image": name, "prefix": "<OD>", "suffix": f"{colour} square{corners}"},
            ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def a_square(draw: np.random.Generator) -> tuple[Image.Image, str, tuple[int, int, int, int]]:
    """(picture, colour, box in pixels)."""
    pixels = draw.integers(90, 120, (SIDE, SIDE, 3))
    colour = draw.choice(list(COLOURS))
    x, y = (int(corner) for corner in draw.integers(0, 2, 2) * SIDE // 2 + 1)
    side = SIDE // 2 - 2
    pixels[y : y + side, x : x + side] = COLOURS[colour] + draw.integers(-10, 11, (side, side, 3))
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return picture, str(colour), (x, y, x + side, y + side)


def squares_config(directory: Path, data: Path, *, steps: int = 300, seed: int = 0) -> TrainConfig:
    """A run on `write_squares`' data that ends with an evaluation and an export."""
    return TrainConfig(
        directory=str(directory),
        steps=steps,
        batch_size=16,
        seed=seed,
        model=ModelConfig(
            architecture=ARCHITECTURE,
            processor="train.shapes.tokenizer:save_processor",
            from_scratch=True,
        ),
        data=DataConfig(
            directory=str(data),
            image_size=(SIDE, SIDE),
            max_prompt=16,
            min_prompt_bucket=16,
            max_labels=16,
            min_labels_bucket=16,
            threads=1,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=100,
            b2=0.98,
            # The tower moves slowly under a decoder that is only beginning to look at it.
            rules=((r"vision_tower/.*", 0.2), (".*", 1.0)),
        ),
        evaluation=EvaluationConfig(
            every=steps, examples=0, answers=2 * VALID, images=0, max_new_tokens=12, batch_size=32
        ),
        checkpoint=CheckpointConfig(every=steps),
        logging=LoggingConfig(every=50, tensorboard=False),
        export=ExportConfig(at_end=True),
    )
