"""`florence-jax predict --format` as a user runs it, with a model that costs nothing."""

import csv
import json
import os
import tarfile
from types import SimpleNamespace

import pytest
from PIL import Image

from florence_jax.cli.main import main
from florence_jax.generation import GenerationConfig
from florence_jax.inference.requests import Response
from tests.random_pipeline import random_checkpoint

ANSWERS = {
    "<OD>": {
        "bboxes": [[8.0, 6.0, 24.0, 18.0], [0.0, 0.0, 4.0, 3.0]],
        "labels": ["cat", "dog"],
        "scores": [0.3, 0.1],
    },
    "<REGION_PROPOSAL>": {"bboxes": [], "labels": [], "scores": []},
    "<CAPTION>": "A cat.",
}


class Canned:
    """Answers every picture the same, at once."""

    generation = GenerationConfig()

    def engine(self, generation, **options):
        return self

    def check(self, request, *, labels):
        pass

    def run(self, requests):
        for request in requests:
            yield Response(
                result={request.prompt: ANSWERS[request.prompt]}, ids=[], token_scores=[]
            )


@pytest.fixture(autouse=True)
def loads(monkeypatch):
    """How often a model was loaded."""
    seen = SimpleNamespace(count=0)

    def load(options, progress):
        seen.count += 1
        return Canned()

    monkeypatch.setattr("florence_jax.cli.predict.load_pipeline", load)
    return seen


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "deeper/c.png"):
        Image.new("RGB", (32, 24)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


def test_captions_go_beside_the_pictures_and_a_second_run_does_what_is_missing(
    photos, loads, capsys
):
    (photos / "a.txt").write_text("by hand")
    assert predict(photos, "--task", "<CAPTION>", "--format", "txt") == 0
    assert (photos / "a.txt").read_text() == "by hand"
    assert (photos / "b.txt").read_text() == (photos / "deeper/c.txt").read_text() == "A cat."
    assert "1 of 3 txt files exist and are skipped" in capsys.readouterr().err
    (photos / "b.txt").unlink()
    assert predict(photos, "--task", "<CAPTION>", "--format", "txt", "--quiet") == 0
    assert (photos / "b.txt").read_text() == "A cat."
    assert loads.count == 2
    assert predict(photos, "--task", "<CAPTION>", "--format", "txt") == 0
    assert loads.count == 2, "nothing was missing"
    assert "3 of 3 txt files exist" in capsys.readouterr().err
    assert predict(photos, "--task", "<CAPTION>", "--format", "txt", "--overwrite") == 0
    assert (photos / "a.txt").read_text() == "A cat."
    assert not list(photos.rglob(".incomplete*"))


def test_labels_below_a_folder_mirror_the_tree(photos, tmp_path):
    labels = tmp_path / "labels"
    options = ["--task", "<OD>", "--format", "yolo", "--sidecar-dir", labels]
    assert predict(photos, *options, "--min-score", "0.2") == 0
    found = sorted(str(path.relative_to(labels)) for path in labels.rglob("*.*"))
    assert [name for name in found if not name.startswith(".")] == [
        "a.txt", "b.txt", "classes.txt", "data.yaml", "deeper/c.txt"]  # fmt: skip
    assert (labels / "deeper/c.txt").read_text() == "0 0.500000 0.500000 0.500000 0.500000\n"
    assert (labels / "classes.txt").read_text() == "cat\n"
    assert not list(photos.rglob("*.txt"))


def test_voc_and_coco_and_csv(photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"no picture")
    assert predict(photos, "--task", "<OD>", "--format", "voc", "--quiet") == 1
    assert not (photos / "broken.xml").exists()
    assert "broken.png is left out: " in capsys.readouterr().err
    assert "<xmin>9</xmin>" in (photos / "a.xml").read_text()
    output = tmp_path / "boxes.json"
    options = ["--task", "<OD>", "--format", "coco", "--output", output, "--quiet"]
    assert predict(photos, *options) == 1
    dataset = json.loads(output.read_text())
    assert [one["file_name"] for one in dataset["images"]] == ["a.png", "b.jpg", "deeper/c.png"]
    assert len(dataset["annotations"]) == 6
    assert predict(photos, *options) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    table = tmp_path / "boxes.csv"
    assert predict(photos, "--task", "<OD>", "--task", "<CAPTION>", "--output", table) == 1
    with table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["label"], line["text"]) for line in lines[:3]] == [
        ("cat", ""), ("dog", ""), ("", "A cat.")]  # fmt: skip
    assert [bool(line["error"]) for line in lines] == [False] * 6 + [True] + [False] * 3


