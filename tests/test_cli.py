"""The command line, run as a user runs it but for the process."""

import errno
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from florence_jax.cli.main import main
from florence_jax.processing import TASKS
from florence_jax.results import draw
from tests.random_pipeline import random_checkpoint


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.jpg", "deeper/a.jpg"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image at all")
    (folder / "notes.md").write_text("not for us")
    return folder


def run(*arguments):
    command = ["predict", "--model", random_checkpoint(), "--max-new-tokens", "6", "--quiet"]
    return main(list(map(str, [*command, *arguments])))


def test_directory_to_json_lines_and_pictures(pictures, tmp_path, capsys):
    output, drawn = tmp_path / "out.jsonl", tmp_path / "drawn"
    status = run(
        pictures,
        "--task",
        "<OD>",
        "--task",
        "<CAPTION>",
        "--output",
        output,
        "--save-images",
        drawn,
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert status == 1, "one image is broken"
    names = [str(pictures / name) for name in ("a.jpg", "b.png", "broken.jpg", "deeper/a.jpg")]
    # One row for each image, as --output-dir has them.
    assert [row["id"] for row in rows] == names
    for row in rows:
        if "broken" in row["id"]:
            assert "broken.jpg" in row["error"]
            assert "answers" not in row
        else:
            assert (row["width"], row["height"]) == (60, 40)
            assert [one["prompt"] for one in row["answers"]] == ["<OD>", "<CAPTION>"]
            assert [list(one["result"]) for one in row["answers"]] == [["<OD>"], ["<CAPTION>"]]
    assert sorted(path.name for path in drawn.iterdir()) == [
        "a.caption.2.png",
        "a.caption.png",
        "a.od.2.png",
        "a.od.png",
        "b.caption.png",
        "b.od.png",
    ]
    for path in drawn.iterdir():
        with Image.open(path) as picture:
            assert picture.width >= 60


def test_a_list_goes_to_standard_output(pictures, tmp_path, capsys):
    listing = tmp_path / "list.txt"
    listing.write_text(f"{pictures / 'b.png'}\n\n{pictures / 'missing.png'}\n")
    status = run(listing, "--task", "<REGION_TO_CATEGORY>", "--region", "1,2,30,40")
    good, missing = map(json.loads, capsys.readouterr().out.splitlines())
    assert status == 1
    assert good["answers"][0]["region"] == [1, 2, 30, 40]
    assert "does not exist" in missing["error"]


def test_a_file_name_that_is_no_utf8_gives_a_line_too(pictures, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    assert run(tmp_path / name, "--task", "<CAPTION>", "--output", tmp_path / "out.jsonl") == 0
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["id"] == str(tmp_path / name)


def test_constrained_answers_use_the_labels_that_were_given(pictures, capsys):
    status = run(pictures / "b.png", "--task", "<REGION_TO_CATEGORY>", "--region", "1,2,30,40",
                 "--constrained", "--label", "cat", "--label", "dog")  # fmt: skip
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert status == 0
    (answer,) = row["answers"]
    assert answer["labels"] == ["cat", "dog"]
    assert answer["result"]["<REGION_TO_CATEGORY>"] in ("cat", "dog")


def test_a_start_that_fails_changes_no_output(pictures, tmp_path, capsys):
    output, model = tmp_path / "out.jsonl", tmp_path / "no-model"
    model.mkdir()
    command = ["predict", str(pictures), "--task", "<OD>", "--output", str(output)]
    assert main([*command, "--model", str(model)]) == 2
    assert not output.exists()
    output.write_text("old\n")
    assert main([*command, "--model", str(model), "--overwrite"]) == 2
    assert output.read_text() == "old\n"
    assert "Traceback" not in capsys.readouterr().err
    missing = tmp_path / "missing" / "out.jsonl"
    assert main([*command[:-1], str(missing), "--model", str(model)]) == 2
    assert str(missing.parent) in capsys.readouterr().err


def test_what_fails_for_one_image_is_its_row(pictures, tmp_path):
    """Names that are too long to be drawn under, and a region that is outside of one image."""
    Image.new("RGB", (400, 300)).save(tmp_path / f"{'n' * 250}.png")
    output, drawn = tmp_path / "out.jsonl", tmp_path / "drawn"
    status = run(
        pictures / "b.png", tmp_path / f"{'n' * 250}.png", "--task", "<CAPTION>",
        "--output", output, "--save-images", drawn,
    )  # fmt: skip
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert status == 0
    assert [list(row["answers"][0]["result"]) for row in rows] == [["<CAPTION>"]] * 2
    assert len(list(drawn.iterdir())) == 2


def test_a_full_disk_of_drawings_loses_no_answer(pictures, tmp_path, monkeypatch):
    def full(image, result, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(draw, "save_drawn", full)
    output = tmp_path / "out.jsonl"
    options = ("--task", "<CAPTION>", "--output", output, "--save-images", tmp_path / "drawn")
    assert run(pictures / "b.png", *options) == 1
    row = json.loads(output.read_text())
    (answer,) = row["answers"]
    assert list(answer["result"]) == ["<CAPTION>"]
    assert "No space left on device" in answer["drawing_error"]


def test_an_existing_output_is_kept(pictures, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    output.write_text("precious")
    assert run(pictures / "b.png", "--task", "<OD>", "--output", output) == 2
    assert output.read_text() == "precious"
    assert "pass --overwrite" in capsys.readouterr().err
    assert run(pictures / "b.png", "--task", "<OD>", "--output", output, "--overwrite") == 0
    assert json.loads(output.read_text())["answers"][0]["prompt"] == "<OD>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg", "--task", "<OD>"], "nowhere.jpg does not exist"),
        (["EMPTY", "--task", "<OD>"], "holds no image"),
        (["IMAGE", "--task", "<OD>", "--text", "cat"], "takes no input"),
        (["IMAGE", "--task", "<OD>", "--beams", "0"], "num_beams must be"),
        (["IMAGE", "--task", "<OD>", "--label", "cat"], "--constrained"),
        (["IMAGE", "--task", "<OD>", "--model", "./nowhere"], "./nowhere"),
        (
            ["IMAGE", "--task", "<OD>", "--quantize", "int8", "--mesh", "data=-1"],
            "leave out the mesh",
        ),
    ],
)
def test_wrong_calls_end_with_a_sentence(pictures, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "IMAGE": pictures / "b.png"}
    assert run(*[places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_bad_region_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "x.jpg", "--task", "<OD>", "--region", "1,2,3"])
    assert "not four numbers" in capsys.readouterr().err


