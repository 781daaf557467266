"""A missing file whose name is only spelled otherwise is named."""

import pytest

from florence_jax.runtime.text_file import missing_file_hint, spelled_otherwise

NFC, NFD = "caf\u00e9.png", "cafe\u0301.png"


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (NFC, NFD),
        (NFD, NFC),
        ("folder/a.jpg", "folder\\a.jpg"),
        (f"folder/{NFD}", f"folder\\{NFC}"),
    ],
)
def test_the_other_spelling_is_found(tmp_path, there, asked):
    path = tmp_path / there
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert spelled_otherwise(f"{tmp_path}/{asked}") == str(path)
    hint = missing_file_hint(tmp_path / asked)
    assert ("write slashes for backslashes" in hint) == ("\\" in asked)
    assert ("another Unicode form" in hint) == ("\\" not in asked)
    hint.encode("ascii" if "\\" not in asked else "utf-8")


@pytest.mark.parametrize("asked", ["b.png", "a\0.png", "cut \udce9.png", "x" * 300, NFC])
def test_nothing_is_said_where_there_is_none(tmp_path, asked):
    (tmp_path / "a.png").touch()
    assert missing_file_hint(f"{tmp_path}/{asked}") == ""
