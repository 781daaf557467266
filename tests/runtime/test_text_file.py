"""Text, JSON and JSON Lines files: one decoder, one idea of a line."""

import json
import os

import pytest

from florence_jax.runtime.text_file import (
    TextFileError,
    json_lines,
    numbered_lines,
    parse_json,
    read_json,
    read_text,
    split_lines,
)


def test_a_line_ends_at_a_newline_only():
    assert split_lines("a\u2028b\r\nc\x85d\x0ce\n\nf") == ["a\u2028b", "c\x85d\x0ce", "", "f"]
    assert split_lines("") == []


def test_rows_keep_their_line_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": "x\u2028y"}\r\n\n{"b": 2}'.encode())
    assert list(json_lines(path)) == [(1, {"a": "x\u2028y"}), (3, {"b": 2})]
    assert [number for number, _ in numbered_lines(path)] == [1, 3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"caf\xe9\n", r"is not UTF-8: byte 0xe9 at offset 3 \(line 1\)"),
        ("{}".encode("utf-16"), "is UTF-16"),
        (b"[1]\n", "line 1 is a JSON list, expected an object"),
        (b'{"a": 1}\n{"a"\n', "line 2 is not JSON"),
    ],
)
def test_the_fault_and_its_place_are_named(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(TextFileError, match=said) as raised:
        list(json_lines(path))
    assert str(path) in str(raised.value)


def test_deep_json_is_an_error_with_its_place():
    with pytest.raises(TextFileError, match="here is nested too deeply"):
        parse_json("[" * 100_000 + "]" * 100_000, "here")


def test_pipes_and_folders_are_refused_before_they_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TextFileError, match=r"is a pipe \(FIFO\), expected a regular file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(TextFileError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


def test_a_cap_holds_before_the_file_is_in_memory(tmp_path):
    path = tmp_path / "big.json"
    path.write_text(json.dumps([0] * 100))
    assert read_json(path, max_bytes=300) == [0] * 100
    with pytest.raises(TextFileError, match="larger than 50 bytes"):
        read_json(path, max_bytes=50)


def test_a_large_file_is_refused_by_its_size_and_a_pipe_before_it_is_opened(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(TextFileError, match=r"large\.json is larger than 1000 bytes"):
        read_json(path, max_bytes=1000)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TextFileError, match=r"large\.json is a pipe \(FIFO\)"):
        read_json(path, max_bytes=1000)
