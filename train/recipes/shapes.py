"""A small Florence-2 from scratch on the synthetic world of `train.shapes`: all 15 tasks.

    python -m train.main --config train/recipes/shapes.py

Needs no file and no download. With a GPU, its tensor cores are one setting away, and scenes are
drawn by as many processes as there are cores: model.dtype=bfloat16 data.workers=14
"""

from florence_jax.config import BartConfig, DaViTConfig, Florence2Config
from train.config import (
    DataConfig,
    EvaluationConfig,
    ExportConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
)
from train.data.augment import AugmentConfig
from train.optimizer import OptimizerConfig
from train.shapes import SceneConfig

SIDE = 192
SCENE = SceneConfig(side=SIDE)

architecture = Florence2Config(
    vision=DaViTConfig(
        embed_dims=(48, 96, 144, 192),
        depths=(1, 1, 3, 1),
        num_heads=(2, 4, 6, 8),
        num_groups=(2, 4, 6, 8),
        # The last stage keeps its resolution: letters are 15 pixels high.
        patch_strides=(4, 2, 2, 1),
        drop_path_rate=0.0,
    ),
    text=BartConfig(
        d_model=192,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        max_position_embeddings=512,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    ),
)

config = TrainConfig(
    directory="runs/shapes",
    steps=60_000,
    batch_size=128,
    # The processor's vocabulary replaces the architecture's.
    model=ModelConfig(architecture=architecture, processor="shapes"),
    data=DataConfig(
        train=(SourceConfig(kind="shapes", scene=SCENE),),
        valid=(SourceConfig(kind="shapes", scene=SCENE, split="valid", scenes=200),),
        image_size=(SIDE, SIDE),
        max_prompt=64,
        least_prompt=64,
        max_target=128,
        least_target=128,
        augment=AugmentConfig(colour=0.1),
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, warmup_steps=1_000, weight_decay=0.01, b2=0.98, ema_decay=0.999
    ),
    evaluation=EvaluationConfig(
        every=2_000, examples=960, answers=480, max_new_tokens=128, metric="<OD> mAP@0.5"
    ),
    export=ExportConfig(dtype="bfloat16"),
)
