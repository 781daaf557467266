"""`florence-jax data check`: what it counts, what it finds wrong, and its exit status."""

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from florence_jax.cli.main import main
from florence_jax.processing import demo_tokenizer
from florence_jax.training.data_check.report import report_json
from florence_jax.training.data_check.rows import Limits, read_rows
from florence_jax.training.data_check.sources import open_splits

SIZE = (40, 20)


def picture(path, number=0):
    rng = np.random.default_rng(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (*SIZE[::-1], 3), np.uint8)).save(path)


def coco(folder, boxes, names=("cat", "dog"), first=0):
    """A folder with a COCO file of one image for each list of (category, box)."""
    images, annotations = [], []
    for number, found in enumerate(boxes):
        picture(folder / f"{number}.png", first + number)
        images.append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 20})
        annotations += [
            {"image_id": number, "category_id": category, "bbox": box} for category, box in found
        ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def rows(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def check(tmp_path, *arguments):
    """(exit status, the report)."""
    path = tmp_path / "report.json"
    options = ["--model", "shapes", "--json", str(path), "--quiet"]
    status = main(["data", "check", *map(str, arguments), *options])
    return status, json.loads(path.read_text())


def kinds(split):
    return [fault["kind"] for fault in split["faults"]]


@pytest.fixture
def sound(tmp_path):
    folder = tmp_path / "sound"
    coco(folder / "train", [[(0, [4, 2, 8, 4]), (1, [20, 10, 10, 5])], [(0, [0, 0, 40, 20])], []])
    coco(folder / "valid", [[(1, [4, 2, 8, 4]), (0, [1, 1, 5, 5])]], first=10)
    return folder


def test_a_sound_data_set_is_counted_and_the_status_is_0(sound, tmp_path, capsys):
    status, report = check(tmp_path, sound)
    assert (status, report["ok"], report["wrong"]) == (0, True, 0)
    train, valid = report["splits"]
    assert (train["split"], valid["split"]) == ("train", "valid")
    assert (train["layout"], train["rows"], train["images"]) == ("coco", 3, 3)
    assert train["classes"] == {"cat": 2, "dog": 1}
    assert train["tasks"] == {"<OD>": 3}
    assert train["objects_per_row"] == {"min": 0, "mean": 1.0, "max": 2}
    assert train["image_sizes"] == [{"width": 40, "height": 20, "images": 3}]
    text = capsys.readouterr().out
    assert "train: coco, " in text
    assert "2 classes: cat 2, dog 1" in text
    assert text.endswith("nothing is wrong\n")


def test_lengths_are_those_of_the_tokenizer_and_longer_rows_are_named(sound):
    tokenizer = demo_tokenizer()
    split, _ = open_splits(str(sound))
    read_rows(split, Limits(tokenizer=tokenizer, max_prompt=100, max_labels=9), lambda _: None)
    # A byte a letter, four places a box, <s> and </s>.
    expected = [2 * (3 + 4) + 2, 3 + 4 + 2, 2]
    assert split.labels.tokens.tolist() == expected
    assert split.labels.as_json() == {
        "rows": 3,
        "mean": 9.0,
        "median": 9,
        "p95": 16,
        "max": 16,
        "limit": 9,
        "over": 1,
    }
    (fault,) = split.faults
    assert fault.kind == "too long"
    assert "16 tokens of labels, more than max_labels=9" in fault.text
    assert report_json([split])["ok"] is False


def test_every_faulty_box_is_named_with_its_place(tmp_path):
    found = [
        (0, [4, 2, 8, 4]),
        (0, [4, 2, 8, 4]),
        (1, [45, 2, 5, 5]),
        (1, [5, 5, 0, 5]),
        (0, [30, 10, 20, 5]),
    ]
    coco(tmp_path / "train", [found])
    status, report = check(tmp_path, tmp_path / "train")
    (split,) = report["splits"]
    assert status == 1
    by_kind = {fault["kind"]: fault for fault in split["faults"]}
    assert by_kind.keys() == {"repeated", "outside", "empty", "cut", "unlisted class"}
    # What is mended is listed and is not wrong.
    assert report["wrong"] == 3
    assert by_kind["outside"]["where"].endswith("_annotations.coco.json: annotations[2]")
    assert "0.png: the box (45, 2, 50, 7) of an image of 40 x 20" in by_kind["outside"]["text"]
    assert by_kind["empty"]["where"].endswith("annotations[3]")
    assert by_kind["repeated"]["where"].endswith("annotations[1]")
    assert by_kind["cut"]["where"].endswith("annotations[4]")
    assert "'dog'" in by_kind["unlisted class"]["text"]


def test_images_that_cannot_be_read_are_named_once_and_the_others_are_read(sound, tmp_path):
    content = (sound / "train" / "1.png").read_bytes()
    (sound / "train" / "1.png").write_bytes(content[: len(content) // 2])
    (sound / "train" / "2.png").unlink()
    status, report = check(tmp_path, sound)
    train = report["splits"][0]
    assert status == 1
    assert kinds(train) == ["image", "image"]
    assert "1.png" in train["faults"][0]["text"]
    assert "2.png" in train["faults"][1]["text"]
    assert train["images"] == 1
    # Without a look at images, nothing is wrong with the texts.
    assert check(tmp_path, sound, "--no-images")[0] == 0


def test_an_image_of_another_shape_than_the_file_says(sound, tmp_path):
    Image.new("RGB", SIZE[::-1]).save(sound / "train" / "0.png")
    _, report = check(tmp_path, sound)
    (fault,) = report["splits"][0]["faults"]
    assert "but as shown (EXIF orientation applied) it has 20 x 40" in fault["text"]


def test_class_lists_that_differ_and_images_in_two_splits(sound, tmp_path):
    coco(sound / "valid", [[(1, [4, 2, 8, 4])]], names=("cat", "bird"), first=1)
    status, report = check(tmp_path, sound)
    valid = report["splits"][1]
    assert status == 1
    assert sorted(kinds(valid)) == ["class", "class", "leak", "unlisted class"]
    texts = " ".join(fault["text"] for fault in valid["faults"])
    assert "'bird' has 1 objects in valid and none in train" in texts
    assert "the class lists of train and valid differ in 'bird', 'dog'" in texts
    assert re.search(r"valid/0\.png of valid is \S*train/1\.png of train", texts)


def test_splits_in_files_of_their_own_are_compared_too(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 1)
    line = {"image": "a.png", "prefix": "<OD>", "suffix": "cat<loc_1><loc_2><loc_30><loc_40>"}
    rows(tmp_path / "train.jsonl", [line])
    other = line | {"image": "b.png", "suffix": "dog<loc_1><loc_2><loc_30><loc_40>"}
    rows(tmp_path / "val.jsonl", [other])
    _, report = check(tmp_path, tmp_path / "train.jsonl", tmp_path / "val.jsonl")
    assert [split["split"] for split in report["splits"]] == ["train", "valid"]
    assert kinds(report["splits"][1]) == ["class"]


def test_rows_of_text(tmp_path):
    picture(tmp_path / "a.png")
    place = "<loc_1><loc_2><loc_30><loc_40>"
    good = {"image": "a.png", "prefix": "<OD>", "suffix": f"cat{place}"}
    lines = [
        good,
        good | {"suffix": f"cat{place}dog{place}"},
        good | {"suffix": f"cat{place}{place}"},
        good | {"suffix": "cat<loc_30><loc_2><loc_30><loc_40>"},
        good | {"suffix": "a cat"},
        good | {"suffix": "cat<loc_1000><loc_2><loc_30><loc_40>"},
        good | {"suffix": "cat </s>"},
        good | {"prefix": "<OED>"},
        {"image": "a.png", "text": "a cat"},
        good | {"image": "absent.png"},
        {"image": "a.png", "prefix": "<CAPTION>", "suffix": "a cat"},
    ]
    rows(tmp_path / "rows.jsonl", lines)
    status, report = check(tmp_path, tmp_path / "rows.jsonl")
    (split,) = report["splits"]
    assert status == 1
    found = {(one["kind"], one["where"].rpartition(":")[2]) for one in split["faults"]}
    assert found == {
        ("repeated", "2"),
        ("empty", "3"),
        ("unread", "4"),
        ("text", "5"),
        ("text", "6"),
        ("text", "7"),
        ("row", "8"),
        ("image", "9"),
    }
    assert split["rows"] == len(lines)
    by_kind = {fault["kind"]: fault["text"] for fault in split["faults"]}
    assert "lacks the columns prefix, suffix; it has image, text" in by_kind["row"]


def test_labels_that_the_tokenizer_spells_and_that_may_be_one(tmp_path):
    names = ("cat", "Cat", "zqxjk_vwq-77")
    coco(tmp_path / "train", [[(number, [4, 2, 8, 4 + number]) for number in range(3)]], names)
    status, report = check(tmp_path, tmp_path)
    (split,) = report["splits"]
    notes = " ".join(split["notes"])
    assert status == 0
    assert "the labels 'cat' (1), 'Cat' (1) may be one class" in notes
    assert "'zqxjk_vwq-77' (" in notes
    assert "tokens): plain words are learnt sooner" in notes


def test_a_data_set_that_the_trainer_refuses_is_a_fault_and_the_others_are_read(sound, tmp_path):
    path = sound / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 9
    path.write_text(json.dumps(content))
    status, report = check(tmp_path, sound)
    train, valid = report["splits"]
    assert (status, train["rows"], valid["rows"]) == (1, 3, 0)
    assert kinds(valid) == ["refused"]
    assert "the category_id 9 of annotations[0]" in valid["faults"][0]["text"]


def test_settings_of_a_source(sound, tmp_path):
    path = sound / "train" / "_annotations.coco.json"
    settings = {"kind": "coco", "path": str(path), "tasks": ["<REGION_PROPOSAL>", "<OD>"]}
    _, report = check(tmp_path, json.dumps(settings))
    (split,) = report["splits"]
    assert split["tasks"] == {"<REGION_PROPOSAL>": 3, "<OD>": 3}
    assert (split["rows"], split["images"]) == (6, 3)


def test_the_page_needs_no_other_file(sound, tmp_path):
    path = sound / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "cat & <mouse"
    content["annotations"] = [one for one in content["annotations"] if one["category_id"]]
    path.write_text(json.dumps(content))
    page = tmp_path / "page.html"
    check(tmp_path, sound, "--output", page, "--samples", 2)
    text = page.read_text()
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(images) == 3  # two of train, one of valid
    assert all(base64.b64decode(one)[:2] == b"\xff\xd8" for one in images)
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "cat &amp; &lt;mouse" in text


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["absent"], "there is no file or folder absent"),
        (["."], "holds no data set that is read, but nothing: expected train/ and valid/"),
        (["{"], "SOURCE is not JSON"),
        (['{"kind": "cocoa"}'], r"kind must be one of .* \(did you mean coco\?\)"),
        (['{"kind": "coco"}'], "a coco source needs a path"),
        ([], "the following arguments are required: SOURCE"),
    ],
)
def test_a_wrong_call_ends_in_a_sentence(sources, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["data", "check", *sources])
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_model_that_is_not_here_leaves_lengths_out_by_name(sound, tmp_path, capsys):
    path = tmp_path / "report.json"
    (tmp_path / "model").mkdir()
    options = ["--model", str(tmp_path / "model"), "--json", str(path), "--quiet"]
    assert main(["data", "check", str(sound), *options]) == 0
    assert json.loads(path.read_text())["splits"][0]["label_tokens"] is None
    assert "lengths in tokens are left out" in capsys.readouterr().err


def test_the_report_goes_to_standard_output(sound, capsys):
    options = ["--model", "shapes", "--json", "-", "--quiet", "--no-images"]
    assert main(["data", "check", str(sound), *options]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_neither_the_help_nor_the_check_loads_jax(sound):
    code = (
        "import sys\nfrom florence_jax.cli.main import main\n"
        f"assert main(['data', 'check', {str(sound)!r}, '--model', 'shapes', '--quiet']) == 0\n"
        "loaded = {'jax', 'flax', 'torch', 'optax'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
