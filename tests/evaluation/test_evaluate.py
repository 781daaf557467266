"""`florence-jax evaluate` from the data set to the page, with a tiny model of random weights."""

import dataclasses
import functools
import json
import subprocess
import sys

import pytest

from florence_jax.batch import predict_job
from florence_jax.batch.blocks import RunOptions
from florence_jax.cli import evaluate as evaluate_command
from florence_jax.cli.main import main
from florence_jax.evaluation import scoring
from florence_jax.processing import ImageConfig
from florence_jax.runtime.atomic_file import atomic_write
from tests.evaluation import miniature
from tests.random_pipeline import random_pipeline


@functools.cache
def pipeline():
    return dataclasses.replace(random_pipeline(), image_config=ImageConfig(size=(64, 64)))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(evaluate_command, "load_pipeline", lambda options, progress: pipeline())
    monkeypatch.setattr(scoring, "meteor_is_installed", lambda: False)
    monkeypatch.setattr(RunOptions, "default_block_size", lambda self: 2)


def evaluate(name, data, output, *options):
    """The exit status; one program for all data sets."""
    arguments = ["evaluate", name, "--data", str(data), "--output", str(output)]
    fixed = ["--model", "random", "--beams", "1", "--max-new-tokens", "16", "--batch-size", "2"]
    return main([*arguments, *fixed, "--workers", "0", "--quiet", *options])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "name",
    ["coco-captions", "coco-detection", "flickr30k", "refcoco", "refcoco-masks", "vqav2", "docvqa"],
)
def test_a_data_set_is_answered_and_scored(tmp_path, capsys, name):
    count, write = miniature.DATA_SETS[name]
    write(tmp_path)
    output = tmp_path / "out"
    assert evaluate(name, tmp_path, output) == 0
    printed = capsys.readouterr().out
    assert f"{count} of {count} examples, random" in printed
    report = json.loads((output / "report.json").read_text())
    (result,) = report["results"]
    assert f"{result['metric']} " in printed
    assert report["examples"] == report["total"] == count
    assert report["failed"] == 0
    assert report["settings"]["run"]["decoding"]["num_beams"] == 1
    rows = lines_of(output / "examples.jsonl")
    assert len(rows) == count
    assert all(0 <= row["score"] <= 1 and row["answers"][0]["result"] for row in rows)
    page = (output / "worst.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * count
    # Scoring alone reads what is there, and comes to the same.
    (output / "report.json").unlink()
    assert evaluate(name, tmp_path, output, "--score-only") == 0
    assert json.loads((output / "report.json").read_text()) == report


def test_a_split_without_truth_gives_a_submission(tmp_path, capsys):
    miniature.vqav2(tmp_path)
    assert evaluate("vqav2", tmp_path, tmp_path / "out", "--split", "test-dev") == 0
    assert "send in submission.json" in capsys.readouterr().out
    (answer,) = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert answer["question_id"] == 1000
    assert isinstance(answer["answer"], str)
    assert "worst" in (tmp_path / "out" / "worst.html").read_text()


def test_own_rows(tmp_path, capsys):
    path = miniature.own(tmp_path)
    assert evaluate("own", path, tmp_path / "out") == 0
    assert "<OCR>, 1 examples" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["results"]) == 9
    assert len(lines_of(tmp_path / "out" / "examples.jsonl")) == 10


def test_a_run_that_broke_goes_on_and_comes_to_the_same(tmp_path, monkeypatch):
    miniature.refcoco(tmp_path)
    assert evaluate("refcoco", tmp_path, tmp_path / "whole") == 0
    answer, calls = predict_job.PredictJob.__call__, []

    def fails_later(self, loaded):
        rows = answer(self, loaded)
        calls.append(len(rows))
        if len(calls) > 1:
            raise MemoryError("the second block")
        return rows

    with monkeypatch.context() as patched:
        patched.setattr("florence_jax.batch.run.BLOCKS_IN_HAND", 1)
        patched.setattr(predict_job.PredictJob, "__call__", fails_later)
        assert evaluate("refcoco", tmp_path, tmp_path / "broken") == 2
    rows = tmp_path / "broken" / "rows"
    (done,) = rows.glob("block-*.jsonl")
    before = done.stat().st_mtime_ns
    assert evaluate("refcoco", tmp_path, tmp_path / "broken", "--score-only") == 2
    assert evaluate("refcoco", tmp_path, tmp_path / "broken") == 0
    assert done.stat().st_mtime_ns == before
    for name in ("report.json", "examples.jsonl"):
        whole, resumed = ((tmp_path / d / name).read_text() for d in ("whole", "broken"))
        assert whole == resumed


