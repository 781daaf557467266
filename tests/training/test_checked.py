"""Settings that no run should begin with are refused by name, all of them at once."""

import dataclasses
import json
import math
import typing

import pytest

from florence_jax.training.config import DataConfig, TrainConfig
from florence_jax.training.config_loader import SettingsError, load_config
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.settings import LoraConfig, LossConfig, OptimizerConfig
from tests.training.runs import a_config, world
from train.shapes import SceneConfig
from train.shapes.source import ShapesConfig

RECIPE = "train/recipes/lora.py"


def numbers(kind, prefix="--"):
    """The flags of a config's fields that are one number; tuples of numbers are tested below."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from numbers(hint, f"{prefix}{name}.")
        elif {hint, *typing.get_args(hint)} & {int, float} and typing.get_origin(hint) is not tuple:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("flag", list(numbers(TrainConfig)))
def test_every_number_must_be_finite(flag, value, capsys):
    with pytest.raises((SettingsError, SystemExit)) as raised:
        load_config(RECIPE, [f"{flag}={value}"])
    said = capsys.readouterr().err if isinstance(raised.value, SystemExit) else str(raised.value)
    name = flag.rpartition(".")[2].removeprefix("--")
    assert name in said or name.replace("_", "-") in said


def test_numbers_of_sources_scenes_and_architectures_must_be_finite():
    for source in ({"weight": math.inf}, {"weight": math.nan}, {"scenes": 0}):
        text = json.dumps([{"kind": "train.shapes.source:ShapesConfig", **source}])
        with pytest.raises(SettingsError, match=next(iter(source))):
            load_config(RECIPE, ["--data.train", text, "--data.directory", ""])
    with pytest.raises(SettingsError, match=r"optimizer\.rules\[0\]\[1\] must be a finite number"):
        load_config(RECIPE, ["--optimizer.rules", ".*", "nan"])
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
    ("flag", "message"),
    [
        ("--steps=0", "steps must be at least 1, got 0"),
        ("--steps=4000000000", r"steps must be within \[1, 2147483647\]"),
        ("--seed=-1", "seed must be at least 0"),
        ("--seed=99999999999999999999", "seed must be within"),
        ("--epochs=-2", "epochs must be positive, got -2"),
        ("--optimizer.warmup-steps=3000", "warmup_steps is 3000 and the run has 3000 steps"),
        ("--model.dropout=1", r"model\.dropout must be within \[0, 1\)"),
        ("--accumulation=0", "accumulation must be at least 1"),
    ],
)
def test_numbers_without_sense_are_refused(flag, message):
    with pytest.raises(SettingsError, match=message):
        load_config(RECIPE, [flag])


def test_every_problem_is_said_at_once():
    flags = "--steps=0 --optimizer.b1=2 --data.threads=-1 --data.augment.flip=3"
    with pytest.raises(SettingsError) as raised:
        load_config(RECIPE, flags.split())
    for part in (
        "steps must be at least 1",
        "optimizer.b1 must be within [0, 1), got 2.0",
        "data.threads must be at least 0, got -1",
        "augment.flip must be within",
    ):
        assert part in str(raised.value)


def test_a_recipes_steps_give_way_to_epochs_and_not_to_both():
    config = load_config(RECIPE, ["--epochs=2.5"])
    assert (config.steps, config.epochs) == (None, 2.5)
    assert load_config(RECIPE, ["--steps", "70"]).steps == 70
    with pytest.raises(SettingsError, match="either steps or epochs, and not both: got 70 and 2"):
        load_config(RECIPE, ["--steps", "70", "--epochs", "2"])
    with pytest.raises(SettingsError, match="steps or epochs must be set"):
        load_config(RECIPE, ["--steps", "None"])
    with pytest.raises(ValueError, match="steps or epochs must be set"):
        dataclasses.replace(a_config("run", train=(world(),)), steps=None)
