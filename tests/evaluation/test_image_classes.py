"""`florence-jax evaluate imagenet` and `image-folders`: accuracy as from the API's logits."""

import functools
import json
import shutil

import numpy as np
import pytest

import florence_jax as fj
from florence_jax.classification.accuracy import top_k_accuracy
from florence_jax.cli.main import main
from florence_jax.processing.image.crop import preprocess_crop
from tests.backbone.timm_reference import DATA
from tests.batch.fakes import write_pictures

MODEL = DATA / "paper"  # 5 classes
CLASSES = ("n01", "n02", "n03", "n04", "n05")


@functools.cache
def loaded():
    return fj.load_backbone(MODEL)


def evaluate(*arguments, model=MODEL):
    options = ["--batch-size", "4", "--workers", "0", "--quiet", "--model", str(model)]
    return main(["evaluate", *map(str, arguments), *options])


def write_classes(root, folders):
    """Two pictures named as ImageNet's in each folder; the paths and their classes."""
    pictures = write_pictures(root / "all", 2 * len(folders), (40, 30))
    found = []
    for number, picture in enumerate(pictures):
        path = root / folders[number // 2] / f"ILSVRC2012_val_{number + 1:08}.png"
        path.parent.mkdir(exist_ok=True)
        shutil.move(picture, path)
        found.append((path, number // 2))
    (root / "all").rmdir()
    return found


def expected(pairs, labels=None):
    """Top-1 and top-5 in percent of the API's logits; None for an image that is broken."""
    backbone, params = loaded()
    pixels = np.stack([preprocess_crop(path, backbone.config.image) for path, _ in pairs])
    logits = np.asarray(backbone.logits(params, pixels))
    labels = [[label] for _, label in pairs] if labels is None else labels
    return {k: 100 * value for k, value in top_k_accuracy(logits, labels).items()}


def results(directory):
    (result,) = json.loads((directory / "report.json").read_text())["results"]
    return {1: result["value"], 5: result["others"]["top-5"]}


def test_folders_of_classes(tmp_path, capsys):
    pairs = write_classes(tmp_path / "data", CLASSES)
    out = tmp_path / "out"
    command = ["image-folders", "--data", tmp_path / "data", "--output", out]
    assert evaluate(*command, "--dry-run") == 0
    assert "10 of 10 images" in capsys.readouterr().out
    assert evaluate(*command) == 0
    assert results(out) == pytest.approx(expected(pairs))
    printed = capsys.readouterr().out
    assert "image-folders all: 10 of 10 examples" in printed
    assert "nothing is published of this model and split" in printed
    rows = [json.loads(line) for line in (out / "examples.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows[:3]] == [
        f"{path.parent.name}/{path.name}" for path, _ in pairs[:3]]  # fmt: skip
    assert rows[2]["truth"] == ["n02"]
    assert rows[2]["score"] == (rows[2]["classes"][0]["class"] == 1)
    assert (out / "worst.html").read_text().count("data:image/jpeg;base64,") == 20
    # Scores alone, and a broken image, which counts as wrong.
    report = (out / "report.json").read_text()
    assert evaluate(*command, "--score-only") == 0
    assert (out / "report.json").read_text() == report
    pairs[0][0].write_bytes(b"no picture")
    assert evaluate(*command[:-1], tmp_path / "broken") == 1
    assert "1 examples have no answer" in capsys.readouterr().out
    without = {k: value * 9 / 10 for k, value in expected(pairs[1:]).items()}
    assert results(tmp_path / "broken") == pytest.approx(without)


def test_folders_may_lack_classes_that_the_model_names(tmp_path, capsys):
    folders = (CLASSES[3], CLASSES[1])
    pairs = [(path, (3, 1)[number]) for path, number in write_classes(tmp_path / "data", folders)]
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    command = ["image-folders", "--data", tmp_path / "data", "--output", tmp_path / "out"]
    assert evaluate(*command) == 2
    assert "has 5 classes and the data has 2" in capsys.readouterr().err
    assert evaluate(*command, "--names", tmp_path / "names.txt") == 0
    assert results(tmp_path / "out") == pytest.approx(expected(pairs))


def test_imagenet_and_its_other_labels(tmp_path, capsys):
    data = tmp_path / "imagenet"
    pairs = write_classes(data / "val", CLASSES)
    real = [[0], [0, 3], [], [1], [4, 2], [2], [1], [3], [0], [4]]
    (data / "real.json").write_text(json.dumps(real))
    command = ["imagenet", "--data", data, "--output"]
    assert evaluate(*command, tmp_path / "real", "--split", "real") == 0
    assert "note: 1 images have no label and are not scored" in capsys.readouterr().err
    assert results(tmp_path / "real") == pytest.approx(expected(pairs, real))
    assert evaluate(*command, tmp_path / "val", "--limit", 4) == 0
    assert results(tmp_path / "val") == pytest.approx(expected(pairs[:4]))
    assert "4 of 10 examples" in capsys.readouterr().out

    assert evaluate(*command, tmp_path / "v2", "--split", "v2") == 2
    assert "holds no folder imagenetv2-matched-frequency-format-val" in capsys.readouterr().err
    v2 = write_classes(data / "imagenetv2-matched-frequency-format-val", tuple("01234"))
    assert evaluate(*command, tmp_path / "v2", "--split", "v2") == 0
    assert results(tmp_path / "v2") == pytest.approx(expected(v2))


def test_the_published_figure_stands_beside_the_models(tmp_path, capsys):
    write_classes(tmp_path / "val", CLASSES)
    model = tmp_path / "davit_tiny"
    shutil.copytree(MODEL, model)
    assert evaluate("imagenet", "--data", tmp_path, "--output", tmp_path / "o", model=model) == 0
    assert "published 82.8 (arXiv:2204.03645, abstract)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet", "--beams", "1"], "--beams belongs to data sets that ask questions, not to"),
        (["imagenet", "--split", "test"], "imagenet has no split 'test', it has val, real, v2"),
        (["imagenet"], "holds no folder val, validation"),
        (["image-folders"], "has no folders: expected one for each class"),
        (["image-folders", "--limit", "0"], "the limit is 0"),
        (["own", "--names", "x"], "--names is for imagenet, image-folders: leave it out"),
        (["image-net"], "'image-net' is no data set; there are own,"),
    ],
)
def test_wrong_calls_end_with_a_sentence(tmp_path, capsys, arguments, message):
    assert evaluate(*arguments, "--data", tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
