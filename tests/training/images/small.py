"""Image networks small enough for tests, and data of a few scenes that they learn in seconds."""

import dataclasses

from florence_jax.backbone.config import BackboneConfig
from florence_jax.config import DaViTConfig
from florence_jax.processing.image.crop import CropConfig
from florence_jax.segmentation.masks import write_mask
from florence_jax.training.config import LoggingConfig
from florence_jax.training.images.config import (
    ClassifyConfig,
    ClassifyScoring,
    ImageAugmentConfig,
    ImageDataConfig,
    ImageModelConfig,
    MaskDataConfig,
    MixConfig,
    SegmentConfig,
    SegmenterModelConfig,
    SegmentScoring,
)
from florence_jax.training.settings import CheckpointConfig, OptimizerConfig
from train.shapes import SceneConfig, ShapesWorld
from train.shapes.image_sets import mask_of
from train.shapes.render import draw

SIDE = 64
# One stage, whose gradient compiles in half the time of two.
TINY = BackboneConfig(
    vision=DaViTConfig(
        embed_dims=(16,),
        depths=(1,),
        num_heads=(1,),
        num_groups=(1,),
        patch_sizes=(7,),
        patch_strides=(4,),
        patch_paddings=(3,),
        patch_prenorm=(False,),
        window_size=4,
        channel_attn_v2=False,
    ),
    image=CropConfig(size=(SIDE, SIDE), crop_pct=1.0),
)
# UperNet needs two.
TWO_STAGES = BackboneConfig(
    vision=DaViTConfig(
        embed_dims=(16, 32),
        depths=(1, 1),
        num_heads=(1, 2),
        num_groups=(1, 2),
        patch_sizes=(7, 2),
        patch_strides=(4, 2),
        patch_paddings=(3, 0),
        patch_prenorm=(False, True),
        window_size=4,
        channel_attn_v2=False,
        pad_to_stride=True,
    ),
    image=TINY.image,
)
_SCENE = SceneConfig(side=SIDE, shapes=(1, 1), words=(0, 0))
# What a shape's colour is called in the data set of classes: few, and far apart.
_NAMES = {"red": "warm", "orange": "warm", "yellow": "warm", "blue": "cold", "green": "cold"}


def write_classes(directory, counts):
    """Folders of scenes with one large shape, by whether its colour is warm or cold."""
    for split, count in counts.items():
        world = ShapesWorld(config=_SCENE, split=split)
        index = found = 0
        while found < count:
            scene = world.scene(index)
            (shape,) = scene.shapes
            name = _NAMES.get(shape.colour)
            if name is not None and shape.size == "large":
                folder = directory / split / name
                folder.mkdir(parents=True, exist_ok=True)
                draw(scene).save(folder / f"{index:03}.png")
                found += 1
            index += 1
    return directory


def write_masks(directory, counts):
    """Scenes with one large shape, and masks: 0 for the background, 1 for the shape."""
    for split, count in counts.items():
        world = ShapesWorld(config=_SCENE, split=split)
        for part in ("images", "masks"):
            (directory / split / part).mkdir(parents=True, exist_ok=True)
        index = found = 0
        while found < count:
            scene = world.scene(index)
            index += 1
            if scene.shapes[0].size == "large":
                draw(scene).save(directory / split / "images" / f"{found:03}.png")
                mask = (mask_of(scene) > 0).astype(int)
                write_mask(directory / split / "masks" / f"{found:03}.png", mask)
                found += 1
    return directory


def _common(directory, steps):
    return {
        "directory": str(directory),
        "steps": steps,
        "batch_size": 16,
        "optimizer": OptimizerConfig(
            learning_rate=4e-3, warmup_steps=2, weight_decay=0.01, layer_decay=0.9, ema_decay=0.9
        ),
        "checkpoint": CheckpointConfig(every=steps // 2),
        "logging": LoggingConfig(every=steps // 2, tensorboard=False),
    }


def classify_config(directory, data, *, steps=60, **changes):
    """A run of everything at once: mixup, erasing, smoothing, layer decay, moving average."""
    config = ClassifyConfig(
        model=ImageModelConfig(architecture=TINY, from_scratch=True),
        data=ImageDataConfig(
            directory=str(data),
            augment=ImageAugmentConfig(scale=(0.7, 1.0), colour=0.05),
            threads=1,
        ),
        mix=MixConfig(mixup=0.2, erasing=0.2, erasing_area=(0.02, 0.1)),
        evaluation=ClassifyScoring(every=steps // 2, images=2),
        **_common(directory, steps),
    )
    return dataclasses.replace(config, **changes)


def segment_config(directory, data, *, steps=36, **changes):
    """A run with an auxiliary head, batch norms, two micro-batches and sliding windows."""
    config = SegmentConfig(
        model=SegmenterModelConfig(
            architecture=TWO_STAGES,
            from_scratch=True,
            hidden_dim=16,
            pool_sizes=(1, 2),
            auxiliary_dim=8,
        ),
        data=MaskDataConfig(
            directory=str(data),
            classes=("background", "shape"),
            image_size=(32, 32),
            augment=ImageAugmentConfig(scale=(0.8, 1.3)),
            threads=1,
        ),
        evaluation=SegmentScoring(every=steps // 2, images=1, batch_size=4),
        accumulation=2,
        **_common(directory, steps)
        | {
            "batch_size": 8,
            # A test goes on from the one before the last.
            "checkpoint": CheckpointConfig(every=max(steps - 4, 1)),
        },
    )
    return dataclasses.replace(config, **changes)
