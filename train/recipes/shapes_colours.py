"""A small classifier from scratch: the colour of a shape of the synthetic world.

    python -m train.shapes --classes shapes_colours --count 2000 --set side=64 --set shapes=1,1
    python -m train.shapes --classes shapes_colours --count 500 --split valid --set side=64 \\
        --set shapes=1,1
    florence-jax train --config train/recipes/shapes_colours.py

`classify.py` is for images of your own.
"""

from florence_jax.backbone.config import BackboneConfig
from florence_jax.config import DaViTConfig
from florence_jax.processing.image.crop import CropConfig
from florence_jax.training.images.config import (
    ClassifyConfig,
    ClassifyScoring,
    ImageAugmentConfig,
    ImageDataConfig,
    ImageModelConfig,
    MixConfig,
)
from florence_jax.training.settings import CheckpointConfig, OptimizerConfig

# A DaViT of the paper's kind with three stages.
tower = DaViTConfig(
    embed_dims=(32, 64, 96),
    depths=(1, 1, 1),
    num_heads=(1, 2, 3),
    num_groups=(1, 2, 3),
    patch_sizes=(7, 2, 2),
    patch_strides=(4, 2, 2),
    patch_paddings=(3, 0, 0),
    patch_prenorm=(False, True, True),
    window_size=4,
    channel_attn_v2=False,
    pad_to_stride=True,
)
backbone = BackboneConfig(vision=tower, image=CropConfig(size=(64, 64), crop_pct=1.0))

config = ClassifyConfig(
    directory="runs/shapes_colours",
    steps=300,
    batch_size=32,
    model=ImageModelConfig(architecture=backbone, from_scratch=True),
    # A shape must stay in the picture.
    data=ImageDataConfig(
        directory="shapes_colours",
        augment=ImageAugmentConfig(scale=(0.8, 1.0), ratio=(0.9, 1.1), colour=0.05),
    ),
    mix=MixConfig(mixup=0.1, erasing=0.1, erasing_area=(0.01, 0.05)),
    optimizer=OptimizerConfig(
        learning_rate=3e-3, warmup_steps=30, weight_decay=0.05, b2=0.98, ema_decay=0.99
    ),
    evaluation=ClassifyScoring(every=150),
    checkpoint=CheckpointConfig(every=150),
)
