"""`florence-jax evaluate mask-folders` and `ade20k`: mIoU as counted pixel by pixel."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import florence_jax as fj
from florence_jax.cli.main import main
from florence_jax.processing import load_image
from florence_jax.segmentation.masks import draw_mask
from florence_jax.segmentation.segment_image import segment_image
from tests.training.images.small import TWO_STAGES

NAMES = ("sky", "sea", "sand")
SIZES = ((64, 64), (90, 70), (64, 100))  # width, height


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "three", len(NAMES), NAMES)


def save_model(directory, classes, names=()):
    config = fj.SegmenterConfig(
        backbone=dataclasses.replace(TWO_STAGES, feature_norms=True),
        num_classes=classes,
        hidden_dim=8,
        pool_sizes=(1, 2),
        auxiliary_dim=0,
    )
    params = fj.Segmenter(config=config).init(jax.random.key(1))
    fj.save_segmenter(directory, config, params, label_names=names)
    return directory


def write_data(root, *, images="images", masks="masks", classes=3, ignored=255):
    """Random pictures, and masks of blocks with classes; the masks as written."""
    rng, found = np.random.default_rng(0), {}
    for number, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        path = root / images / f"part{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((width, height)).save(path)
        mask = rng.integers(0, classes, (height // 10 + 1, width // 10 + 1))
        mask = np.kron(mask, np.ones((10, 10), int))[:height, :width].astype(np.uint8)
        mask[:7] = ignored
        path = root / masks / f"part{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
        found[f"part{number % 2}/{number}.png"] = mask
    return found


def evaluate(*arguments, model):
    options = ["--batch-size", "2", "--workers", "0", "--quiet", "--model", str(model)]
    return main(["evaluate", *map(str, arguments), *options])


def counted(truths, answers, names):
    """The figures in percent by a loop over classes, without a confusion matrix."""
    truth, answer = (
        np.concatenate([one.ravel() for one in many]).astype(int) for many in (truths, answers)
    )
    truth, answer = truth[truth != 255], answer[truth != 255]
    iou, recall = {}, []
    for number, name in enumerate(names):
        inside, said = truth == number, answer == number
        if (inside | said).any():
            iou[f"IoU of {name}"] = 100 * (inside & said).sum() / (inside | said).sum()
        if inside.any():
            recall.append(100 * said[inside].mean())
    figures = {"mean accuracy": np.mean(recall), "pixel accuracy": 100 * (truth == answer).mean()}
    return {"mIoU": np.mean(list(iou.values())), **figures, **iou}


def answers(model, root, names, **settings):
    segmenter, params = fj.load_segmenter(model)
    pictures = [load_image(root / name) for name in names]
    return [segment_image(segmenter, params, one, **settings) for one in pictures]


def results(directory):
    (result,) = json.loads((directory / "report.json").read_text())["results"]
    return {result["metric"]: result["value"], **result["others"]}


def test_folders_of_masks(model, tmp_path, capsys):
    masks = write_data(tmp_path / "data")
    names, out = sorted(masks), tmp_path / "out"
    command = ["mask-folders", "--data", tmp_path / "data", "--output", out]
    assert evaluate(*command, "--dry-run", model=model) == 0
    assert "3 of 3 images" in capsys.readouterr().out
    assert not out.exists()
    assert evaluate(*command, "--save-images", tmp_path / "drawn", model=model) == 0
    found = answers(model, tmp_path / "data" / "images", names, batch_size=2)
    truths = [masks[name] for name in names]
    expected = counted(truths, found, NAMES)
    assert results(out) == pytest.approx(expected)
    assert len({*found[0].ravel()}) > 1, "the answer must not be one class everywhere"
    printed = capsys.readouterr().out
    assert "mask-folders all: 3 of 3 examples" in printed
    assert "IoU of sand" in printed
    rows = [json.loads(line) for line in (out / "examples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == names
    for row, truth, answer in zip(rows, truths, found, strict=True):
        assert row["score"] == pytest.approx(counted([truth], [answer], NAMES)["mIoU"] / 100)
        assert sum(count for *_, count in row["confusion"]) == (truth != 255).sum()
    assert (out / "worst.html").read_text().count("data:image/jpeg;base64,") == 6
    for name, truth, answer in zip(names, truths, found, strict=True):
        picture = load_image(tmp_path / "data" / "images" / name)
        sides = [np.asarray(draw_mask(picture, mask)) for mask in (truth, answer)]
        with Image.open(tmp_path / "drawn" / f"{name}.png") as page:
            np.testing.assert_array_equal(np.asarray(page), np.concatenate(sides, axis=1))
    # Scores alone; and a changed mask is not mixed with rows of the old one.
    report = (out / "report.json").read_text()
    assert evaluate(*command, "--score-only", model=model) == 0
    assert (out / "report.json").read_text() == report
    Image.new("L", SIZES[0]).save(tmp_path / "data" / "masks" / names[0])
    assert evaluate(*command, model=model) == 2
    assert "masks" in capsys.readouterr().err


def test_the_whole_image_as_one_window(model, tmp_path):
    masks = write_data(tmp_path / "data")
    names = sorted(masks)[:2]
    command = ["mask-folders", "--data", tmp_path / "data", "--output", tmp_path / "out"]
    assert evaluate(*command, "--whole", "--limit", 2, model=model) == 0
    found = answers(model, tmp_path / "data" / "images", names, whole=True)
    assert results(tmp_path / "out") == pytest.approx(
        counted([masks[name] for name in names], found, NAMES)
    )
    windows = answers(model, tmp_path / "data" / "images", names)
    assert any((one != other).any() for one, other in zip(found, windows, strict=True))


def test_the_layout_of_ade20k(model, tmp_path, capsys):
    places = {"images": "images/validation", "masks": "annotations/validation"}
    masks = write_data(tmp_path / "ade", classes=151, ignored=0, **places)
    command = ["ade20k", "--data", tmp_path / "ade", "--output", tmp_path / "out", "--limit", 2]
    assert evaluate(*command, model=model) == 2
    assert "has 3 classes and ade20k has 150" in capsys.readouterr().err
    many = save_model(tmp_path / "many", 150)
    assert evaluate(*command, model=many) == 0
    names = sorted(masks)[:2]
    found = answers(many, tmp_path / "ade" / "images" / "validation", names, batch_size=2)
    # Class 0 becomes 255, and n becomes n - 1.
    truths = [masks[name] - np.uint8(1) for name in names]
    expected = counted(truths, found, [f"class {number}" for number in range(150)])
    assert results(tmp_path / "out") == pytest.approx(expected)
    assert "2 of 3 examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (5, 64)), "has 64 x 5 pixels, its image 64 x 64"),
        (Image.new("L", (64, 64), 7), "has class 7, expected 0 to 2, or 255"),
        (Image.new("RGB", (64, 64)), "is an image of mode RGB, expected a mask of 8 bits"),
    ],
)
def test_a_mask_that_does_not_fit_is_no_figure(model, tmp_path, capsys, mask, message):
    write_data(tmp_path / "data")
    mask.save(tmp_path / "data" / "masks" / "part0" / "0.png")
    command = ["mask-folders", "--data", tmp_path / "data", "--output", tmp_path / "out"]
    assert evaluate(*command, "--limit", 1, model=model) == 2
    error = capsys.readouterr().err
    assert "1 of 1 images have no answer, such as part0/0.png" in error
    assert message in error
    assert not (tmp_path / "out" / "report.json").exists()


def test_masks_without_a_pixel_that_counts(model, tmp_path, capsys):
    write_data(tmp_path / "data")
    Image.new("L", (64, 64), 255).save(tmp_path / "data" / "masks" / "part0" / "0.png")
    command = ["mask-folders", "--data", tmp_path / "data", "--output", tmp_path / "out"]
    assert evaluate(*command, "--limit", 1, model=model) == 2
    assert "no pixel of any mask counts" in capsys.readouterr().err


def test_a_missing_mask_and_no_images(model, tmp_path, capsys):
    write_data(tmp_path / "data")
    (tmp_path / "data" / "masks" / "part1" / "1.png").unlink()
    command = ["mask-folders", "--data", tmp_path / "data", "--output", tmp_path / "out"]
    assert evaluate(*command, model=model) == 2
    assert "1 of 3 images in" in (error := capsys.readouterr().err)
    assert "such as part1/1.png: add it as a .png of the same name" in error
    image = tmp_path / "data" / "images" / "part0" / "0.png"
    image.with_suffix(".jpg").write_bytes(image.read_bytes())
    assert evaluate(*command, model=model) == 2
    assert "part0/0.jpg and part0/0.png, which share a mask: rename" in capsys.readouterr().err
    for folder in ("images", "masks"):
        (tmp_path / "empty" / folder).mkdir(parents=True)
    assert evaluate("mask-folders", "--data", tmp_path / "empty", model=model) == 2
    assert "has no images: expected images/NAME.jpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mask-folders", "--beams", "1"], "--beams belongs to data sets that ask questions"),
        (["mask-folders", "--names", "x"], "--names is not for mask-folders"),
        (["mask-folders", "--mesh", "data=1"], "--mesh is not for masks"),
        (["mask-folders", "--score-only", "--save-images", "d"], "--save-images needs the network"),
        (["ade20k", "--split", "test"], "ade20k has no split 'test', it has validation, training"),
        (["ade20k"], "holds no folder images/validation"),
        (["ade20k", "--limit", "0"], "the limit is 0"),
        (["imagenet", "--whole"], "--whole is for ade20k, mask-folders: leave it out"),
    ],
)
def test_wrong_calls_end_with_a_sentence(model, tmp_path, capsys, arguments, message):
    write_data(tmp_path)
    assert evaluate(*arguments, "--data", tmp_path, model=model) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
