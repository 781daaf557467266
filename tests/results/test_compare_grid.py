"""Sheets of results: whole titles, marks that differ in shape, colours that differ."""

import numpy as np
import pytest
from PIL import Image

from florence_jax.results import compare_grid
from florence_jax.results.compare_grid import distinct_colours, enlarged, save_side_by_side
from florence_jax.results.draw import label_colour
from florence_jax.results.text_writer import TextWriter

GREY = (128, 128, 128)
LONG = (
    "<CAPTION_TO_PHRASE_GROUNDING> The image shows a star, a moon, a cross and 日本 beside a tree."
)


def result(*labels):
    boxes = [[20 + 90 * n, 60, 90 + 90 * n, 200] for n in range(len(labels))]
    return {"<OD>": {"bboxes": boxes, "labels": list(labels)}}


@pytest.fixture
def written(monkeypatch):
    """Every line of text that is drawn, in order."""
    lines = []
    write = TextWriter.write
    monkeypatch.setattr(
        TextWriter, "write", lambda self, *a: (lines.append(a[2]), write(self, *a))[1]
    )
    return lines


def sheet(tmp_path, titled, **options):
    path = tmp_path / "deeper" / "sheet.png"
    save_side_by_side(path, enlarged(Image.new("RGB", (448, 448), GREY)), titled, **options)
    with Image.open(path) as picture:
        return picture.convert("RGB")


def test_titles_and_notes_are_whole(tmp_path, written):
    short = sheet(tmp_path, {"truth": result("star")})
    written.clear()
    long = sheet(tmp_path, {LONG: result("star")}, note="A note that is longer than a line. " * 4)
    text = " ".join(written)
    assert LONG in text
    assert "A note that is longer than a line. A note" in text
    assert long.height > short.height
    assert "?" not in text
    assert "…" not in text


def colours_of(picture, box):
    return set(map(tuple, np.asarray(picture.crop(box)).reshape(-1, 3).tolist()))


def test_marks_differ_in_colour_and_shape(tmp_path):
    sheets = {
        right: sheet(tmp_path, {"answer": result("star")}, right={"answer": right})
        for right in (True, False)
    }
    marks = {right: one.crop((12, 8, 34, 30)) for right, one in sheets.items()}
    assert compare_grid._RIGHT in colours_of(marks[True], (0, 0, 22, 22))
    assert compare_grid._WRONG in colours_of(marks[False], (0, 0, 22, 22))
    strokes = [np.asarray(one.convert("L")) > 200 for one in marks.values()]
    assert (strokes[0] != strokes[1]).mean() > 0.1, "told apart without colour"
    plain = sheet(tmp_path, {"answer": result("star")})
    assert compare_grid._RIGHT not in colours_of(plain, (0, 0, plain.width, plain.height))


def test_labels_of_one_sheet_have_colours_of_their_own(tmp_path):
    names = ["star", "moon", "cross", "heart", "circle", "square", "triangle", "word", "ring"]
    assert len({label_colour(name) for name in names}) < len(names), "they clash by themselves"
    colours = distinct_colours(names)
    assert len(set(colours.values())) == len(names)
    assert distinct_colours(["cat"])["cat"] == label_colour("cat")
    assert len(distinct_colours([*names, "more", ""])) == len(names) + 1

    same = next(
        (one, other) for one in names for other in names
        if one < other and label_colour(one) == label_colour(other)
    )  # fmt: skip
    picture = sheet(tmp_path, {"truth": result(*same), "answer": result(*same[::-1])})
    drawn = colours_of(picture, (0, 0, picture.width, picture.height))
    chosen = distinct_colours(same)
    assert {chosen[name] for name in same} <= drawn
