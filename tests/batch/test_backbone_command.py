"""`florence-jax embed` and `classify`: the API's values, runs that go on, and wrong calls."""

import functools
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

import florence_jax as fj
from florence_jax.batch.backbone_job import shortest_numbers
from florence_jax.batch.vector_file import read_vectors
from florence_jax.cli.main import main
from florence_jax.processing.image.crop import preprocess_crop
from tests.backbone.timm_reference import DATA
from tests.batch.fakes import write_pictures
from tests.sharding.subprocesses import environment

ROOT = Path(__file__).resolve().parents[2]
MODEL = DATA / "paper"  # 5 classes
BATCH = 2


@functools.cache
def loaded():
    return fj.load_backbone(MODEL)


def expected(function, paths):
    """`function` of the backbone for pictures in batches of two, as the job has them."""
    backbone, params = loaded()
    pixels = [preprocess_crop(path, backbone.config.image) for path in paths]
    pixels += pixels[-1:] * (len(pixels) % BATCH)
    found = [
        getattr(backbone, function)(params, np.stack(pixels[at : at + BATCH]))
        for at in range(0, len(pixels), BATCH)
    ]
    return np.concatenate(found)[: len(paths)]


def run(*arguments):
    options = ["--batch-size", BATCH, "--workers", "0", "--quiet"]
    return main([str(word) for word in (arguments[0], *arguments[1:], *options)])


def embed(*arguments, model=MODEL):
    return run("embed", *arguments, "--model", model)


def classify(*arguments, model=MODEL):
    return run("classify", *arguments, "--model", model)


def rows_of(directory):
    blocks = sorted(directory.glob("block-*.jsonl"))
    return [json.loads(line) for block in blocks for line in block.read_text().splitlines()]


@pytest.fixture
def pictures(tmp_path):
    """Five files: 001 is broken, and 004 has the bytes of 000."""
    paths = write_pictures(tmp_path / "pictures", 4, (40, 30), broken=(1,))
    paths.append(paths[0].with_name("004.png"))
    shutil.copy(paths[0], paths[4])
    return paths


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_are_those_of_the_api(pictures, tmp_path, dtype):
    out = tmp_path / "out"
    command = [pictures[0].parent, "--output-dir", out, "--block-size", 2, "--vectors", dtype]
    assert embed(*command, "--format", "npy") == 1, "a picture is broken"
    rows = rows_of(out)
    assert [row["id"] for row in rows] == list(map(str, pictures))
    assert "is not an image" in rows[1]["error"]
    assert "embedding" not in rows[1]
    # The blocks: 0 and a broken one, 2 and 3, 4.
    wanted = [expected("embed", group) for group in ([pictures[0]], pictures[2:4], pictures[4:])]
    vectors = np.concatenate(wanted).astype(dtype)
    good = [row for row in rows if "error" not in row]
    for row, vector, path in zip(good, vectors, [pictures[0], *pictures[2:]], strict=True):
        assert (row["width"], row["height"], row["sha256"]) == (40, 30, digest(path))
        np.testing.assert_array_equal(np.array(row["embedding"], dtype), vector)
    digests, stored = read_vectors(out)
    assert digests == [digest(path) for path in (pictures[0], *pictures[2:4])], "each image once"
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, vectors[:3])
    assert main(["verify-output", str(out)]) == 0


def test_parquet_has_typed_columns(pictures, tmp_path, capsys):
    folder, out = pictures[0].parent, tmp_path / "out"
    command = [folder, "--output-dir", out, "--format", "parquet"]
    assert embed(*command, "--vectors", "float16") == 1
    table = parquet.read_table(out)
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float16())
    vector = table.column("embedding")[0].as_py()
    np.testing.assert_array_equal(
        np.array(vector, np.float16), expected("embed", pictures[:1])[0].astype(np.float16)
    )
    assert table.column("embedding")[1].as_py() is None
    assert embed(*command[:3], "--format", "npy", "--vectors", "float16") == 2
    assert "embeddings.npy would make it unreadable" in capsys.readouterr().err
    assert embed(*command) == 2
    assert 'job.vectors: "float16" there, "float32" here' in capsys.readouterr().err

    assert classify(folder, "--output-dir", tmp_path / "classes", "--format", "parquet") == 1
    row = parquet.read_table(tmp_path / "classes").to_pylist()[0]
    assert row["sha256"] == digest(pictures[0])
    assert [sorted(one) for one in row["classes"]] == [["class", "name", "probability"]] * 5
    assert row["extra"] is None


def test_classes_are_those_of_the_api(pictures, tmp_path, capsys):
    names = ["ant", "bee", "cat", "dog", "eel"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    good = [pictures[0], pictures[2]]
    assert classify(*good, "--top", 3, "--names", tmp_path / "names.txt") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    logits = torch.tensor(expected("logits", good))
    probabilities, classes = torch.softmax(logits, 1).topk(3)
    for row, values, numbers in zip(rows, probabilities, classes, strict=True):
        assert [one["class"] for one in row["classes"]] == numbers.tolist()
        assert [one["name"] for one in row["classes"]] == [names[n] for n in numbers]
        found = [one["probability"] for one in row["classes"]]
        np.testing.assert_allclose(found, values.numpy(), rtol=1e-6)
    assert classify(good[0], "--top", 9) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [sorted(one) for one in row["classes"]] == [["class", "probability"]] * 5
    assert sum(one["probability"] for one in row["classes"]) == pytest.approx(1, abs=1e-6)


def test_rows_of_data_ask_nothing(pictures, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"image": "pictures/000.png", "id": "a", "truth": 3, "task": "<OD>"}\n'
        '{"image": "pictures/002.png", "sha256": "mine"}\n'
    )
    assert embed(rows) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["id"], first["truth"], first["image"]) == ("a", 3, "pictures/000.png")
    assert "the columns ['sha256'] are the output's own" in second["error"]


