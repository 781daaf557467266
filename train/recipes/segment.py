"""Semantic segmentation: UperNet with its auxiliary head on a DaViT.

    florence-jax train --config train/recipes/segment.py --data.directory my_masks \\
        --data.num-classes 21

my_masks/train and my_masks/valid hold the folders images and masks: images/NAME.jpg has its classes
in masks/NAME.png, an image of 8 bits in which 255 does not count. The run leaves a directory for
`florence_jax.load_segmenter` in RUN/export, and drawn masks in RUN/samples.
"""

from florence_jax.training.images.config import (
    ImageAugmentConfig,
    MaskDataConfig,
    SegmentConfig,
    SegmenterModelConfig,
    SegmentScoring,
)
from florence_jax.training.settings import OptimizerConfig

config = SegmentConfig(
    directory="runs/segment",
    steps=20_000,
    batch_size=16,
    accumulation=2,
    model=SegmenterModelConfig(start="davit_tiny", dtype="bfloat16", drop_path=0.2),
    # ADE20K's, with data.reduce_zero_label for its masks.
    data=MaskDataConfig(
        directory="my_masks",
        num_classes=150,
        image_size=(512, 512),
        augment=ImageAugmentConfig(scale=(0.5, 2.0), colour=0.3),
    ),
    optimizer=OptimizerConfig(
        learning_rate=6e-5, schedule="linear", warmup_steps=1_500, weight_decay=0.01
    ),
    evaluation=SegmentScoring(every=2_000),
)
