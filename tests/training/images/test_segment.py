"""A segmentation network's run learns, keeps batch statistics, and exports what loads."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import florence_jax as fj
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.processing import load_image
from florence_jax.runtime.jsonl import read_lines
from florence_jax.segmentation.masks import read_mask, write_mask
from florence_jax.segmentation.metrics import confusion, scores
from florence_jax.segmentation.segment_image import segment_image
from florence_jax.training.config_loader import read_run_config, to_tree
from florence_jax.training.data.example import DataError
from florence_jax.training.images.config import MaskDataConfig, SegmenterModelConfig
from florence_jax.training.images.run import prepare_images
from florence_jax.training.loop import Outcome, train
from tests.training.images.small import segment_config, write_masks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_masks(tmp_path_factory.mktemp("masks"), {"train": 32, "valid": 8})


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run."""
    config = segment_config(tmp_path_factory.mktemp("run") / "run", data)
    assert train(config) is Outcome.DONE
    return config


def evaluations(config):
    found = read_lines(Path(config.directory) / "metrics.jsonl")
    return [line for line in found if line["kind"] == "evaluation"]


def test_it_learns_and_draws_masks(run):
    first, last = evaluations(run)
    assert last["mIoU"] >= 0.7, (first, last)
    assert last["pixel_accuracy"] >= 0.9
    drawn = sorted((Path(run.directory) / "samples").rglob("*.png"))
    assert [path.name for path in drawn] == ["0000.png"] * 2
    # The truth and the answer beside each other.
    with Image.open(drawn[0]) as page:
        assert page.size == (128, 64)


def test_the_export_answers_as_the_last_evaluation_did(run, data):
    segmenter, params = fj.load_segmenter(f"{run.directory}/export")
    matrix = np.zeros((2, 2), np.int64)
    for path in sorted((data / "valid" / "images").iterdir()):
        picture = load_image(path)
        answer = segment_image(segmenter, params, picture, stride=(22, 22), batch_size=4)
        mask = data / "valid" / "masks" / path.name
        matrix += confusion(answer, read_mask(mask, num_classes=2, size=(64, 64)), 2)
    assert scores(matrix).mean_iou == pytest.approx(evaluations(run)[-1]["mIoU"], rel=1e-6)


def test_statistics_move_and_are_averaged_over_micro_batches(run):
    segmenter, params = fj.load_segmenter(f"{run.directory}/export")
    del segmenter
    leaves = dict(flatten(params))
    moved = [path for path, leaf in leaves.items() if path.endswith("/mean") and np.any(leaf)]
    assert len(moved) == 7
    variances = [leaf for path, leaf in leaves.items() if path.endswith("/var")]
    assert all((leaf > 0).all() for leaf in variances)


def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    again = dataclasses.replace(run, directory=str(tmp_path / "run"))
    shutil.copytree(run.directory, again.directory)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{run.steps:08d}")
    shutil.rmtree(tmp_path / "run" / "export")
    assert train(again) is Outcome.DONE
    first, second = (fj.load_segmenter(f"{one.directory}/export")[1] for one in (run, again))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_run_starts_from_another_s_heads(run, data, tmp_path):
    stored = fj.load_segmenter(f"{run.directory}/export")[1]
    model = SegmenterModelConfig(start=f"{run.directory}/export")
    config = segment_config(tmp_path / "run", data, model=model)
    same = prepare_images(config, tmp_path / "files")
    assert not same.notes
    jax.tree.map(np.testing.assert_array_equal, same.first_parameters(), dict(flatten(stored)))
    three = dataclasses.replace(config.data, classes=("a", "b", "c"))
    other = prepare_images(dataclasses.replace(config, data=three), tmp_path / "other")
    (note,) = other.notes
    assert "has last layers of 2 classes: they are left out, and those of 3 start" in note
    params = other.first_parameters()
    assert params["decode_head/classifier/conv/kernel"].shape[-1] == 3
    kernel = "decode_head/fusion/conv/kernel"
    np.testing.assert_array_equal(params[kernel], dict(flatten(stored))[kernel])


def test_settings_survive_being_written_down(run):
    assert read_run_config(to_tree(run)) == run
    with pytest.raises(ValueError, match=r"say how many classes the masks have: data\.num_cl"):
        MaskDataConfig(directory="d")
    with pytest.raises(ValueError, match=r"data\.num_classes is 3, and data\.classes has 2 names"):
        MaskDataConfig(directory="d", num_classes=3, classes=("a", "b"))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((5, 64), int), "has 5 x 64 pixels, its image 64 x 64"),
        (np.full((64, 64), 7), "has class 7, expected 0 to 1, or 255"),
    ],
)
def test_masks_that_do_not_fit_have_no_weight_and_are_named(mask, reason, tmp_path):
    root = write_masks(tmp_path / "data", {"train": 4, "valid": 1})
    write_mask(root / "train" / "masks" / "002.png", mask)
    config = segment_config(tmp_path / "run", root, batch_size=4, accumulation=1)
    batch = prepare_images(config, tmp_path / "files").batches().batch(0)
    ((row, problem),) = batch.problems
    assert row == "train/002.png"
    assert reason in problem
    assert sum((one == -100).all() for one in batch.labels[0]) == 1


def test_images_without_masks_are_said(tmp_path):
    root = write_masks(tmp_path / "data", {"train": 2})
    (root / "train" / "masks" / "001.png").unlink()
    config = segment_config(tmp_path / "run", root)
    with pytest.raises(DataError, match=r"1 of 2 images in .* have no mask, the first .*001\.png"):
        prepare_images(config, tmp_path / "files")
    shutil.rmtree(root / "train" / "masks")
    with pytest.raises(DataError, match=r"there is no folder .*masks: expected images in train/im"):
        prepare_images(config, tmp_path / "files")


def test_images_that_share_a_mask_are_refused(tmp_path):
    root = write_masks(tmp_path / "data", {"train": 2})
    shutil.copy(root / "train" / "images" / "000.png", root / "train" / "images" / "000.jpg")
    config = segment_config(tmp_path / "run", root)
    with pytest.raises(DataError, match=r"has 000\.jpg and 000\.png, which share a mask"):
        prepare_images(config, tmp_path / "files")


def test_masks_of_0_and_255_are_doubted(tmp_path):
    root = write_masks(tmp_path / "data", {"train": 2})
    for path in (root / "train" / "masks").iterdir():
        write_mask(path, 255 * read_mask(path, num_classes=2, size=(64, 64)))
    (note,) = prepare_images(segment_config(tmp_path / "run", root), tmp_path / "files").notes
    assert "no values but 0 and 255, and pixels of 255 do not count: for two classes" in note
