"""A run on cached features is the run without them, minus the tower."""

import dataclasses
import json
import os
import shutil
import signal
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.checkpoint.param_tree import param_shapes
from florence_jax.config import Florence2Config
from florence_jax.model import Model, flops
from florence_jax.runtime.jsonl import read_lines
from florence_jax.training.cached_features.store import FeaturesError
from florence_jax.training.cached_features.vision_tower import origin_of
from florence_jax.training.config import DataConfig
from florence_jax.training.config_loader import to_tree
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.tabular import Jsonl
from florence_jax.training.dry_run import dry_run
from florence_jax.training.loop import Outcome, train
from florence_jax.training.lora import is_factor
from florence_jax.training.metrics.flops import update_flops
from florence_jax.training.optimizer import assign_param_groups
from florence_jax.training.prepare import build_training
from florence_jax.training.pretrained import load_parameters, prepare_pretrained
from florence_jax.training.settings import LoraConfig
from florence_jax.training.step import LossFn
from tests.training.cached_features.data import DAMAGED, PICTURES, frozen_config, write_pictures
from tests.training.runs import final_state, lines, steps
from tests.training.small import CONFIG, small_batch, small_params
from train.features import main

pytestmark = pytest.mark.usefixtures("compiled_on_disk")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="module")
def features(tmp_path_factory, source):
    """A filled directory."""
    directory = tmp_path_factory.mktemp("filled") / "features"
    assert command(frozen_config("unused", source, directory)) == 0
    return directory


@pytest.fixture(scope="module")
def cached(tmp_path_factory, source, features, compiled_on_disk):
    """A run of four steps on features."""
    directory = tmp_path_factory.mktemp("cached")
    assert train(frozen_config(directory, source, features)) is Outcome.DONE
    return directory


def command(config, *words):
    """`python -m train.features` with these settings."""
    return main([*arguments(config), *words])


def arguments(config):
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(to_tree(config), file)
    return ["--config", file.name]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_the_step_with_the_tower(dtype):
    # Dropout of the language model stays on: it must draw what it draws beside a tower.
    vision = dataclasses.replace(CONFIG.vision, drop_path_rate=0.0)
    model = Model(config=dataclasses.replace(CONFIG, vision=vision), dtype=dtype)
    objective = LossFn(model=model)
    params, key = small_params(), jax.random.key(1)
    batch = jax.tree.map(lambda leaf: leaf[0], small_batch())
    frozen = {path: leaf for path, leaf in params.items() if path.startswith("vision_tower/")}
    trainable = {path: leaf for path, leaf in params.items() if path not in frozen}

    @jax.jit
    def maps(images):
        module = objective.bind(params)
        return module.vision_tower(objective.pixels(images).astype(dtype))

    @jax.jit
    def loss_and_gradient(trainable, batch):
        return jax.value_and_grad(lambda t: objective({**frozen, **t}, batch, key).loss)(trainable)

    stored = np.asarray(maps(batch.images))
    assert stored.dtype == jnp.dtype(dtype)
    loss, gradient = loss_and_gradient(trainable, batch)
    same, close = loss_and_gradient(trainable, batch._replace(images=stored))
    largest = max(float(np.abs(leaf).max()) for leaf in gradient.values())
    # What XLA fuses with the tower may round in another order; in bfloat16 that is its last bit.
    tolerance = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(same, loss, rtol=tolerance)
    assert float(loss) > 1.0
    for path, leaf in gradient.items():
        np.testing.assert_allclose(close[path], leaf, rtol=0, atol=tolerance * largest)
    assert np.abs(gradient["projector/proj/kernel"]).max() > 1e-3 * largest, "it learns beside it"
    other, _ = loss_and_gradient(trainable, batch._replace(images=stored[::-1].copy()))
    assert abs(float(other) - float(loss)) > 1e-3, "features are looked at"


def test_a_run_on_features_is_the_run_on_pixels(cached, source, tmp_path):
    config = frozen_config(tmp_path, source)
    # Answers are generated from features alone, in the other run.
    evaluation = dataclasses.replace(config.evaluation, answers=0, images=0)
    assert train(dataclasses.replace(config, evaluation=evaluation)) is Outcome.DONE
    for kind in ("train", "evaluation"):
        pixels, features = lines(tmp_path, kind), lines(cached, kind)
        assert len(pixels) == len(features) >= 1
        for expected, actual in zip(pixels, features, strict=True):
            assert expected["step"] == actual["step"]
            for name in ("loss", "nll", "accuracy", "grad_norm", "tokens", "examples"):
                if name in expected:
                    np.testing.assert_allclose(actual[name], expected[name], rtol=2e-6)
    # Both have seen the damaged picture, and say the same of it.
    quarantined = [list(read_lines(run / "quarantine.jsonl")) for run in (tmp_path, cached)]
    assert quarantined[0] == quarantined[1]
    (row,) = quarantined[0]
    assert row["id"].endswith(f"rows.jsonl:{DAMAGED}")
    assert (cached / "export").is_dir()


def test_a_run_on_features_goes_on_to_the_bit(cached, source, features, tmp_path):
    half = shutil.copytree(cached, tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "step_00000004")
    assert steps(half) == [2]
    workers = frozen_config(half, source, features)
    workers = dataclasses.replace(workers, data=dataclasses.replace(workers.data, workers=1))
    assert train(workers) is Outcome.DONE
    assert [row["step"] for row in lines(half, "resumed")] == [2]
    assert final_state(half) == final_state(cached)


