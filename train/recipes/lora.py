"""Low-rank adapters on a frozen base: the least memory, and a file of a few megabytes.

    florence-jax train --config train/recipes/lora.py --data.directory my_data

The run leaves the adapter in PEFT's format in RUN/adapter, and the merged checkpoint in RUN/export.
"""

from florence_jax.training.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.settings import LoraConfig, OptimizerConfig

config = TrainConfig(
    directory="runs/lora",
    steps=3_000,
    batch_size=16,
    accumulation=2,
    model=ModelConfig(
        start="microsoft/Florence-2-base-ft", dtype="bfloat16", frozen_dtype="bfloat16"
    ),
    data=DataConfig(directory="my_data"),
    lora=LoraConfig(rank=16, alpha=32.0, dropout=0.05),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=50),
    evaluation=EvaluationConfig(every=250),
)
