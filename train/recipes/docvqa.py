"""Questions about documents: DocVQA's files as they are published.

    florence-jax train --config train/recipes/docvqa.py

Expected are docvqa/train_v1.0.json, docvqa/val_v1.0.json and the pages in docvqa/documents.
"""

from florence_jax.training.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.data.sources import DocVqaConfig
from florence_jax.training.settings import OptimizerConfig

config = TrainConfig(
    directory="runs/docvqa",
    steps=10_000,
    batch_size=16,
    accumulation=4,
    model=ModelConfig(start="microsoft/Florence-2-base-ft", dtype="bfloat16"),
    # Pages are read, not recognised: no augmentation, and more pixels where memory allows.
    data=DataConfig(
        train=(DocVqaConfig(path="docvqa/train_v1.0.json"),),
        valid=(DocVqaConfig(path="docvqa/val_v1.0.json"),),
        image_size=(768, 768),
        max_labels=128,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-5, schedule="linear", warmup_steps=200),
    evaluation=EvaluationConfig(
        every=1_000, answers=200, max_new_tokens=64, metric="<DocVQA> ANLS", num_beams=3
    ),
)
