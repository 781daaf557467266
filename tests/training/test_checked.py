"""Settings that no run should begin with are refused by name, all of them at once."""

import dataclasses
import math

import pytest

from florence_jax.training.config import DataConfig, TrainConfig
from florence_jax.training.config_loader import SettingsError, describe, load_settings
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.lora import LoraConfig
from florence_jax.training.losses import LossConfig
from florence_jax.training.optimizer import OptimizerConfig
from florence_jax.training.suggest import did_you_mean
from tests.training.runs import a_config, world
from train.shapes import SceneConfig
from train.shapes.source import ShapesConfig

RECIPE = "train/recipes/lora.py"
# Fields of one number; tuples of numbers are tested below.
NUMBERS = [name for name, _, kind, _ in describe(TrainConfig) if kind.startswith(("float", "int"))]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("name", [name for name in NUMBERS if "[" not in name])
def test_every_number_must_be_finite(name, value):
    with pytest.raises(SettingsError, match=name.rpartition(".")[2]):
        load_settings(TrainConfig, RECIPE, [f"{name}={value}"])


def test_numbers_of_sources_scenes_and_architectures_must_be_finite():
    for source in ("weight: .inf", "weight: .nan", "scene: {gradient: .inf}", "scenes: 0"):
        words = [
            f"data.train=[{{kind: 'train.shapes.source:ShapesConfig', {source}}}]",
            "data.directory=",
        ]
        with pytest.raises(SettingsError, match=source.partition(":")[0]):
            load_settings(TrainConfig, RECIPE, words)
    with pytest.raises(SettingsError, match=r"optimizer\.rules\[0\]\[1\] must be a finite number"):
        load_settings(TrainConfig, RECIPE, ["optimizer.rules=[[.*, .nan]]"])
    text = a_config("run").model.architecture.text
    with pytest.raises(ValueError, match="dropout is nan"):
        dataclasses.replace(text, dropout=math.nan)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(learning_rate=math.inf), "learning_rate must be a finite number"),
        (lambda: OptimizerConfig(weight_decay=math.nan), "weight_decay must be a finite number"),
        (lambda: OptimizerConfig(weight_decay=-1.0), "weight_decay must be at least 0"),
        # What is finite as a double need not be a float32, nor differ from 0 or 1 as one.
        (lambda: OptimizerConfig(learning_rate=1e39), "learning_rate must be a finite number"),
        (lambda: OptimizerConfig(eps=1e-50), "eps must be positive"),
        (lambda: OptimizerConfig(b2=1 - 1e-12), r"b2 must be within \[0, 1\)"),
        (lambda: OptimizerConfig(rules=((".*", -1.0),)), "the rate of '.*' must be at least 0"),
        (lambda: LossConfig(z_loss=math.nan), "z_loss must be a finite number"),
        (lambda: LoraConfig(rank=2, alpha=0.0), "alpha must be positive"),
        (lambda: AugmentConfig(flip=math.nan), "flip must be a finite number"),
        (lambda: ShapesConfig(weight=math.inf), "must be positive and finite"),
        (lambda: SceneConfig(gradient=math.nan), "gradient is nan"),
        (lambda: DataConfig(directory="x", quarantine_share=math.nan), "quarantine_share"),
    ],
)
def test_settings_made_in_code_are_checked_as_well(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("steps=0", "steps must be at least 1, got 0"),
        ("steps=4000000000", r"steps must be within \[1, 2147483647\]"),
        ("seed=-1", "seed must be at least 0"),
        ("seed=99999999999999999999", "seed must be within"),
        ("epochs=-2", "epochs must be positive, got -2"),
        ("optimizer.warmup_steps=3000", "warmup_steps is 3000 and the run has 3000 steps"),
        ("model.dropout=1", r"model\.dropout must be within \[0, 1\)"),
        ("accumulation=0", "accumulation must be at least 1"),
    ],
)
def test_numbers_without_sense_are_refused(word, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(TrainConfig, RECIPE, [word])


def test_every_problem_is_said_at_once():
    words = "steps=0 optimizer.b1=2 optimizer.name=adm data.threads=-1 data.augment.flip=3 x lr=1"
    with pytest.raises(SettingsError) as raised:
        load_settings(TrainConfig, RECIPE, words.split())
    for part in (
        "steps must be at least 1",
        "optimizer.b1 must be within [0, 1), got 2.0",
        "optimizer.name: Input should be 'adamw', 'lion' or 'adafactor', got 'adm'",
        "did you mean adamw?",
        "data.threads must be at least 0, got -1",
        "augment.flip must be within",
        "'x' is not key=value",
        "did you mean optimizer.learning_rate for lr?",
    ):
        assert part in str(raised.value)


def test_a_recipes_steps_give_way_to_epochs_and_not_to_both():
    config = load_settings(TrainConfig, RECIPE, ["epochs=2.5"])
    assert (config.steps, config.epochs) == (None, 2.5)
    assert load_settings(TrainConfig, RECIPE, ["steps=70"]).steps == 70
    with pytest.raises(SettingsError, match="either steps or epochs, and not both: got 70 and 2"):
        load_settings(TrainConfig, RECIPE, ["steps=70", "epochs=2"])
    with pytest.raises(SettingsError, match="steps or epochs must be set"):
        load_settings(TrainConfig, RECIPE, ["steps=null"])
    with pytest.raises(ValueError, match="steps or epochs must be set"):
        dataclasses.replace(a_config("run", train=(world(),)), steps=None)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learning_rate", "optimizer.learning_rate"),
        ("optimiser.clip_norm", "optimizer.clip_norm"),
        ("data.max_promt", "data.max_prompt"),
        ("max_steps", "steps"),
        ("output_dir", "directory"),
        ("data.train[].wieght", "data.train[].weight"),
    ],
)
def test_a_near_miss_names_what_was_meant(word, meant):
    names = [name for name, *_ in describe(TrainConfig)]
    assert did_you_mean(word, names) == f" (did you mean {meant}?)"


def test_what_is_like_nothing_suggests_nothing():
    assert did_you_mean("zzz", ["steps", "data.train"]) == ""
