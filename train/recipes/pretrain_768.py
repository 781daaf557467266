"""The paper's second phase: 0.5 billion images at 768 x 768 pixels (0.1 billion for large).

    florence-jax train --config train/recipes/pretrain_768.py

It starts from what `pretrain.py` exported.
"""

from florence_jax.training.config import EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.settings import OptimizerConfig
from train.recipes.pretrain import BATCH, data

IMAGES = 500_000_000

config = TrainConfig(
    directory="runs/pretrain_768",
    steps=IMAGES // BATCH,
    batch_size=BATCH,
    model=ModelConfig(start="runs/pretrain_384/export", dtype="bfloat16"),
    data=data(768),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=5_000, weight_decay=0.05),
    evaluation=EvaluationConfig(every=10_000, batch_size=64),
)