def test_help_teaches_every_task(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    text = capsys.readouterr().out
    for token, task in TASKS.items():
        takes = "" if task.takes == "nothing" else rf"\s+takes --{task.takes}"
        assert re.search(re.escape(token) + takes, text), token


def test_exported_programs_answer_as_the_model_does(pictures, tmp_path, capsys):
    exported, outputs = tmp_path / "exported", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    decoding = ["--max-new-tokens", "6", "--beams", "1"]
    export = [
        "export", exported, "--model", random_checkpoint(), *decoding, "--batch-size", "1",
        "--image-size", "64x64", "--prompt", "<CAPTION>", "--platform", "cpu",
    ]  # fmt: skip
    assert main([*map(str, export), "--include-weights", "--quiet"]) == 0
    asked = [pictures / "b.png", "--task", "<CAPTION>", "--batch-size", "1", "--beams", "1"]
    assert run(*asked, "--output", outputs[0]) == 0
    assert run(*asked, "--output", outputs[1], "--model", exported) == 0
    assert outputs[0].read_text() == outputs[1].read_text()
    capsys.readouterr()
    assert run(*asked, "--model", exported, "--dtype", "bfloat16") == 2
    assert "--dtype is fixed by the export" in capsys.readouterr().err
    assert run(*asked, "--weights", exported) == 2
    assert "--weights belongs to exported programs" in capsys.readouterr().err
    assert main([*map(str, export), "--quiet"]) == 2
    assert "exists already" in capsys.readouterr().err
