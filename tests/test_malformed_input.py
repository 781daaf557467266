"""Malformed text, JSON and rows: an error row or one sentence, never a traceback."""

import json
import random

import pytest

from florence_jax.batch.job import Item
from florence_jax.batch.sources.rows import RowReader
from florence_jax.cli.main import main
from florence_jax.inference.requests import Query
from florence_jax.runtime.text_file import json_lines, numbered_lines, read_json

SEEDS = 150
PIECES = (
    b'{"image": "a.png"', b"}", b"{", b"[", b"]", b'"', b",", b":", b"\n", b"\r\n", b"\0",
    b"\xff\xfe", b"\xef\xbb\xbf", "\u2028\u0085".encode(), b"\xe9", b"null", b"NaN", b"1e999",
    b"1" * 5000, b"[" * 50_000, b'"\\ud83d"', b"true", b'"task": 3', b'"region": [0, 0, 1',
)  # fmt: skip


def malformed(seed):
    rng = random.Random(seed)
    return b"".join(rng.choices(PIECES, k=rng.randint(0, 12)))


@pytest.mark.parametrize("read", [json_lines, numbered_lines, read_json])
def test_text_readers_raise_what_mains_understand(tmp_path, read):
    path = tmp_path / "rows.jsonl"
    for seed in range(SEEDS):
        path.write_bytes(malformed(seed))
        said = str(path)
        try:
            found = read(path)
            if read is not read_json:
                list(found)
        except (ValueError, OSError) as error:
            said = str(error)
        assert str(path) in said


VALUES = (
    None, True, 0, -1, 10**400, 1e308, "", "x" * 9999, "\ud83d", b"\x89PNG", [], [[]], {},
    {"a": []}, [0, 0, 10**400, 5], ["a", 1], {"bytes": None, "path": None}, {"path": "../../x"},
)  # fmt: skip


def test_any_row_becomes_an_item():
    reader, rng = RowReader(queries=(Query(prompt="<OD>"),), root="."), random.Random(0)
    names = ("id", "image", "image_base64", "task", "queries", "text", "region", "labels", "width")
    for number in range(2000):
        row = {name: rng.choice(VALUES) for name in rng.sample(names, rng.randint(0, 5))}
        item = reader.item(f"rows:{number}", row)
        assert isinstance(item, Item)
        assert item.error is None or "Traceback" not in item.error
    for value in VALUES:
        if not isinstance(value, dict):
            assert reader.item("rows:0", value).error is not None


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.tar", "list.txt"])
def test_the_command_ends_with_a_sentence_or_a_plan(tmp_path, capsys, name):
    for seed in range(25):
        (tmp_path / name).write_bytes(malformed(seed))
        status = main(
            ["predict", str(tmp_path / name), "--task", "<OD>", "--output-dir",
             str(tmp_path / "out"), "--dry-run"]
        )  # fmt: skip
        said = capsys.readouterr().err
        assert status in (0, 2)
        assert "Traceback" not in said
        assert "a mistake in this program" not in said
        assert (status == 2) == said.startswith("florence-jax: ")
    assert not (tmp_path / "out").exists()


def test_a_saved_evaluation_of_malformed_rows_is_refused(tmp_path, capsys):
    path = tmp_path / "own.jsonl"
    for seed in range(25):
        path.write_bytes(malformed(seed) + json.dumps({"image": "a.png"}).encode())
        assert main(["evaluate", "own", "--data", str(path), "--dry-run"]) in (0, 2)
        assert "Traceback" not in capsys.readouterr().err
