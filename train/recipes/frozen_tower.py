"""Fine-tuning with the vision tower frozen: less memory, and features that stay what they were.

florence-jax train --config train/recipes/frozen_tower.py --data.directory my_data

They need computing but once. With --data.cached-features my_features at the end of both commands:

python -m train.features --config train/recipes/frozen_tower.py --data.directory my_data
florence-jax train --config train/recipes/frozen_tower.py --data.directory my_data
"""

from florence_jax.training.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.settings import OptimizerConfig

config = TrainConfig(
    directory="runs/frozen_tower",
    steps=5_000,
    batch_size=16,
    accumulation=2,
    model=ModelConfig(
        start="microsoft/Florence-2-base-ft",
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        drop_path=0.0,
    ),
    data=DataConfig(directory="my_data"),
    optimizer=OptimizerConfig(
        learning_rate=2e-5,
        warmup_steps=100,
        weight_decay=0.01,
        rules=((r"vision_tower/.*", 0.0), (r".*", 1.0)),
    ),
    evaluation=EvaluationConfig(every=500),
)