def test_a_killed_run_goes_on(tmp_path):
    pictures = tmp_path / "pictures"
    write_pictures(pictures, 60, (40, 30))
    command = [pictures, "--model", MODEL, "--block-size", 2, "--format", "npy"]
    program = [sys.executable, "-m", "florence_jax", "embed", *command]
    options = ["--batch-size", BATCH, "--workers", "0", "--quiet", "--output-dir", tmp_path / "out"]
    process = subprocess.Popen([str(word) for word in (*program, *options)], cwd=ROOT)
    while not (before := {path: path.stat() for path in (tmp_path / "out").glob("block-*.jsonl")}):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(before) < 30
    assert embed(*command, "--output-dir", tmp_path / "out") == 0
    for path, status in before.items():
        assert path.stat().st_mtime_ns == status.st_mtime_ns, "a finished block was done again"
    assert embed(*command, "--output-dir", tmp_path / "whole") == 0
    for path in (tmp_path / "whole").glob("[be]*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert main(["verify-output", "--quiet", str(tmp_path / "out")]) == 0


def test_added_images_come_into_the_array(tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    (first,) = write_pictures(folder, 1)
    command = [folder, "--output-dir", out]
    assert embed(*command, "--format", "npy") == 0
    write_pictures(folder / "more", 2)  # the first of them has the same bytes
    assert embed(*command, "--extend") == 0
    digests, vectors = read_vectors(out)
    assert digests == [digest(first), digest(folder / "more" / "001.png")]
    assert len(vectors) == 2


def test_several_devices_share_each_batch(tmp_path, compiled_on_disk):
    paths = write_pictures(tmp_path / "pictures", 5, (40, 30))
    out = tmp_path / "out"
    command = [
        "embed",
        tmp_path / "pictures",
        "--model",
        MODEL,
        "--output-dir",
        out,
        "--workers",
        0,
    ]
    program = [sys.executable, "-m", "florence_jax", *command, "--batch-size", 1, "--quiet"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled_on_disk)}
    subprocess.run(list(map(str, program)), cwd=ROOT, env=environment(4, **cache), check=True)
    job = json.loads((out / "run.json").read_text())["job"]
    assert (job["mesh"]["data"], job["batch_rows"]) == (4, 4)
    found = np.array([row["embedding"] for row in rows_of(out)], np.float32)
    # Sums of float32 in another order.
    np.testing.assert_allclose(found, expected("embed", paths), atol=2e-5)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (classify, ["--names", "NAMES"], "there are 2 names for a classifier of 5 classes"),
        (classify, ["--names", "BLANK"], "blank.txt: line 2 is blank, expected the name of a"),
        (embed, ["--format", "npy"], "--format belongs to --output-dir: give both"),
        (embed, ["--extend"], "--extend belongs to --output-dir"),
        (embed, ["--rules", "dp"], "--rules belongs to --mesh"),
    ],
)
def test_wrong_calls_end_with_a_sentence(pictures, tmp_path, capsys, command, arguments, message):
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    (tmp_path / "blank.txt").write_text("ant\n\nbee\n")
    files = {name.upper(): str(tmp_path / f"{name}.txt") for name in ("names", "blank")}
    words = [files.get(word, word) for word in arguments]
    assert command(pictures[0], *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_tower_without_a_classifier_and_a_model_that_is_none(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert classify(pictures[0], "--output-dir", out, model=DATA / "florence") == 2
    assert "this tower has no classifier: name a model with one" in capsys.readouterr().err
    assert not list(out.glob("*block*"))
    assert embed(pictures[0], model=tmp_path / "nothing") == 2
    assert "nothing" in capsys.readouterr().err


def test_a_dry_run_loads_nothing(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    command = [pictures[0].parent, "--output-dir", out, "--block-size", 2, "--dry-run"]
    assert embed(*command, model=tmp_path / "nothing") == 0
    assert f"5 images; model: {tmp_path / 'nothing'}\n3 blocks of 2" in capsys.readouterr().out
    assert not out.exists()


def test_an_embedding_beyond_float16_is_an_error_row(pictures, tmp_path, capsys):
    backbone, params = loaded()
    norm = params["head"]["norm"]
    head = params["head"] | {"norm": norm | {"scale": norm["scale"] * 1e6}}
    fj.save_backbone(tmp_path / "large", backbone.config, params | {"head": head})
    assert embed(pictures[0], "--vectors", "float16", model=tmp_path / "large") == 1
    row = json.loads(capsys.readouterr().out)
    assert row["error"] == "its embedding has values that float16 cannot hold"


def test_numbers_are_read_back_as_they_were():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16):
        vector = rng.standard_normal(5000).astype(dtype) * dtype(0.01)
        found = shortest_numbers(vector)
        np.testing.assert_array_equal(np.array(found, dtype), vector)
        assert max(map(len, map(str, found))) < 16
