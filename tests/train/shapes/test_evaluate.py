"""A checkpoint's report card on the world, and the bundle with it: a random model's, near 0."""

import json

import pytest

from convert.to_torch import main as to_torch
from florence_jax.processing import TASKS
from tests.annotation.tiny_recipe import save_random
from train.shapes import bundle, evaluate
from train.shapes.judge import judge
from train.shapes.world import ShapesWorld


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, compiled_on_disk):
    folder = tmp_path_factory.mktemp("random")
    save_random(folder / "ours")
    assert (
        to_torch([str(folder / "ours"), str(folder / "torch"), "--naming", "native", "--quiet"])
        == 0
    )
    return folder / "torch"


def test_every_task_is_judged_on_scenes_of_the_models_size(checkpoint, tmp_path, capsys):
    arguments = ["--scenes", "2", "--task", "<OD>", "--task", "<REGION_TO_CATEGORY>"]
    output = tmp_path / "figures.json"
    assert evaluate.main([str(checkpoint), *arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(output.read_text())
    assert list(figures) == ["<OD>", "<REGION_TO_CATEGORY>"]
    assert figures["<REGION_TO_CATEGORY>"]["exact"] < 1.0
    assert "| `<OD>` | mAP@0.5 | 0." in printed
    assert evaluate.main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_the_bundle_holds_the_model_its_card_and_scenes_that_were_not_judged(
    checkpoint, tmp_path, capsys
):
    folder = tmp_path / "bundle"
    words = ["--judged", "1", "--shown", "1", "--provenance", "Drawn at random."]
    assert bundle.main([str(checkpoint), str(folder), *words]) == 0
    card = (folder / "README.md").read_text()
    assert "Drawn at random." in card
    assert card.count("| 1 |") == len(TASKS)
    rows = [
        json.loads(line)
        for line in (folder / "scenes/test/annotations.jsonl").read_text().splitlines()
    ]
    assert {row["image"] for row in rows} == {"000001.png"}
    truth = ShapesWorld(split="held-out").questions(1)
    assert [row["prefix"].split(">")[0] for row in rows] == [q.task.rstrip(">") for q in truth]
    assert (folder / "model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()
    # What stands there is not lost by a slip of the keyboard.
    assert bundle.main([str(checkpoint), str(folder), *words]) == 1
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    assert bundle.main([str(checkpoint), str(tmp_path / "mine"), *words, "--overwrite"]) == 1
    assert (tmp_path / "mine/thesis.tex").exists()
    assert bundle.main([str(checkpoint), str(folder), *words, "--overwrite"]) == 0
    assert bundle.main([str(tmp_path), str(folder)]) == 1
    assert "must be a file of at most 16,000,000 bytes" in capsys.readouterr().err


def test_the_truth_itself_is_judged_right():
    world = ShapesWorld(split="held-out")
    rows = [
        evaluate.Answered(prefix=q.prefix, labels=q.suffix, answer=q.suffix, image_size=(224, 224))
        for q in world.questions(0)
    ]
    scores = judge(rows)
    assert list(scores) == list(TASKS)
    assert min(score.value for score in scores.values()) == 1.0
    assert evaluate.table(scores).count("1.000") == len(TASKS)
