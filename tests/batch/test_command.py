"""`florence-jax predict --output-dir` and `verify-output`, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from florence_jax.batch.exports import DrawAnswers
from florence_jax.batch.job import Item
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.cli.main import main
from tests.batch.fakes import write_pictures
from tests.random_pipeline import random_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures", 3, (40, 30), broken=(1,))
    return tmp_path / "pictures"


def predict(*arguments):
    options = ["--max-new-tokens", "6", "--beams", "1", "--batch-size", "2", "--workers", "0"]
    command = ["predict", "--model", random_checkpoint(), *options, "--quiet", *arguments]
    return main(list(map(str, command)))


def test_a_run_and_its_check(pictures, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"image": "pictures/0.png", "task": "<OD>", "truth": 3}\n'
        '{"image": "pictures/000.png", "task": "<OD>", "truth": 4}\n'
        '{"image": "../outside.png"}\n'
    )
    Image.new("RGB", (8, 8)).save(tmp_path.parent / "outside.png")
    output, drawn = tmp_path / "out", tmp_path / "drawn"
    command = [pictures, rows, "--task", "<CAPTION>", "--output-dir", output, "--block-size", "2",
               "--save-images", drawn]  # fmt: skip
    assert predict(*command, "--dry-run") == 0
    assert "6 images; tasks: <CAPTION>\n3 blocks of 2" in capsys.readouterr().out
    assert not output.exists()

    assert predict(*command) == 1, "some images are broken"
    lines = [line for path in sorted(output.glob("*.jsonl"))
             for line in path.read_text().splitlines()]  # fmt: skip
    made = [json.loads(line) for line in lines]
    ids = [f"{pictures}/00{n}.png" for n in range(3)] + [f"{rows}:{n}" for n in range(3)]
    assert [row["id"] for row in made] == ids
    for number, error in ((1, "is not an image"), (3, "does not exist"), (5, "leads out of")):
        assert error in made[number]["error"]
    assert [answer["prompt"] for answer in made[0]["answers"]] == ["<CAPTION>"]
    assert list(made[4]["answers"][0]["result"]) == ["<OD>"]
    assert (made[4]["truth"], made[4]["width"], made[4]["image"]) == (4, 40, "pictures/000.png")
    assert [path.name.rpartition("-")[0] for path in sorted(drawn.iterdir())] == [
        "000", "002", "rows"]  # fmt: skip
    for path in drawn.iterdir():
        with Image.open(path) as picture:
            assert picture.width >= 40

    assert main(["verify-output", str(output)]) == 0
    assert "6 rows, 3 of them errors\ncomplete" in capsys.readouterr().out
    (output / "block-00001-of-00003.jsonl").unlink()
    assert main(["verify-output", str(output)]) == 1
    assert "missing: block-00001-of-00003.jsonl" in capsys.readouterr().out
    assert predict(*command[:-2], "--dry-run") == 0
    said = capsys.readouterr().out
    assert "2 of them are there" in said
    assert "refused" not in said
    assert predict(*command[:-2], "--dry-run", "--format", "parquet") == 0
    said = capsys.readouterr().out
    assert f'refused, for {output} is of another run: blocks.format: "jsonl" there' in said
    assert predict(*command, "--max-new-tokens", "7") == 2
    assert "job.decoding.max_new_tokens: 6 there, 7 here" in capsys.readouterr().err
    assert predict(*command) == 1
    assert main(["verify-output", str(output)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["PICTURES", "--task", "<OD>", "--workers", "2"], "--workers belongs to --output-dir"),
        (["PICTURES"], "--task is missing"),
        (["ROWS", "--task", "<OD>"], "predict --output-dir DIR"),
        (["PICTURES", "--output-dir", "OUT"], "says nothing of a task"),
        (["PICTURES", "--task", "<OD>", "--output-dir", "OUT", "--output", "x"], "give one"),
        (["PICTURES", "--task", "<OD>", "--output-dir", "OUT", "--process-index", "1"],
         "belong together"),
        (["PICTURES", "--task", "<OD>", "--text", "cat", "--output-dir", "OUT"], "takes no input"),
        (["PICTURES", "--task", "<OD>", "--text", "cat", "--output-dir", "OUT", "--dry-run"],
         "takes no input"),
        (["PICTURES", "--task", "<OD>", "--output-dir", "OUT", "--overwrite"],
         "belongs to --output"),
        (["s3://photos", "--task", "<OD>", "--output-dir", "OUT"], "is a URL"),
        (["s3://photos", "--task", "<OD>"], "is a URL"),
        (["PICTURES", "--task", "<OD>", "--output-dir", "OUT", "--block-size", "0"],
         "a block of 0 items"),
    ],
)  # fmt: skip
def test_wrong_calls_end_with_a_sentence(pictures, tmp_path, capsys, arguments, message):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    places = {"PICTURES": pictures, "OUT": tmp_path / "out", "ROWS": tmp_path / "rows.jsonl"}
    words = [str(places.get(word, word)) for word in arguments]
    assert main(["predict", "--model", str(random_checkpoint()), "--quiet", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list((tmp_path / "out").glob("block-*"))


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_process_that_is_interrupted_says_how_to_go_on(tmp_path, signals):
    """Ctrl-C once finishes the blocks in hand; twice, nothing is finished and nothing lost."""
    write_pictures(tmp_path / "pictures", 120, (40, 30))
    command = [
        sys.executable, "-m", "florence_jax", "predict", tmp_path / "pictures", "--task", "<OD>",
        "--output-dir", tmp_path / "out", "--model", random_checkpoint(), "--max-new-tokens", "6",
        "--block-size", "10", "--batch-size", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / "out").glob("*.jsonl"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    error = ""
    # The second one at once: a moment later the blocks in hand may be finished.
    while "finishing the blocks in hand" not in error:
        line = process.stderr.readline()
        assert line, error
        error += line
    if signals == 2:
        process.send_signal(signal.SIGINT)
    error += process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert "the same command goes on" in error
    assert ("stopped at once" in error) == (signals == 2)
    assert main(["verify-output", "--quiet", str(tmp_path / "out")]) == 1
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert main(["verify-output", "--quiet", str(tmp_path / "out")]) == 0
    assert not os.path.exists(tmp_path / "out/.leases")


def test_a_picture_that_is_gone_is_not_drawn_and_stops_nothing(pictures, tmp_path, capsys):
    answer = {"prompt": "<CAPTION>", "result": {"<CAPTION>": "a cat"}}
    names = ["000.png", "gone.png", "002.png"]
    items = [Item(id=name, image=str(pictures / name)) for name in names]
    rows = [{"id": name, "answers": [answer, answer]} for name in names]
    pool = WorkerPool(0)
    DrawAnswers(tmp_path / "drawn")(items, rows, pool)
    pool.close()
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert [(name[:4], name.partition(".")[2]) for name in drawn] == [
        ("000-", "caption.2.png"), ("000-", "caption.png"),
        ("002-", "caption.2.png"), ("002-", "caption.png")]  # fmt: skip
    assert capsys.readouterr().err.count("is not drawn: ") == 2
