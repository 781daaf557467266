"""A small Florence-2 from scratch on the synthetic world of `train.shapes`: all 15 tasks.

    python -m train.shapes.pretrain_vision runs/shapes_tower
    florence-jax train --config train/recipes/shapes.py --model.start runs/shapes_tower \\
        --model.architecture None --model.no-from-scratch

The first command takes about 25 minutes of two CPU cores, and spares many times that in the second,
which takes three hours. Needs no file and no download, and is small enough for a CPU: short and
long answers are batched apart, and the image encoder runs once for several questions. The exported
weights are a moving average. With a GPU:

    florence-jax train --config train/recipes/shapes.py --batch-size 128 --model.dtype bfloat16 \\
        --data.workers 14
"""

from florence_jax.config import BartConfig, DaViTConfig, Florence2Config
from florence_jax.training.config import (
    DataConfig,
    EvaluationConfig,
    ExportConfig,
    ModelConfig,
    TrainConfig,
)
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.settings import CheckpointConfig, OptimizerConfig
from train.shapes import SceneConfig
from train.shapes.source import ShapesConfig

SIDE = 192
SCENE = SceneConfig(side=SIDE)

architecture = Florence2Config(
    vision=DaViTConfig(
        embed_dims=(96, 192, 192, 192),
        depths=(2, 1, 2, 1),
        num_heads=(3, 6, 6, 6),
        num_groups=(3, 6, 6, 6),
        # A stem of 8 pixels and a map of 8 x 8: an eighth of the work of the published strides.
        patch_sizes=(15, 3, 1, 1),
        patch_strides=(8, 3, 1, 1),
        patch_paddings=(7, 1, 0, 0),
        window_size=8,
        drop_path_rate=0.0,
    ),
    text=BartConfig(
        d_model=192,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        max_position_embeddings=256,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    ),
)

# By the length of their answers: at most 16, 32, 64 and 128 tokens.
REGIONS = ("<REGION_TO_CATEGORY>", "<REGION_TO_DESCRIPTION>", "<REGION_TO_OCR>")
SHORT = (
    "<OCR>",
    "<OCR_WITH_REGION>",
    "<CAPTION>",
    "<OD>",
    "<REGION_PROPOSAL>",
    "<OPEN_VOCABULARY_DETECTION>",
)
MIDDLE = (
    "<CAPTION_TO_PHRASE_GROUNDING>",
    "<REFERRING_EXPRESSION_SEGMENTATION>",
    "<REGION_TO_SEGMENTATION>",
)
LONG = ("<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<DENSE_REGION_CAPTION>")

config = TrainConfig(
    directory="runs/shapes",
    steps=10_000,
    batch_size=16,
    # The processor's vocabulary replaces the architecture's.
    model=ModelConfig(
        architecture=architecture,
        processor="train.shapes.tokenizer:save_processor",
        from_scratch=True,
    ),
    data=DataConfig(
        train=tuple(
            ShapesConfig(scene=SCENE, tasks=tasks, questions=len(tasks), weight=weight)
            for tasks, weight in ((REGIONS, 0.2), (SHORT, 0.35), (MIDDLE, 0.28), (LONG, 0.17))
        ),
        valid=(ShapesConfig(scene=SCENE, split="valid", scenes=200),),
        mix="batches",
        image_size=(SIDE, SIDE),
        max_prompt=64,
        max_labels=128,
        min_labels_bucket=16,
        augment=AugmentConfig(colour=0.1),
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        schedule="linear",
        warmup_steps=100,
        weight_decay=0.01,
        b2=0.98,
        ema_decay=0.998,
    ),
    checkpoint=CheckpointConfig(every=500),
    evaluation=EvaluationConfig(
        every=1_000,
        examples=480,
        answers=480,
        batch_size=32,
        max_new_tokens=120,
        metric="<OD> mAP@0.5",
    ),
    export=ExportConfig(dtype="bfloat16"),
)
