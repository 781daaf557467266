"""Every recipe loads, and builds what it says."""

import dataclasses
import re
from pathlib import Path

import pytest

from florence_jax.cli.train import main
from florence_jax.training.config_loader import (
    SettingsError,
    load_config,
    load_recipe,
    read_run_config,
    to_tree,
)
from florence_jax.training.dry_run import dry_run

RECIPES = sorted(path for path in Path("train/recipes").glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_survives_being_written_down(path, tmp_path):
    config = load_recipe(path)
    assert config.directory == f"runs/{path.stem}" or path.stem.startswith("pretrain")
    # Warm-up, rules and adapters are checked when a run is built; the schedule needs no model.
    assert config.optimizer.warmup_steps < config.steps
    assert read_run_config(to_tree(config)) == config
    assert (path.read_text().find(f"--config {path}")) > 0, "a recipe says how it is run"


def test_the_recipes_are_those_that_the_readme_promises():
    names = {path.stem for path in RECIPES}
    expected = {"pretrain", "pretrain_768", "full", "frozen_tower", "lora", "docvqa", "detection"}
    expected |= {"quick", "shapes", "classify", "segment", "shapes_colours", "shapes_masks"}
    assert names == expected


def test_a_dry_run_of_the_synthetic_world_shows_sizes_and_a_batch(tmp_path, capsys):
    status = main(["--config", "train/recipes/shapes.py", "--dry-run", "--batch-size", "3"])
    printed = capsys.readouterr().out
    assert status == 0
    assert '"learning_rate": 0.001' in printed
    assert "trainable: 7,480,704 parameters" in printed
    assert "frozen: 19,200 parameters (projector 19,200)" in printed
    assert "images uint8[1, 3, 192, 192, 3]" in printed
    # Three questions are asked of each.
    assert printed.count("    labels <s>") == 9
    folder = Path(printed.strip().splitlines()[-1].removeprefix("drawn: "))
    assert len(list(folder.glob("*.png"))) == 8


def test_a_dry_run_counts_what_is_frozen(tmp_path):
    config = load_config("train/recipes/shapes.py", ["--batch-size", "1"])
    rules = ((r"vision_tower/.*", 0.0), (".*", 1.0))
    optimizer = dataclasses.replace(config.optimizer, rules=rules)
    lines = list(dry_run(dataclasses.replace(config, optimizer=optimizer), tmp_path))
    (frozen,) = (line for line in lines if line.startswith("frozen:"))
    assert "vision_tower 4,350,912" in frozen


def test_help_says_what_every_field_means(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    for text in ("--optimizer.learning-rate FLOAT", "(default: 1e-05)", "--lora.rank", "--steps"):
        assert text in printed
    assert "  annotations\n      Annotations that `florence-jax annotate` wrote.\n" in printed
    undescribed = re.findall(r"│ (--\S+)[^│]*│\n│ +\(default", printed)
    assert not undescribed


def test_a_recipe_of_another_network_is_no_florence_2_s():
    with pytest.raises(SettingsError, match=r"classify\.py holds a ClassifyConfig, expected a Tra"):
        load_config("train/recipes/classify.py")


@pytest.mark.parametrize("name", ["classify", "segment"])
def test_a_recipe_s_own_settings_are_flags(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--config", f"train/recipes/{name}.py", "--help"])
    printed = capsys.readouterr().out
    own = {"classify": "--mix.erasing-area", "segment": "--model.auxiliary-weight"}
    assert own[name] in printed
    assert "--lora.rank" not in printed
    assert not re.findall(r"│ (--\S+)[^│]*│\n│ +\(default", printed)


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("classify", ["--evaluation.metric", "mAP"], "'mAP' is none of top1, top5, loss"),
        ("classify", ["--data.augment.scale", "0.5", "2"], "a share of the image's area, at most"),
        ("classify", ["--mix.mixup", "-1"], r"mix\.mixup must be at least 0, got -1"),
        ("classify", ["--model.start", ""], r"either model\.start or model\.architecture"),
        ("segment", ["--data.num-classes", "300"], r"data\.num_classes must be within \[2, 255\]"),
        ("segment", ["--evaluation.overlap", "1"], r"evaluation\.overlap must be within \[0, 1\)"),
    ],
)
def test_what_is_wrong_with_an_image_network_s_run_is_said(recipe, flags, message, capsys):
    assert main(["--config", f"train/recipes/{recipe}.py", "--dry-run", *flags]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--optimizer.lr", "1"], 2, r"Unrecognized options: --optimizer\.lr"),
        (["--data.train", '[{"kind": "jsonl", "pth": "a"}]'], 2, r"unknown setting \[0\]\.pth"),
        (["--data.train", '[{"kind": "jsonl"}]'], 1, "a jsonl source needs a path"),
        (["--accumulation", "3"], 1, "batch_size 16 is no multiple of accumulation 3"),
        (["--model.start", "x"], 1, r"either model\.start or model\.architecture"),
        (
            ["--data.max-prompt", "500"],
            1,
            "data.max_prompt=500 tokens, with 65 of the image, are more than the model",
        ),
        (["--optimizer.rules", "decoder", "1.0"], 1, "match no rule"),
        (
            ["--data.train", '[{"kind": "jsonl", "path": "nowhere.jsonl"}]'],
            1,
            "there is no file or directory nowhere.jsonl",
        ),
        (["--lora.rank", "2", "--lora.targets", "none"], 1, "matches no parameter"),
        (["--lora.targets", "("], 1, r"lora\.targets '\(' is no regex"),
        (["--data.directory", "nowhere"], 1, "there is no directory nowhere, named as data.direc"),
        (["--data.image-size", "64"], 2, r"--data\.image-size"),
        (["--data.threads", "-1"], 1, r"data\.threads must be at least 0, got -1"),
        (["--evaluation.num-beams", "0"], 1, r"evaluation\.num_beams must be at least 1, got 0"),
        (["--steps", ""], 2, "--steps"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_runs(flags, status, message, capsys):
    # Options may stand between settings.
    arguments = ["--seed", "1", "--config", "train/recipes/shapes.py", "--dry-run", *flags]
    try:
        ended = main(arguments)
    except SystemExit as error:
        ended = error.code
    assert ended == status
    assert re.search(message, capsys.readouterr().err)
