"""The image encoder's own lesson: what it answers improves, and nothing else moves."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from florence_jax.checkpoint import load_checkpoint
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.training.config import DataConfig, ModelConfig, TrainConfig
from florence_jax.training.prepare import build_training
from florence_jax.training.pretrained import load_parameters, prepare_pretrained
from tests.training.small import CONFIG
from train.shapes import SceneConfig, pretrain_vision
from train.shapes.pretrain_vision import CLASSES, PointLoss, main, pretrained
from train.shapes.source import ShapesConfig

SCENE = SceneConfig(side=64, shapes=(1, 1), words=(0, 1), textured=0.0, clutter=(0, 0))
ARCHITECTURE = dataclasses.replace(
    CONFIG,
    vision=dataclasses.replace(CONFIG.vision, embed_dims=(32,)),
    text=dataclasses.replace(CONFIG.text, max_position_embeddings=384),
)


def recipe(directory="unused"):
    return TrainConfig(
        directory=directory,
        batch_size=8,
        steps=1,
        model=ModelConfig(
            architecture=ARCHITECTURE,
            processor="train.shapes.tokenizer:save_processor",
            from_scratch=True,
        ),
        data=DataConfig(
            train=(ShapesConfig(scene=SCENE, tasks=("<CAPTION>",)),),
            image_size=(64, 64),
            max_prompt=64,
            max_labels=64,
        ),
    )


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, compiled_on_disk):
    """Parameters before and after, and the figures of the first and of the last step."""
    config, files = recipe(), tmp_path_factory.mktemp("tower") / "processor"
    start = prepare_pretrained(config, files)
    before = load_parameters(config, start)
    loss = PointLoss(build_training(config, start).objective, before, points=1)
    first_layer = loss.first_layer(jax.random.key(0))
    (batch,) = itertools.islice(pretrain_vision._batches(config, 16), 1)
    _, first = jax.jit(loss.__call__)({**before, **first_layer}, batch)
    after, last = pretrained(config, files, steps=200, learning_rate=5e-3, points=1)
    return before, after, first, last


def test_the_encoder_learns_what_lies_at_each_point(learnt):
    _, _, first, last = learnt
    assert set(last) == {*CLASSES, "edges"}
    # One colour of eight, one kind of eight, and a box that is guessed at.
    assert first["colour"] < 0.3 < 0.5 < last["colour"]
    assert first["kind"] < 0.2 < last["kind"]
    assert last["edges"] < first["edges"]


def test_everything_outside_the_encoder_stays(learnt):
    before, after, _, _ = learnt
    assert before.keys() == after.keys()
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {path for path in before if path.startswith("vision_tower/")}


def test_a_run_starts_from_what_the_command_wrote(tmp_path, monkeypatch, capsys, compiled_on_disk):
    monkeypatch.setattr(pretrain_vision, "load_config", lambda *_: recipe())
    directory = tmp_path / "tower"
    assert main([str(directory), "--steps", "2"]) == 0
    assert "right at the last step: colour" in capsys.readouterr().out
    written = dict(flatten(load_checkpoint(directory).params))
    model = ModelConfig(start=str(directory), processor="train.shapes.tokenizer:save_processor")
    config = dataclasses.replace(recipe(directory=str(tmp_path / "run")), model=model)
    files = tmp_path / "processor"
    started = load_parameters(config, prepare_pretrained(config, files))
    for path, leaf in written.items():
        np.testing.assert_array_equal(leaf, started[path])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--data.image-size", "96", "96"], "drawn at the size that is trained at"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(words, says, tmp_path, capsys):
    assert main([str(tmp_path / "tower"), *words]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "tower").exists()
