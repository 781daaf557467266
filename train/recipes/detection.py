"""Detection on one's own COCO file.

    florence-jax train --config train/recipes/detection.py --data.directory my_coco

my_coco/train and my_coco/valid hold one *.coco.json file each (Roboflow's export "COCO") and the
pictures.
"""

from florence_jax.training.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.settings import OptimizerConfig

config = TrainConfig(
    directory="runs/detection",
    steps=3_000,
    batch_size=16,
    accumulation=4,
    model=ModelConfig(start="microsoft/Florence-2-base-ft", dtype="bfloat16"),
    data=DataConfig(
        directory="my_coco", augment=AugmentConfig(flip=0.5, scale_jitter=0.3, colour=0.2)
    ),
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=100, weight_decay=0.01),
    # Four location tokens a box: the published rule against repeated 3-grams would cut answers off.
    evaluation=EvaluationConfig(every=250, max_new_tokens=512, metric="<OD> mAP@0.5"),
)
