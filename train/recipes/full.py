"""Full fine-tuning of every parameter on one's own rows, at the published resolution.

    florence-jax train --config train/recipes/full.py --data.directory my_data

my_data/train and my_data/valid hold a .jsonl file of `image, prefix, suffix` and the pictures.
"""

from florence_jax.training.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.settings import OptimizerConfig

config = TrainConfig(
    directory="runs/full",
    steps=5_000,
    batch_size=16,
    accumulation=4,
    model=ModelConfig(start="microsoft/Florence-2-base-ft", dtype="bfloat16"),
    data=DataConfig(directory="my_data", augment=AugmentConfig(colour=0.2)),
    optimizer=OptimizerConfig(
        learning_rate=1e-5,
        warmup_steps=100,
        weight_decay=0.01,
        # The lower a layer, the more general what it knows, and the less it should forget.
        layer_decay=0.95,
    ),
    evaluation=EvaluationConfig(every=500),
)
