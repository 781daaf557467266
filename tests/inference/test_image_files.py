"""Which files are found in folders and lists, and what is said of the others."""

import os
import re
import socket
import unicodedata

import pytest
from PIL import Image

from florence_jax.inference.image_files import find_images, folder_content
from florence_jax.processing.image.formats import FORMATS
from florence_jax.processing.image.load import load_image
from florence_jax.processing.image.suffixes import IMAGE_SUFFIXES
from tests.shared_data import needs_shared, shared_path


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(folder, said=None):
    paths = find_images([folder], None if said is None else said.append)
    return [str(path.relative_to(folder)) for path in paths]


def test_every_suffix_of_a_format_that_is_decoded_is_an_image():
    Image.init()
    own = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert own - IMAGE_SUFFIXES == set()
    # Those are images too where nothing decodes them: an error row, and no silence.
    assert {".heic", ".heif", ".hif", ".avif"} <= IMAGE_SUFFIXES


def test_all_suffixes_are_found_in_any_case(tmp_path):
    names = sorted(f"a{suffix}" for suffix in IMAGE_SUFFIXES)
    touch(tmp_path, *names, *(name.upper() for name in names))
    assert found(tmp_path) == sorted([*names, *(name.upper() for name in names)])


def test_folders_named_like_pictures_are_folders(tmp_path):
    touch(tmp_path, "sub.png/inner.png", "sub.png/deeper.jpg/x.jpg", "a.png")
    assert found(tmp_path) == ["a.png", "sub.png/deeper.jpg/x.jpg", "sub.png/inner.png"]


def test_what_is_skipped_is_counted_and_said(tmp_path):
    touch(tmp_path, "a.png", "b.txt", "c.TXT", "README", "shard.tar", "._a.png", "x/.DS_Store",
          "__MACOSX/._a.png", "__MACOSX/x/b.png", "x/.ipynb_checkpoints/a-checkpoint.png",
          "Thumbs.db", ".hidden.png")  # fmt: skip
    said = []
    assert found(tmp_path, said) == [".hidden.png", "a.png"]
    (sentence,) = said
    assert sentence.startswith(f"{tmp_path}: 2 images, skipped 10: ")
    for part in ("2 .txt", "1 without a suffix", "1 .tar", "1 ._* (macOS)", "1 .DS_Store",
                 "2 in __MACOSX", "1 in .ipynb_checkpoints", "1 Thumbs.db"):  # fmt: skip
        assert part in sentence
    assert find_images([tmp_path / "a.png"], said.append) == [tmp_path / "a.png"]
    assert len(said) == 1


def test_nothing_is_said_of_a_folder_of_images_alone(tmp_path):
    touch(tmp_path, "a.png", "x/b.png")
    said = []
    assert found(tmp_path, said) == ["a.png", "x/b.png"]
    assert said == []


def test_a_folder_of_leftovers_says_what_it_skipped(tmp_path):
    touch(tmp_path, "._a.png", "b.mp4")
    with pytest.raises(ValueError, match=r"holds no image.*skipped 2: 1 \._\* \(macOS\), 1 \.mp4"):
        find_images([tmp_path])


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    photos, disk = tmp_path / "photos", tmp_path / "disk"
    touch(photos, "a.png", "z/b.png")
    touch(disk, "c.png", "deeper/d.png")
    (photos / "2024").symlink_to(disk)
    (photos / "again").symlink_to(disk)
    (photos / "inside").symlink_to(photos / "z")
    (photos / "z" / "up").symlink_to(photos)
    (photos / "further-up").symlink_to(tmp_path)
    (photos / "e.png").symlink_to(disk / "c.png")
    (photos / "nowhere.png").symlink_to(disk / "nowhere.png")
    (disk / "loop").symlink_to(disk)
    said = []
    assert found(photos, said) == [
        "2024/c.png", "2024/deeper/d.png", "a.png", "e.png", "nowhere.png", "z/b.png"
    ]  # fmt: skip
    assert "3 linked folders that were read already" in said[0]
    assert "2 linked folders that lead to a folder above" in said[0]


def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "private/b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # tests may run as root, whom no rights keep out
    with pytest.raises(ValueError, match=r"private cannot be read \(Permission denied\)"):
        find_images([tmp_path])


@pytest.mark.parametrize("kind", ["a pipe (FIFO)", "a socket", "a device"])
@pytest.mark.parametrize("suffix", [".png", ".txt", ".tar", ".jsonl"])
def test_pipes_and_devices_are_called_so(tmp_path, kind, suffix, monkeypatch):
    from florence_jax.batch.sources.open import open_source

    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = f"x{suffix}"
    if kind == "a pipe (FIFO)":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path)
    else:
        os.symlink("/dev/zero", path)
    for read in (find_images, open_source):
        message = re.escape(f"x{suffix} is {kind}, expected a regular file")
        with pytest.raises(ValueError, match=message):
            read([path])


def test_lists_of_every_system(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_bytes("\ufeffa.png\r\n\r\n b c.png \nd\u2028.png\ne\x85\n".encode())
    names = ["a.png", "b c.png", "d\u2028.png", "e\x85"]
    assert [str(path) for path in find_images([listing])] == names
    listing.write_bytes(b"a.png\ncaf\xe9.png\n")
    with pytest.raises(ValueError, match=r"list\.txt is not UTF-8: byte 0xe9.*line 2"):
        find_images([listing])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "rows.jsonl.gz", "photos.zip", "a.7z"])
def test_archives_are_refused_by_name(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(ValueError, match=f"{name} is a compressed file: unpack it first"):
        find_images([tmp_path / name])


def test_a_missing_file_that_is_spelled_otherwise_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / unicodedata.normalize("NFD", "café.png"))
    asked = tmp_path / unicodedata.normalize("NFC", "café.png")
    with pytest.raises(FileNotFoundError, match=r"another Unicode form: '.*cafe\\u0301"):
        find_images([asked])
    with pytest.raises(ValueError, match="another Unicode form"):
        load_image(asked)
    (tmp_path / "folder").mkdir()
    touch(tmp_path, "folder/a.jpg")
    with pytest.raises(ValueError, match=r"folder/a.jpg' does: write slashes"):
        load_image(f"{tmp_path}/folder\\a.jpg")


@needs_shared
def test_the_folder_from_the_field():
    folder = shared_path("..", "field", "folder")
    content = folder_content(folder)
    names = ["a.png", "b.jfif", "c.JPG", "f.jp2", "g.pgm", "h.dib", "sub.png/inner.png"]
    assert [os.path.relpath(path, folder) for path in content.images] == names
    assert content.skipped == {"._* (macOS)": 1, "in __MACOSX": 1, "in .ipynb_checkpoints": 1}
    for path in content.images:
        load_image(path)