def test_low_scores_are_in_no_file_and_no_drawing(photos, tmp_path, capsys):
    drawn = tmp_path / "drawn"
    assert predict(photos / "a.png", "--task", "<OD>", "--min-score", "0.3", "--quiet",
                   "--save-images", drawn) == 0  # fmt: skip
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["answers"][0]["result"]["<OD>"] == {
        "bboxes": [[8.0, 6.0, 24.0, 18.0]], "labels": ["cat"], "scores": [0.3]}  # fmt: skip
    with Image.open(drawn / "a.od.png") as picture:
        assert picture.getpixel((0, 0)) == (0, 0, 0), "the dog's corner"


def test_settings_that_no_request_can_have_end_the_command(photos, monkeypatch, capsys):
    """They are an error before a request is taken, and not one row's, tried again for ever."""

    def refused(self, generation, **options):
        raise ValueError("num_return_sequences is 3")

    monkeypatch.setattr(Canned, "engine", refused)
    assert predict(photos, "--task", "<CAPTION>") == 2
    assert "num_return_sequences is 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "<CAPTION>", "--format", "yolo"], "--format yolo holds boxes"),
        (["--task", "<CAPTION>", "--format", "voc"], "--format voc holds boxes"),
        (["--task", "<CAPTION>", "--format", "coco"], "--format coco holds boxes"),
        (
            ["--task", "<REGION_TO_OCR>", "--region", "1,1,9,9", "--format", "coco"],
            "'<REGION_TO_OCR>' is text",
        ),
        (["--task", "<OCR_WITH_REGION>", "--format", "yolo"], "words that are read"),
        (["--task", "<OD>", "--format", "txt"], "--format txt holds a text"),
        (["--task", "<OD>", "--task", "<REGION_PROPOSAL>", "--format", "voc"], "one --task"),
        (["--task", "<OD>", "--task", "<REGION_PROPOSAL>", "--format", "coco"], "one --task"),
        (["--task", "<CAPTION>", "--task", "<OCR>", "--format", "txt"], "<CAPTION>, <OCR>"),
        (["--task", "<OD>", "--format", "yolo", "--output", "x"], "--output is one file"),
        (["--task", "<OD>", "--format", "csv", "--sidecar-dir", "x"], "--sidecar-dir belongs to"),
        (["--task", "<OD>", "--format", "parquet"], "--format parquet belongs to --output-dir"),
        (["--task", "<CAPTION>", "--min-score", "0.5"], "'<CAPTION>' is answered by text"),
        (["--task", "<OD>", "--task", "<OCR>", "--min-score", "0.5"], "'<OCR>' is answered"),
        (["--task", "<OD>", "--min-score", "0.5", "--compat", "native"], "--compat native"),
        (["--task", "<OCR_WITH_REGION>", "--min-score", "0", "--compat", "original"],
         "--compat original"),
        (["--task", "<OD>", "--format", "coco", "--output", "no/where.json"], "make the folder"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [[], ["--output-dir", "OUT"]])
def test_what_a_format_cannot_hold_is_refused_before_the_model_loads(
    photos, tmp_path, loads, capsys, arguments, message, place
):
    if place and any(word in message for word in ("--output", "make the folder")):
        return
    words = [*arguments, *(str(tmp_path / "out") if word == "OUT" else word for word in place)]
    assert predict(photos, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert loads.count == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("score", ["nan", "-0.1", "1.01", "inf", "half"])
def test_a_least_score_is_a_share(photos, capsys, score):
    with pytest.raises(SystemExit):
        predict(photos, "--task", "<OD>", f"--min-score={score}")
    assert "is no number from 0 to 1" in capsys.readouterr().err


def test_sidecars_that_would_be_lost_are_refused(photos, tmp_path, loads, capsys):
    def refused(*arguments):
        assert predict(*arguments) == 2
        assert loads.count == 0
        return capsys.readouterr().err

    captions = ["--task", "<CAPTION>", "--format", "txt"]
    labels = ["--task", "<OD>", "--format", "yolo"]
    Image.new("RGB", (32, 24)).save(photos / "a.jpg")
    assert "a.jpg and " in refused(photos, *captions)
    (photos / "a.jpg").unlink()

    listing = photos / "a.txt"
    listing.write_text(f"{photos / 'a.png'}\n")
    assert "which is an input" in refused(listing, *captions, "--overwrite")
    assert "is no YOLO label file" not in refused(photos, *labels)
    assert "nothing says what its class numbers mean" in refused(photos, *labels)
    (photos / "classes.txt").write_text("cat\n")
    assert "is no YOLO label file with the 1 classes" in refused(photos, *labels)
    listing.write_text("3 0.5 0.5 0.1 0.1\n")
    assert "is no YOLO label file with the 1 classes" in refused(photos, *labels)
    assert "is a YOLO label file" in refused(photos, *captions)
    listing.unlink()
    (photos / "b.txt").mkdir()
    assert "b.txt is a folder" in refused(photos, *captions)
    (photos / "b.txt").rmdir()
    (photos / "a.png").rename(photos / "classes.png")
    assert "which has a meaning of its own" in refused(photos, *labels)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_found_first(photos, loads, capsys):
    photos.chmod(0o500)
    assert predict(photos, "--task", "<CAPTION>", "--format", "txt") == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert loads.count == 0


def test_one_class_file_is_written_by_one_run(photos, capsys):
    from florence_jax.runtime.directory_lock import directory_lock

    with directory_lock(photos, ".yolo.lock"):
        assert predict(photos, "--task", "<OD>", "--format", "yolo") == 2
    assert "another process is writing to" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "csv", "coco"])