def test_filling_again_adds_what_is_missing_alone(source, features, tmp_path, capsys):
    copy = shutil.copytree(features, tmp_path / "copy")
    (file,) = copy.glob("*.safetensors")
    content = file.read_bytes()
    capsys.readouterr()
    assert command(frozen_config("unused", source, copy)) == 0
    printed = capsys.readouterr()
    assert f"{PICTURES - 1} pictures, 0 of them new" in printed.out
    assert "1 rows without a usable picture" in printed.out
    assert f"rows.jsonl:{DAMAGED}" in printed.err
    assert [path.read_bytes() for path in copy.glob("*.safetensors")] == [content]
    file.unlink()
    # Another number at a time: the same features.
    assert command(frozen_config("unused", source, copy), "--images-at-once", "3") == 0
    assert f"{PICTURES - 1} pictures, {PICTURES - 1} of them new" in capsys.readouterr().out
    assert records(copy).keys() == records(features).keys()
    for key, expected in records(features).items():
        np.testing.assert_allclose(records(copy)[key], expected, rtol=0, atol=1e-5)


def records(directory):
    from safetensors.numpy import load_file

    found = {}
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        found |= dict(zip(map(bytes, tensors["keys"]), tensors["features"], strict=True))
    return found


def test_a_termination_keeps_what_was_computed(source, features, tmp_path, capsys, monkeypatch):
    # Kills at any instant: test_kills.py.
    read = Jsonl.__getitem__

    def terminated(self, index):
        # The only thread reads five rows ahead: the first picture is computed, the last is not.
        if index == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        return read(self, index)

    config = frozen_config("unused", source, tmp_path / "features")
    with monkeypatch.context() as patch:
        patch.setattr(Jsonl, "__getitem__", terminated)
        assert command(config, "--images-at-once", "1") == 143
    assert "interrupted" in capsys.readouterr().err
    assert 0 < len(records(tmp_path / "features")) < PICTURES - 1
    assert command(config) == 0
    assert records(tmp_path / "features").keys() == records(features).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frozen_dtype": "bfloat16"}, "weights was '[0-9a-f]{64}' and is"),
        ({"dtype": "bfloat16"}, "dtype was 'float32' and is 'bfloat16'"),
        ({"drop_path": 0.1}, "drop-path rate is 0.1: set model.drop_path=0"),
    ],
)
def test_another_tower_is_refused(source, features, tmp_path, change, message):
    config = frozen_config(tmp_path, source, features)
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
    with pytest.raises(FeaturesError, match=message):
        train(changed)


def test_other_weights_and_other_sizes_are_refused(source, features, tmp_path):
    config = frozen_config(tmp_path / "seed", source, features, seed=1)
    with pytest.raises(FeaturesError, match="weights was"):
        train(config)
    config = frozen_config(tmp_path / "size", source, features)
    smaller = dataclasses.replace(config.data, image_size=(32, 64))
    with pytest.raises(FeaturesError, match=r"image.size was \[64, 64\] and is \[32, 64\]"):
        train(dataclasses.replace(config, data=smaller))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer.rules": ((".*", 1.0),)}, r"parameters train, the first vision_tower/.*rules"),
        (
            {"optimizer.rules": (("vision_tower/stages/0/embed/.*", 1.0), (".*", 0.0))},
            r"4 of its parameters train, the first vision_tower/stages/0/embed",
        ),
        (
            {"lora": LoraConfig(rank=2), "optimizer.rules": ((".*", 1.0),)},
            r"vision_tower/.*/[ab]: keep lora\.targets out of it",
        ),
    ],
)
def test_a_tower_that_learns_is_refused(source, tmp_path, change, message):
    config = frozen_config(tmp_path, source, tmp_path / "features")
    if "lora" in change:
        config = dataclasses.replace(config, lora=change["lora"])
    rules = dataclasses.replace(config.optimizer, rules=change["optimizer.rules"])
    config = dataclasses.replace(config, optimizer=rules)
    with pytest.raises(FeaturesError, match=message):
        list(dry_run(config, tmp_path))


def test_frozen_adapters_of_the_tower_make_no_other_features(source, tmp_path):
    config = frozen_config(tmp_path, source, tmp_path / "features", lora=LoraConfig(rank=2))
    start = prepare_pretrained(config, tmp_path / "processor")
    training = build_training(config, start)
    params = load_parameters(config, start)
    frozen = training.first_state(params).frozen
    assert any(path.startswith("vision_tower/") and is_factor(path) for path in frozen)
    assert origin_of(training, frozen) == origin_of(training, params)


@pytest.mark.parametrize("name", ["flip", "scale_jitter", "colour"])
def test_augmentation_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"data\.augment\.{name}=0\.5 would change them"):
        DataConfig(directory="a", cached_features="b", augment=AugmentConfig(**{name: 0.5}))


def test_what_is_cached_costs_no_flops():
    config = Florence2Config()
    param_groups = assign_param_groups(
        param_shapes(config), (("vision_tower/.*", 0.0), (".*", 1.0)), config
    )
    sizes = {"rows": 2, "image_size": (768, 768), "prompt": 16, "labels": 64}
    computed = update_flops(config, param_groups, **sizes)
    cached = update_flops(config, param_groups, cached_features=True, **sizes)
    # The tower's forward pass goes; the projector, counted once with it, is counted three times.
    projector = 2 * 577 * 1024 * 768
    tower = flops.vision(config, 768, 768).flops
    assert computed - cached == pytest.approx(2 * (tower - 3 * projector))
    assert computed / cached == pytest.approx(2.61, abs=0.01)


def test_a_dry_run_says_what_the_features_take_and_save(source, tmp_path):
    config = frozen_config(tmp_path / "run", source, tmp_path / "features")
    printed = "\n".join(dry_run(config, tmp_path))
    assert "cached features: float32[16, 16, 8] an image, 0.01 MB" in printed
    assert "for 8 rows" in printed
    assert "with the tower" in printed
    assert "images uint8[2, 2, 64, 64, 3]" in printed
