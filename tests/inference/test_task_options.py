"""The command line refuses what the pipeline refuses, before it loads a model, and in rows."""

import json

import pytest
from PIL import Image

from florence_jax.cli.main import main
from florence_jax.inference import pipeline as pipelines


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (60, 40), "red").save(folder / "small.png")
    Image.new("RGB", (400, 300), "blue").save(folder / "large.png")
    return folder


@pytest.fixture
def no_model(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pipelines.Florence2Pipeline, "from_pretrained", load)


@pytest.mark.parametrize("where", ["--output", "--output-dir"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--task", "OD"], "did you mean '<OD>'?"),
        (["--task", "<od>"], "did you mean '<OD>'?"),
        (["--task", "<DocVQA>What?"], "'<DocVQA>' is none of the 15"),
        (["--task", "<REGION_TO_OCR>"], "needs a region"),
        (["--task", "<OPEN_VOCABULARY_DETECTION>"], "needs a text"),
        (["--task", "<OPEN_VOCABULARY_DETECTION>", "--text", " "], "needs a text"),
        (["--task", "<OD>", "--text", "cat"], "takes no input"),
        (["--task", "<REGION_TO_OCR>", "--region", "0,0,0.5,0.5"], "looks like shares"),
        (["--task", "<REGION_TO_OCR>", "--region", "9,9,2,2"], "wrong order"),
        (["--task", "<REGION_TO_OCR>", "--region", "nan,0,2,2"], "four finite numbers"),
    ],
)
def test_a_wrong_task_is_refused_before_a_model_is_loaded(
    pictures, tmp_path, capsys, no_model, where, asked, message
):
    output = tmp_path / "out"
    arguments = ["predict", str(pictures), "--model", "shapes", where, str(output), *asked]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_region_outside_one_picture_is_that_pictures_error(pictures, capsys):
    region = ["--task", "<REGION_TO_OCR>", "--region", "10,10,200,200"]
    given = ["predict", str(pictures), "--model", "shapes", "--quiet", "--max-new-tokens", "4"]
    assert main([*given, *region]) == 1
    rows = {json.loads(line)["id"][-9:]: line for line in capsys.readouterr().out.splitlines()}
    large, small = json.loads(rows["large.png"]), json.loads(rows["small.png"])
    assert list(large["answers"][0]["result"]) == ["<REGION_TO_OCR>"]
    (answer,) = small["answers"]
    assert "outside the image of 60 x 40 pixels" in answer["error"]
    assert "result" not in answer
    assert (small["width"], small["height"]) == (60, 40)


def test_rows_of_a_run_have_their_own_errors(pictures, tmp_path):
    region = {"task": "<REGION_TO_OCR>"}
    asked = [
        {"task": "<OD>"},
        {"task": "OD"},
        {"task": "<VQA>what?"},
        region,
        region | {"region": [0, 0, 0.5, 0.5]},
        region | {"region": [0, 0, 100, 10]},
        region | {"region": [0, 0, 10**400, 5]},
        region | {"region": [1, 2, 30, 20]},
        {"task": "What is this?"},
    ]
    lines = [json.dumps({"image": "small.png"} | row) for row in asked]
    (pictures / "rows.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out"
    arguments = ["predict", str(pictures / "rows.jsonl"), "--model", "shapes", "--quiet"]
    arguments += ["--max-new-tokens", "4", "--workers", "0", "--output-dir", str(output)]
    assert main(arguments) == 1
    rows = [
        json.loads(line)
        for file in sorted(output.glob("block-*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    expected = [None, "did you mean '<OD>'", "'<VQA>' is none", "needs a region", "shares"]
    expected += ["outside the image of 60 x 40", "four numbers", None, None]
    assert len(rows) == len(asked)
    for row, message in zip(rows, expected, strict=True):
        assert ("error" in row) == (message is not None), row
        assert message is None or message in row["error"]


def test_a_fine_tunes_prompt_needs_the_option(pictures, capsys):
    given = ["predict", str(pictures / "small.png"), "--model", "shapes", "--quiet"]
    given += ["--max-new-tokens", "4", "--task", "<DocVQA>What is the total?"]
    assert main(given) == 2
    assert "--free-prompt" in capsys.readouterr().err
    assert main([*given, "--free-prompt"]) == 0
    assert list(json.loads(capsys.readouterr().out)["answers"][0]["result"]) == ["<DocVQA>"]


def test_sampling_takes_a_seed(pictures, capsys):
    given = ["predict", str(pictures / "large.png"), "--model", "shapes", "--quiet"]
    given += ["--max-new-tokens", "12", "--task", "<CAPTION>"]

    def drawn(*options):
        status = main([*given, *options])
        out, err = capsys.readouterr()
        return json.loads(out)["answers"][0]["result"] if status == 0 else err

    hot = ("--sample", "--temperature", "5", "--top-k", "0")
    assert drawn(*hot, "--seed", "0") == drawn(*hot, "--seed", "0")
    assert drawn(*hot, "--seed", "0") != drawn(*hot, "--seed", "1")
    assert "needs --seed N" in drawn("--sample")
    assert "--seed belongs to --sample" in drawn("--seed", "0")
    assert "--top-p belongs to --sample" in drawn("--top-p", "0.5")


def test_evaluating_the_bundled_model(pictures, tmp_path, capsys):
    rows = [
        {"image": "small.png", "prefix": "<CAPTION>", "suffix": "A red square."},
        {"image": "large.png", "prefix": "<DocVQA>what?", "suffix": "blue"},
    ]
    data = pictures / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    given = ["evaluate", "own", "--data", str(data), "--model", "shapes", "--quiet"]
    given += ["--max-new-tokens", "4", "--workers", "0"]
    assert main([*given, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"] == "shapes"
    data.write_text(json.dumps({"image": "small.png", "prefix": "<od>", "suffix": ""}))
    capsys.readouterr()
    assert main([*given, "--output", str(tmp_path / "other")]) == 2
    assert "did you mean '<OD>'" in capsys.readouterr().err
