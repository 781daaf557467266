"""Fine-tuning a classifier on folders of classes, with timm's regularisation.

    florence-jax train --config train/recipes/classify.py --data.directory my_classes

my_classes/train and my_classes/valid hold a folder for each class, with its images. The run leaves
the moving average of the weights in RUN/export, for `florence_jax.load_backbone` and timm.
"""

from florence_jax.training.images.config import (
    ClassifyConfig,
    ClassifyScoring,
    ImageDataConfig,
    ImageModelConfig,
    MixConfig,
)
from florence_jax.training.settings import OptimizerConfig

config = ClassifyConfig(
    directory="runs/classify",
    steps=5_000,
    batch_size=64,
    model=ImageModelConfig(start="davit_tiny", dtype="bfloat16", drop_path=0.1),
    data=ImageDataConfig(directory="my_classes"),
    label_smoothing=0.1,
    mix=MixConfig(mixup=0.8, erasing=0.25),
    optimizer=OptimizerConfig(
        learning_rate=5e-4,
        warmup_steps=250,
        weight_decay=0.05,
        # The lower a layer, the more general what it knows, and the less it should forget.
        layer_decay=0.75,
        ema_decay=0.999,
    ),
    evaluation=ClassifyScoring(every=500),
)
