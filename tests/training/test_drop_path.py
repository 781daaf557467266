"""A run's stochastic depth is that of its tower, at timm's rates or at the original code's."""

import dataclasses

import pytest

from florence_jax.backbone.config import preset
from florence_jax.model.davit import DaViT
from florence_jax.processing import ImageConfig
from florence_jax.training.config import ModelConfig
from florence_jax.training.images.config import ImageModelConfig
from florence_jax.training.images.network import ImageNetwork, handle_of
from florence_jax.training.prepare import build_training
from florence_jax.training.pretrained import PretrainedFiles
from tests.training.images.small import classify_config
from tests.training.runs import a_config
from tests.training.small import CONFIG

TINY = preset("davit_tiny")
# Blocks of the four stages: 1, 1, 3, 1. timm 1.0.31 gives both halves of a block the same rate.
PER_BLOCK = (0.0, 0.06, 0.12, 0.18, 0.24, 0.3)
PER_HALF = tuple(0.3 * number / 11 for number in range(12))


@pytest.mark.parametrize(("per_block", "expected"), [(True, PER_BLOCK), (None, PER_HALF)])
def test_rates_of_an_image_run(per_block, expected, tmp_path):
    model = ImageModelConfig(
        architecture="davit_tiny", drop_path=0.3, drop_path_per_block=per_block
    )
    config = classify_config(tmp_path, tmp_path, model=model)
    handle = handle_of(config, ImageNetwork(config=TINY, classes=()), None)
    tower = DaViT(handle.config.vision, rngs=None)
    rates = [rate for stage in tower.stages for rate in stage.drop_path_rates]
    halves = [half for pair in rates for half in pair]
    assert halves == pytest.approx([rate for rate in expected for _ in range(12 // len(expected))])


def test_rates_of_a_florence(tmp_path):
    config = a_config(tmp_path)
    model = ModelConfig(
        architecture=CONFIG, processor="bytes", drop_path=0.2, drop_path_per_block=True
    )
    start = PretrainedFiles(config=CONFIG, files=None, tokenizer=None, image=ImageConfig())
    setup = build_training(dataclasses.replace(config, model=model), start)
    expected = dataclasses.replace(CONFIG.vision, drop_path_rate=0.2, drop_path_per_block=True)
    assert setup.objective.model.config.vision == expected
