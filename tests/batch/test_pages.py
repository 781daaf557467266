"""`--all-pages`: a row for each page of every kind of source, and a note where it is not given."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from florence_jax.batch.image_reader import ImagePage, open_image
from florence_jax.batch.job import block_rows
from florence_jax.batch.reader_pool import WorkerPool
from florence_jax.batch.sources.open import open_source
from florence_jax.cli.main import main
from florence_jax.inference.predict import Page, pages_of
from florence_jax.inference.requests import Query
from tests.batch.fakes import SumOfPixels
from tests.batch.test_sources import check_stretches
from tests.random_pipeline import random_checkpoint

OD = Query(prompt="<OD>")


@pytest.fixture
def predict():
    """`florence-jax predict` with a tiny model, asked for <OD>."""
    options = ["--max-new-tokens", "6", "--beams", "1", "--batch-size", "2"]
    own = ["predict", "--model", str(random_checkpoint()), *options, "--quiet", "--task", "<OD>"]
    return lambda *arguments: main([*own, *map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    Image.new("RGB", (9, 8)).save(folder / "a.png")
    pages = [Image.new("RGB", (10 + number, 8), (80 * number, 0, 0)) for number in range(3)]
    pages[0].save(folder / "b.tif", save_all=True, append_images=pages[1:])
    (folder / "c.tif").write_bytes(b"no picture")
    Image.new("RGB", (7, 8)).save(folder / "d.png")
    return folder


def names(folder):
    return [f"{folder}/a.png", *(f"{folder}/b.tif#page={n}" for n in (1, 2, 3)),
            f"{folder}/c.tif", f"{folder}/d.png"]  # fmt: skip


def widths(items):
    return [open_image(item.image).width for item in items]


def test_directories_and_lists(folder, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in sorted(folder.iterdir())))
    for place in (folder, listed):
        items = check_stretches(open_source([place], [OD], all_pages=True))
        assert [item.id for item in items] == names(folder)
        assert widths(items[:4] + items[5:]) == [9, 10, 11, 12, 7]
        assert [item.extra.get("page") for item in items] == [None, 1, 2, 3, None, None]
        assert all(item.queries == (OD,) for item in items)
        assert [item.id for item in open_source([place], [OD]).read(0, 9)] == [
            str(path) for path in sorted(folder.iterdir())
        ]


def test_rows_and_tars(folder, tmp_path):
    rows = folder / "rows.jsonl"
    rows.write_text(
        '{"image": "b.tif", "task": "<OCR>", "id": "mine", "page": "cover"}\n'
        '{"image": "b.tif", "task": "<OD>"}\n'
        '{"image": "../x.tif", "task": "<OD>"}\n{"image": 3}\n'
    )
    items = check_stretches(open_source([rows], all_pages=True))
    assert [item.id for item in items] == [
        *(f"mine#page={n}" for n in (1, 2, 3)),
        *(f"{rows}:1#page={n}" for n in (1, 2, 3)),
        f"{rows}:2",
        f"{rows}:3",
    ]
    assert [item.extra.get("page") for item in items[:6]] == ["cover"] * 3 + [1, 2, 3]
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(folder / "b.tif", "scan.tif")
    items = check_stretches(open_source([tar], [OD], all_pages=True))
    assert widths(items) == [10, 11, 12]


def test_the_pages_are_pinned_with_their_pictures(folder):
    def pinned():
        source = open_source([folder], [OD], all_pages=True)
        return source.fingerprint, list(zip(source.ids(), source.pins(), strict=True))

    before = pinned()
    assert before == pinned()
    assert before[0] != open_source([folder], [OD]).fingerprint
    Image.new("RGB", (2, 2)).save(folder / "b.tif")
    assert before[1] != pinned()[1]


def test_a_file_of_too_many_pages_is_an_error_row(folder, monkeypatch):
    monkeypatch.setattr("florence_jax.processing.image.load.MAX_PAGES", 2)
    items = list(open_source([folder], [OD], all_pages=True).read(0, 9))
    rows = block_rows(items, SumOfPixels(), WorkerPool(0))
    assert [row["id"] for row in rows] == [str(path) for path in sorted(folder.iterdir())]
    assert "b.tif' has 3 pages; at most 2 are read" in rows[1]["error"]


def test_the_first_page_has_a_note_in_its_row(folder):
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(folder / "e.tif")
    items = list(open_source([folder], [OD]).read(0, 9))
    rows = block_rows(items, SumOfPixels(), WorkerPool(0))
    assert [row.get("image_note", "")[:30] for row in rows] == [
        "", "an image has several pages or ", "", "", "a 16-bit image has no value ab"]  # fmt: skip
    assert rows[4]["sum"] == 255 * 48
    pages = list(open_source([folder], [OD], all_pages=True).read(0, 9))
    assert isinstance(pages[1].image, ImagePage)
    rows = block_rows(pages, SumOfPixels(), WorkerPool(0))
    assert [row.get("width") for row in rows] == [9, 10, 11, 12, None, 7, 4]
    assert rows[1]["image"] == f"{folder}/b.tif"
    assert not any("image_note" in row for row in rows[:-1])


@pytest.mark.parametrize("into_directory", [False, True])
def test_the_command(folder, tmp_path, capsys, predict, into_directory):
    output = tmp_path / "out"
    place = (
        ["--output-dir", output, "--workers", "0"]
        if into_directory
        else ["--save-images", tmp_path / "drawn"]
    )
    assert predict(folder, "--all-pages", *place) == 1
    text = next(output.glob("*.jsonl")).read_text() if into_directory else capsys.readouterr().out
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row.get("id", row.get("image")) for row in rows] == names(folder)
    assert [row.get("page") for row in rows] == [None, 1, 2, 3, None, None]
    assert [row.get("width") for row in rows] == [9, 10, 11, 12, None, 7]
    assert rows[2]["image"] == f"{folder}/b.tif"
    if not into_directory:
        drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
        assert drawn == ["a.od.png", *(f"b.page{n}.od.png" for n in (1, 2, 3)), "d.od.png"]
        assert predict(folder) == 1
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert ["several pages" in row.get("image_note", "") for row in rows] == [
            False, True, False, False]  # fmt: skip


def test_pages_of_paths(folder):
    tiff = folder / "b.tif"
    others = [folder / "a.png", folder / "none.tif"]
    assert pages_of([*others, tiff]) == [*others, *(Page(tiff, n) for n in (1, 2, 3))]


def test_an_animation_in_memory():
    frames = [Image.new("RGB", (6, 5), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    page = open_image(ImagePage(buffer.getvalue(), 2))
    assert page.getpixel((0, 0)) == (0, 0, 255)
