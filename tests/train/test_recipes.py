"""Every recipe loads, and builds what it says."""

import dataclasses
from pathlib import Path

import pytest

from florence_jax.cli.train import main
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import load_settings, to_tree
from florence_jax.training.dry_run import dry_run

RECIPES = sorted(path for path in Path("train/recipes").glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_survives_being_written_down(path, tmp_path):
    config = load_settings(TrainConfig, path, [])
    assert config.directory == f"runs/{path.stem}" or path.stem.startswith("pretrain")
    # Warm-up, rules and adapters are checked when a run is built; the schedule needs no model.
    assert config.optimizer.warmup_steps < config.steps
    from florence_jax.training.config_loader import from_tree

    assert from_tree(TrainConfig, to_tree(config)) == config
    assert (path.read_text().find(f"--config {path}")) > 0, "a recipe says how it is run"


def test_the_recipes_are_those_that_the_readme_promises():
    names = {path.stem for path in RECIPES}
    expected = {"pretrain", "pretrain_768", "full", "frozen_tower", "lora", "docvqa", "detection"}
    assert names == expected | {"shapes"}


def test_a_dry_run_of_the_synthetic_world_shows_sizes_and_a_batch(tmp_path, capsys):
    status = main(["--config", "train/recipes/shapes.py", "--dry-run", "batch_size=3"])
    printed = capsys.readouterr().out
    assert status == 0
    assert "learning_rate: 0.001" in printed
    assert "trainable: 7,480,704 parameters" in printed
    assert "frozen: 19,200 parameters (projector 19,200)" in printed
    assert "images uint8[1, 3, 192, 192, 3]" in printed
    # Three questions are asked of each.
    assert printed.count("    labels <s>") == 9
    folder = Path(printed.strip().splitlines()[-1].removeprefix("pictures: "))
    assert len(list(folder.glob("*.png"))) == 8


def test_a_dry_run_counts_what_is_frozen(tmp_path):
    config = load_settings(TrainConfig, "train/recipes/shapes.py", ["batch_size=1"])
    rules = ((r"vision_tower/.*", 0.0), (".*", 1.0))
    optimizer = dataclasses.replace(config.optimizer, rules=rules)
    lines = list(dry_run(dataclasses.replace(config, optimizer=optimizer), tmp_path))
    (frozen,) = (line for line in lines if line.startswith("frozen:"))
    assert "vision_tower 4,350,912" in frozen


def test_help_prints_every_field(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    for name in ("optimizer.learning_rate = 1e-05", "data.train[].kind", "lora.rank", "steps "):
        assert f"  {name}" in printed
    from florence_jax.training.config_loader import describe

    assert not [name for name, _, _, meaning in describe(TrainConfig) if not meaning]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=1"], r"unknown settings: optimizer\.lr"),
        (["data.train=[{kind: jsonl, pth: a}]"], r"unknown settings: data\.train\[0\]\.pth"),
        (["data.train=[{kind: jsonl}]"], "a jsonl source needs a path"),
        (["accumulation=3"], "batch_size 16 is no multiple of accumulation 3"),
        (["model.start=x"], r"either model\.start or model\.architecture"),
        (
            ["data.max_prompt=500"],
            "data.max_prompt=500 tokens, with 65 of the picture, are more than the model",
        ),
        (["optimizer.rules=[[decoder, 1.0]]"], "match no rule"),
        (
            ["data.train=[{kind: jsonl, path: nowhere.jsonl}]"],
            "there is no file or directory nowhere.jsonl",
        ),
        (["lora.rank=2", "lora.targets=none"], "matches no parameter"),
        (["lora.targets=("], r"lora\.targets '\(' is no regex"),
        (["data.directory=nowhere"], "there is no directory nowhere, named as data.directory"),
        (["data.image_size=64"], r"data\.image_size: .*, got 64; \(height, width\) in pixels"),
        (["data.threads=-1"], r"data\.threads must be at least 0, got -1"),
        (["evaluation.num_beams=0"], r"evaluation\.num_beams must be at least 1, got 0"),
        (["steps="], "steps: .*integer.*, got ''; updates, all told"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_runs(words, message, capsys):
    import re

    # Options may stand between settings.
    assert main(["seed=1", "--config", "train/recipes/shapes.py", "--dry-run", *words]) == 1
    assert re.search(message, capsys.readouterr().err)
