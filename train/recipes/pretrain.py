"""Pre-training as in the paper (https://arxiv.org/abs/2311.06242, section 6.1).

    florence-jax train --config train/recipes/pretrain.py
    florence-jax train --config train/recipes/pretrain_768.py

AdamW, cosine from 1e-4 (large: 1e-5) after 5,000 steps, 3 billion images at 384 x 384 pixels in
batches of 2,048 (large: 3,072); `pretrain_768.py` goes on at 768. The mixture is of image, region
and text annotations of one's own, a Parquet folder each. The paper starts from a UniCL encoder
and BART; where a checkpoint of both is at hand, set `model.start`.
"""

from florence_jax.training.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.sources import ParquetConfig
from florence_jax.training.settings import OptimizerConfig

BATCH = 2_048
IMAGES = 3_000_000_000

# (annotations, share of the batches)
MIXTURE = (
    ("captions", 0.3),
    ("regions_and_text", 0.4),
    ("phrases_and_regions", 0.3),
)


def data(side: int) -> DataConfig:
    return DataConfig(
        train=tuple(
            ParquetConfig(path=f"pretrain/{name}/train", weight=weight) for name, weight in MIXTURE
        ),
        valid=tuple(ParquetConfig(path=f"pretrain/{name}/valid") for name, _ in MIXTURE),
        image_size=(side, side),
        augment=AugmentConfig(flip=0.5, scale_jitter=0.2),
        workers=16,
    )


config = TrainConfig(
    directory="runs/pretrain_384",
    steps=IMAGES // BATCH,
    batch_size=BATCH,
    model=ModelConfig(architecture="base", processor="microsoft/Florence-2-base", dtype="bfloat16"),
    data=data(384),
    optimizer=OptimizerConfig(
        learning_rate=1e-4, warmup_steps=5_000, weight_decay=0.05, b2=0.999, ema_decay=0.0
    ),
    evaluation=EvaluationConfig(every=10_000, batch_size=64),
)
