"""A small segmentation network from scratch: colours and words of the synthetic world.

    python -m train.shapes --masks shapes_masks --count 1500 --set side=64
    python -m train.shapes --masks shapes_masks --count 200 --split valid --set side=64
    florence-jax train --config train/recipes/shapes_masks.py

`segment.py` is for images of your own.
"""

from florence_jax.training.images.config import (
    ImageAugmentConfig,
    MaskDataConfig,
    SegmentConfig,
    SegmenterModelConfig,
    SegmentScoring,
)
from florence_jax.training.settings import CheckpointConfig, OptimizerConfig
from train.recipes.shapes_colours import backbone
from train.shapes.image_sets import mask_classes

config = SegmentConfig(
    directory="runs/shapes_masks",
    steps=300,
    batch_size=16,
    model=SegmenterModelConfig(
        architecture=backbone,
        from_scratch=True,
        hidden_dim=32,
        pool_sizes=(1, 2, 3),
        auxiliary_dim=16,
    ),
    data=MaskDataConfig(
        directory="shapes_masks",
        classes=mask_classes(),
        image_size=(64, 64),
        augment=ImageAugmentConfig(scale=(0.8, 1.25), colour=0.05),
    ),
    optimizer=OptimizerConfig(
        learning_rate=3e-3, warmup_steps=15, weight_decay=0.01, b2=0.98, ema_decay=0.98
    ),
    evaluation=SegmentScoring(every=150, batch_size=16),
    checkpoint=CheckpointConfig(every=150),
)
