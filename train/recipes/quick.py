"""A first fine-tune, in minutes on two CPU cores: the small model that comes with the package.

    florence-jax train --config train/recipes/quick.py --data.directory my_data

my_data/train and my_data/valid hold one *.coco.json file each, or a .jsonl file of `image, prefix,
suffix`, and the images. It shows the whole way, and what the data are like to a model; for use, go
on with a published model and `detection.py` or `lora.py`, which want an accelerator.
"""

from florence_jax.training.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.settings import OptimizerConfig

config = TrainConfig(
    directory="runs/quick",
    steps=120,
    batch_size=16,
    model=ModelConfig(start="shapes"),
    # What a model names first is soon learnt where objects have an order, and one length of
    # batches compiles one program.
    data=DataConfig(directory="my_data", order="top_to_bottom", one_length=True),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=10,
        rules=((r"vision_tower/.*", 0.0), (r".*", 1.0)),
    ),
    evaluation=EvaluationConfig(before=True, every=60, examples=64, answers=64),
)