def test_other_annotations_and_prompts_are_another_run(tmp_path, capsys):
    miniature.refcoco(tmp_path)
    assert evaluate("refcoco", tmp_path, tmp_path / "out") == 0
    prompt = "<OPEN_VOCABULARY_DETECTION>{input}"
    assert evaluate("refcoco", tmp_path, tmp_path / "out", "--prompt", prompt) == 2
    assert "is of another run" in capsys.readouterr().err
    assert evaluate("refcoco", tmp_path, tmp_path / "other", "--prompt", prompt) == 0
    path = tmp_path / "refcoco" / "instances.json"
    path.write_text(path.read_text() + " ")
    assert evaluate("refcoco", tmp_path, tmp_path / "out") == 2
    assert "is of another run" in capsys.readouterr().err


def test_pictures_that_are_missing_count_as_wrong(tmp_path, capsys):
    miniature.coco_captions(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    assert evaluate("coco-captions", tmp_path, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "1 images are missing, such as val2014/COCO_val2014_000000000002.jpg" in said
    assert not (tmp_path / "out").exists()
    assert evaluate("coco-captions", tmp_path, tmp_path / "out") == 1
    assert "1 examples have no answer" in capsys.readouterr().out
    assert "does not exist" in (tmp_path / "out" / "worst.html").read_text()


def test_a_dry_run_says_what_is_published(tmp_path, capsys):
    miniature.refcoco(tmp_path)
    arguments = ["evaluate", "refcoco", "--data", str(tmp_path), "--dry-run", "--limit", "1"]
    assert main([*arguments, "--model", "microsoft/Florence-2-large-ft"]) == 0
    said = capsys.readouterr().out
    assert "refcoco val: 1 of 4 examples" in said
    assert "asked: <CAPTION_TO_PHRASE_GROUNDING>{input} (not published" in said
    assert "decoding: the checkpoint's, at most 128 new tokens" in said
    assert "published: RefCOCO val accuracy 93.4 (arXiv:2311.06242, table 6)" in said
    assert "output: florence-jax-evaluation/Florence-2-large-ft/refcoco-val-first-1/" in said


def test_the_tables_are_printed(capsys):
    assert main(["evaluate", "--published"]) == 0
    words = capsys.readouterr().out.split()
    assert words.count("78.0") == 1


def test_what_is_wrong_is_said(tmp_path, capsys):
    assert main(["evaluate"]) == 2
    assert "name a data set and where it is" in capsys.readouterr().err
    assert main(["evaluate", "cifar", "--data", str(tmp_path)]) == 2
    assert "'cifar' is no data set" in capsys.readouterr().err
    assert main(["evaluate", "refcoco", "--data", str(tmp_path)]) == 2
    assert "lichengunc/refer" in capsys.readouterr().err


def test_metrics_and_readers_load_no_jax():
    code = (
        "import sys, florence_jax.evaluation.registry, florence_jax.evaluation.paper_results\n"
        "from florence_jax.evaluation.run import plan_evaluation, score_rows\n"
        "loaded = {'jax', 'flax', 'torch', 'pycocotools'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_text_on_the_page_is_text(tmp_path):
    path = miniature.own(tmp_path)
    row = {"image": "pictures/a.png", "prefix": "<b>x</b>" * 6, "suffix": "<script>a()</script>"}
    path.write_text(json.dumps(row) + "\n")
    assert evaluate("own", path, tmp_path / "out") == 0
    page = (tmp_path / "out" / "worst.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_page_escapes_names_that_are_no_utf8(tmp_path):
    atomic_write(tmp_path / "worst.html", "caf\udce9.png")
    assert (tmp_path / "worst.html").read_text(encoding="utf-8") == "caf\\udce9.png"


@pytest.mark.parametrize("name", ["coco-detection", "refcoco-masks"])
def test_pycocotools_is_asked_for_before_the_model(tmp_path, capsys, monkeypatch, name):
    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(evaluate_command, "load_pipeline", loaded)
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    miniature.DATA_SETS[name][1](tmp_path)
    assert evaluate(name, tmp_path, tmp_path / "out") == 2
    assert 'pip install "florence-jax[evaluate]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prefix", "status"),
    [("<OD>", 2), ("<REFERRING_EXPRESSION_SEGMENTATION>a cat", 2), ("<OCR>", 0), ("<CAPTION>", 0)],
)
def test_own_rows_need_pycocotools_by_their_tasks(tmp_path, capsys, monkeypatch, prefix, status):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    row = {"image": "a.png", "prefix": prefix, "suffix": "a"}
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row))
    assert evaluate("own", data, tmp_path / "out", "--dry-run") == status
    err = capsys.readouterr().err
    assert ("pycocotools" in err) == (status == 2)
    assert ("METEOR is left out" in err) == (prefix == "<CAPTION>")
