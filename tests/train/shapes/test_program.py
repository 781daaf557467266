"""The command line: data sets that are read back, the gallery, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import TASKS, build_prompt, load_image, load_tokenizer
from train.shapes import SceneConfig, ShapesWorld
from train.shapes.__main__ import main
from train.shapes.render import draw


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def rows_of(folder):
    lines = (folder / "annotations.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_data_set_is_what_the_world_holds(capsys, tmp_path):
    status, out, _ = run(
        capsys, "--out", tmp_path, "--split", "held-out", "--count", 3, "--start", 5
    )
    assert (status, out.strip()) == (0, str(tmp_path / "test"))
    rows = rows_of(tmp_path / "test")
    assert len(rows) == 45
    assert set(rows[0]) == {"image", "prefix", "suffix"}
    world = ShapesWorld(split="held-out")
    expected = [(f"{index:06}.png", e) for index in (5, 6, 7) for e in world.examples(index)]
    for row, (name, example) in zip(rows, expected, strict=True):
        assert (row["image"], row["prefix"], row["suffix"]) == (
            name,
            example.prefix,
            example.suffix,
        )
        assert build_prompt(row["prefix"])
    for name, example in expected[::15]:
        picture = load_image(tmp_path / "test" / name)
        assert np.array_equal(np.asarray(picture), np.asarray(example.image))
    settings = json.loads((tmp_path / "test" / "world.json").read_text())
    assert (settings["seed"], settings["split"], settings["config"]["side"]) == (0, "held-out", 224)


def test_writing_again_gives_the_same_bytes(capsys, tmp_path):
    for folder in ("a", "b"):
        run(capsys, "--out", tmp_path / folder, "--count", 2, "--set", "side=96")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert [str(file) for file in files] == [
        "train/000000.png",
        "train/000001.png",
        "train/annotations.jsonl",
        "train/world.json",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_tasks_and_settings_can_be_chosen(capsys, tmp_path):
    options = ("--task", "<OD>", "--task", "<OCR>", "--set", "words=2,2", "--set", "noise=0")
    assert run(capsys, "--out", tmp_path, "--split", "valid", "--count", 2, *options)[0] == 0
    rows = rows_of(tmp_path / "valid")
    assert [row["prefix"] for row in rows] == ["<OD>", "<OCR>"] * 2
    assert all(len(row["suffix"].split("\n")) == 2 for row in rows[1::2])


def test_the_gallery_is_a_picture_with_a_cell_for_each_task(capsys, tmp_path):
    path = tmp_path / "page.png"
    options = ("--task", "<OD>", "--task", "<MORE_DETAILED_CAPTION>", "--set", "side=128")
    assert run(capsys, "--gallery", path, "--count", 2, *options)[0] == 0
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] == 3 * (256 + 10) + 10
    assert pixels.shape[0] > 2 * 256
    # The first cell is the picture itself, under its title.
    picture = draw(ShapesWorld(config=SceneConfig(side=128)).scene(0)).resize((256, 256))
    shown = pixels[32 : 32 + 256, 10 : 10 + 256]
    assert np.array_equal(shown, np.asarray(picture))


def test_statistics_name_every_task(capsys):
    status, out, _ = run(capsys, "--statistics", "--count", 5)
    assert status == 0
    assert out.startswith("5 scenes of train: things ")
    assert all(f"| `{task}` |" in out for task in TASKS)


def test_the_processor_is_written_for_the_side(capsys, tmp_path):
    options = ("--set", "side=192", "--image-tokens", 37)
    assert run(capsys, "--processor", tmp_path, *options)[0] == 0
    assert load_tokenizer(tmp_path).bos_id == 0
    processor = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    assert processor["size"] == {"height": 192, "width": 192}
    assert processor["image_seq_length"] == 37


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "shape=3"], "no setting 'shape'; there are side, shapes,"),
        (["--set", "shapes=3"], "'shapes=3': expected shapes=int,int"),
        (["--set", "noise=loud"], "'noise=loud': expected noise=int"),
        (["--set", "side=5"], "side is 5"),
        (["--count", "0"], "count is 0 and start 0"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_wrong_options_are_explained_in_one_line(capsys, tmp_path, options, message):
    status, out, err = run(capsys, "--out", tmp_path / "none", *options)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "none").exists()
