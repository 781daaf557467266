"""A classifier's run learns, resumes to the same bits, and exports what loads."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import florence_jax as fj
from florence_jax.classification.accuracy import top_k_accuracy
from florence_jax.classification.image_folders import read_folders
from florence_jax.processing.image.crop import preprocess_crop
from florence_jax.runtime.jsonl import read_lines
from florence_jax.training.checkpointing.export import main as export_main
from florence_jax.training.checkpointing.resume import RunError
from florence_jax.training.config_loader import from_tree, read_run_config, to_tree
from florence_jax.training.data.example import DataError
from florence_jax.training.dry_run import dry_run
from florence_jax.training.images.config import ClassifyConfig, ImageModelConfig
from florence_jax.training.images.run import prepare_images
from florence_jax.training.loop import Outcome, train
from tests.training.images.small import TINY, classify_config, write_classes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"), {"train": 64, "valid": 48})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run."""
    config = classify_config(tmp_path_factory.mktemp("run") / "run", data)
    assert train(config) is Outcome.DONE
    return config


def lines(config, kind):
    found = read_lines(Path(config.directory) / "metrics.jsonl")
    return [line for line in found if line["kind"] == kind]


def test_it_learns_and_says_how_well(run):
    first, last = lines(run, "evaluation")
    assert last["top1"] >= 0.9, (first, last)
    assert "top5" not in last  # there are two classes
    assert last["loss"] < 0.6
    assert len(list((Path(run.directory) / "samples").rglob("*.png"))) == 4


def test_the_export_answers_as_the_last_evaluation_did(run, data):
    backbone, params = fj.load_backbone(f"{run.directory}/export")
    assert backbone.config == dataclasses.replace(TINY, num_classes=2)
    settings = json.loads((Path(run.directory) / "export" / "config.json").read_text())
    assert settings["label_names"] == ["cold", "warm"]
    valid = read_folders(data / "valid")
    pixels = np.stack([preprocess_crop(path, backbone.config.image) for path in valid.paths])
    logits = np.asarray(backbone.logits(params, jnp.asarray(pixels)))
    assert top_k_accuracy(logits, valid.labels, (1,))[1] == lines(run, "evaluation")[-1]["top1"]


def test_a_resumed_run_ends_with_the_same_bits(run, data, tmp_path, capsys):
    """The run is cut off after its first checkpoint, and started again."""
    import shutil

    again = dataclasses.replace(run, directory=str(tmp_path / "run"))
    shutil.copytree(run.directory, again.directory)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000060")
    shutil.rmtree(tmp_path / "run" / "export")
    with pytest.raises(RunError, match=r"label_smoothing was 0\.1 and is 0\.2"):
        train(dataclasses.replace(again, label_smoothing=0.2))
    assert train(again) is Outcome.DONE
    assert "going on at step 30 of 60" in capsys.readouterr().err
    first, second = (fj.load_backbone(f"{one.directory}/export")[1] for one in (run, again))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    (tmp_path / "run" / "export").rename(tmp_path / "kept")
    assert export_main([again.directory, "--step", "60"]) == 0
    third = fj.load_backbone(tmp_path / "run" / "export")[1]
    jax.tree.map(np.testing.assert_array_equal, first, third)
    # Other images are other data.
    Image.new("RGB", (9, 9)).save(data / "train" / "warm" / "new.png")
    try:
        with pytest.raises(RunError, match=r"training data of .* have changed .* had 64 rows"):
            train(again)
    finally:
        (data / "train" / "warm" / "new.png").unlink()


def test_settings_survive_being_written_down(run):
    tree = to_tree(run)
    assert tree["kind"] == "classification"
    assert read_run_config(tree) == run
    assert from_tree(ClassifyConfig, tree) == run
    with pytest.raises(ValueError, match="kind is 'detection', expected none, or one of classif"):
        read_run_config({**tree, "kind": "detection"})


def test_a_classifier_of_another_number_of_classes_is_left_out_and_said(run, data, tmp_path):
    three = write_classes(tmp_path / "data", {"train": 4})
    (three / "train" / "none").mkdir()
    Image.new("RGB", (9, 9)).save(three / "train" / "none" / "a.png")
    model = ImageModelConfig(start=f"{run.directory}/export")
    config = classify_config(tmp_path / "run", three, model=model)
    prepared = prepare_images(config, tmp_path / "files")
    (note,) = prepared.notes
    assert "has a classifier of 2 classes: it is left out, and one of 3 starts untrained" in note
    params = prepared.first_parameters()
    stored = fj.load_backbone(f"{run.directory}/export")[1]
    assert params["head/fc/kernel"].shape == (16, 3)
    np.testing.assert_array_equal(params["head/norm/scale"], stored["head"]["norm"]["scale"])
    # With as many classes, the classifier is kept.
    same = prepare_images(
        dataclasses.replace(config, data=dataclasses.replace(config.data, directory=str(data))),
        tmp_path / "same",
    )
    assert not same.notes
    kernel = same.first_parameters()["head/fc/kernel"]
    np.testing.assert_array_equal(kernel, stored["head"]["fc"]["kernel"])


def test_a_dry_run_shows_classes_and_pictures(data, tmp_path):
    printed = list(dry_run(classify_config(tmp_path / "run", data), tmp_path))
    assert "steps: 60; 2 classes: cold, warm" in printed
    assert "images: 64 of train, 48 of valid" in printed
    assert "first batch: images uint8[1, 16, 64, 64, 3]" in printed
    assert sum(line.endswith((": cold", ": warm")) for line in printed) == 16
    assert len(list(tmp_path.glob("*.png"))) == 8


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train").rename(root / "Train"), "there is no folder .*train; exp"),
        (lambda root: (root / "valid").joinpath("hot").mkdir(), "classes that the model does not"),
        (lambda root: (root / "train" / "warm").rename(root / "warm"), "has one class, cold"),
        (lambda root: (root / "train" / "none").mkdir(), "has classes without an image: none;"),
    ],
)
def test_wrong_folders_are_said(spoil, message, tmp_path):
    root = write_classes(tmp_path / "data", {"train": 4, "valid": 2})
    spoil(root)
    with pytest.raises(DataError, match=message):
        prepare_images(classify_config(tmp_path / "run", root), tmp_path / "files")


def test_an_image_that_cannot_be_read_has_no_weight(data, tmp_path):
    root = write_classes(tmp_path / "data", {"train": 16})
    next((root / "train" / "warm").iterdir()).write_bytes(b"no image")
    run = prepare_images(classify_config(tmp_path / "run", root), tmp_path / "files")
    batch = run.batches().batch(0)
    ((row, reason),) = batch.problems
    assert row.startswith("train/warm/")
    assert "ImageError" in reason
    assert (batch.labels == -100).sum() == 1


def test_sizes_that_cannot_be_exported_are_refused_at_once(data, tmp_path):
    vision = dataclasses.replace(TINY.vision, num_groups=(2,))
    model = ImageModelConfig(architecture=dataclasses.replace(TINY, vision=vision))
    config = classify_config(tmp_path / "run", data, model=model)
    with pytest.raises(fj.ConfigError, match="timm has no DaViT with these"):
        prepare_images(config, tmp_path / "files")