def test_an_input_is_no_output_and_a_device_stays_one(photos, kind, capsys):
    before = (photos / "a.png").read_bytes()
    asked = [photos, "--task", "<OD>", "--format", kind, "--quiet", "--output"]
    assert predict(*asked, photos / "deeper/../a.png", "--overwrite") == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == before
    assert predict(*asked, "/dev/null") == 0
    assert not os.path.isfile("/dev/null")


class TestDirectories:
    """--output-dir, with the small model: rows are made by the same code as in a long run."""

    def run(self, *arguments):
        options = ["--model", random_checkpoint(), "--max-new-tokens", "6", "--beams", "1",
                   "--workers", "0", "--batch-size", "2"]  # fmt: skip
        return predict(*options, "--quiet", *arguments)

    def test_both_outputs_have_the_same_rows(self, photos, tmp_path):
        (photos / "broken.png").write_bytes(b"no picture")
        asked = [photos, "--task", "<OD>"]
        assert self.run(*asked, "--output-dir", tmp_path / "out") == 1
        assert predict(*asked, "--output", tmp_path / "out.jsonl", "--quiet") == 1
        (block,) = (tmp_path / "out").glob("*.jsonl")
        made, plain = (
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in (block, tmp_path / "out.jsonl")
        )
        names = ("a.png", "b.jpg", "broken.png", "deeper/c.png")
        assert [row["id"] for row in plain] == [str(photos / name) for name in names]
        for row, other in zip(plain, made, strict=True):
            assert list(row) == list(other)
            (answer,), (theirs,) = row.pop("answers", [{}]), other.pop("answers", [{}])
            assert list(answer) == list(theirs)
            assert list(answer.get("result", ())) == list(theirs.get("result", ()))
            assert row == other, "all but what the two models say"

    def test_parquet_is_one_table_to_every_reader(self, photos, tmp_path):
        pytest.importorskip("pyarrow")
        from pyarrow import dataset, parquet

        (photos / "broken.png").write_bytes(b"no picture")
        out = tmp_path / "out"
        asked = [photos, "--task", "<OD>", "--output-dir", out, "--format", "parquet"]
        assert self.run(*asked, "--block-size", "1") == 1
        table = parquet.read_table(out)
        assert table.num_rows == 4
        ids = [str(photos / name) for name in ("a.png", "b.jpg", "broken.png", "deeper/c.png")]
        assert table["id"].to_pylist() == ids
        assert table["width"].to_pylist() == [32, 32, None, 32]
        assert "is not an image" in table["error"][2].as_py()
        assert table["answers"][0].as_py()[0]["prompt"] == "<OD>"
        assert dataset.dataset(out, format="parquet").to_table().equals(table)
        assert main(["verify-output", "--quiet", str(out)]) == 0
        assert self.run(*asked) == 0, "it goes on, and nothing is left to do"
        assert self.run(*asked[:-2], "--format", "csv") == 2, "it would be no table any more"

    def test_no_other_file_comes_among_the_tables(self, photos, tmp_path, capsys):
        pytest.importorskip("pyarrow")
        from pyarrow import parquet

        out = tmp_path / "out"
        asked = [photos, "--task", "<OD>", "--output-dir", out]
        drawn = ["--save-images", out / "drawn"]
        assert self.run(*asked, "--format", "parquet", *drawn) == 2
        assert not out.exists()
        assert f"({out}/_drawn)" in capsys.readouterr().err
        drawn = ["--save-images", out / "_drawn"]
        assert self.run(*asked, "--format", "parquet", *drawn) == 0
        assert len(list((out / "_drawn").iterdir())) == 3
        assert self.run(*asked, "--save-images", out) == 2
        assert self.run(*asked, "--format", "voc", "--sidecar-dir", out / "voc") == 2
        assert self.run(*asked, "--format", "voc", "--sidecar-dir", out / "_voc") == 0
        Image.new("RGB", (32, 24)).save(photos / "new.png")
        assert self.run(*asked, "--extend", *drawn) == 0
        assert parquet.read_table(out)["id"].to_pylist()[-1] == str(photos / "new.png")

    @pytest.mark.parametrize("pages", [[], ["--all-pages"]])
    def test_formats_of_a_run_that_grew(self, photos, tmp_path, pages):
        for name in ("one.tar", "two.tar"):
            with tarfile.open(tmp_path / name, "w") as archive:
                archive.add(photos / "a.png", "a.png")
        out = tmp_path / "out"
        asked = [tmp_path / "one.tar", "--task", "<OD>", "--output-dir", out, *pages]
        assert self.run(*asked, "--format", "csv") == 0
        grown = [tmp_path / "two.tar", *asked, "--extend"]
        assert self.run(*grown, "--format", "csv") == 0
        with (out / "answers.csv").open(newline="") as file:
            images = [line["image"] for line in csv.DictReader(file)]
        assert images == [str(tmp_path / "one.tar/a"), str(tmp_path / "two.tar/a")]
        assert self.run(*grown, "--format", "coco") == 0
        dataset = json.loads((out / "annotations.json").read_text())
        assert [one["file_name"] for one in dataset["images"]] == ["one.tar/a", "two.tar/a"]

    def test_the_other_formats_are_made_of_the_finished_blocks(self, photos, tmp_path, capsys):
        out = tmp_path / "out"
        asked = [photos, "--task", "<OD>", "--output-dir", out]
        assert self.run(*asked, "--format", "csv") == 0
        with (out / "answers.csv").open(newline="") as file:
            images = {line["image"] for line in csv.DictReader(file)}
        assert images == {str(photos / name) for name in ("a.png", "b.jpg", "deeper/c.png")}
        assert self.run(*asked, "--format", "coco") == 0
        dataset = json.loads((out / "annotations.json").read_text())
        assert [one["file_name"] for one in dataset["images"]] == ["a.png", "b.jpg", "deeper/c.png"]
        assert self.run(*asked, "--format", "yolo") == 0
        assert (out / "deeper/c.txt").exists()
        assert (out / "classes.txt").exists()
        (out / "a.txt").write_text("0 0.5 0.5 1 1\n")
        (out / "classes.txt").write_text("mine\n")
        (out / "b.txt").unlink()
        assert self.run(*asked, "--format", "yolo") == 0
        assert (out / "a.txt").read_text() == "0 0.5 0.5 1 1\n"
        assert (out / "b.txt").exists()
        assert self.run(*asked, "--format", "voc", "--sidecar-dir", photos) == 0
        assert (photos / "deeper/c.xml").exists()
        assert main(["verify-output", "--quiet", str(out)]) == 0

    def test_rows_of_data_choose_no_place_outside(self, photos, tmp_path):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            '{"image": "photos/../photos/a.png", "id": "../../../x"}\n'
            '{"image": "photos/deeper/c.png"}\n'
        )
        out = tmp_path / "out"
        asked = [rows, "--task", "<CAPTION>", "--output-dir", out, "--format", "txt"]
        assert self.run(*asked) == 0
        assert (out / "photos/a.txt").exists()
        assert (out / "photos/deeper/c.txt").exists()
        assert not list(tmp_path.glob("*.txt"))

    def test_a_least_score_is_pinned_and_applied(self, photos, tmp_path, capsys):
        out = tmp_path / "out"
        asked = [photos / "a.png", "--task", "<OD>", "--output-dir", out]
        assert self.run(*asked, "--min-score", "1") == 0
        (path,) = out.glob("block*.jsonl")
        result = json.loads(path.read_text())["answers"][0]["result"]["<OD>"]
        assert result == {"bboxes": [], "labels": [], "scores": []}
        assert self.run(*asked) == 2
        assert "job.min_score" in capsys.readouterr().err
