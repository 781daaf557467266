"""Rows in other tools' formats, read back by those tools' own readers."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from florence_jax.results.coco import CocoFile
from florence_jax.results.parquet import table_bytes, table_rows
from florence_jax.results.row_writer import CsvRows
from florence_jax.results.rows import UnsuitableRowError
from florence_jax.results.sidecars import SidecarPlaces, open_sidecars
from florence_jax.results.voc import voc_xml
from florence_jax.results.yolo import YoloClasses, count_labels, yolo_lines

SIZE = (200, 100)
BOXES = {
    "bboxes": [[20.0, 10.0, 120.0, 60.0], [150.4, 80.6, 199.8, 99.9]],
    "labels": ["cat", "a red dog"],
    "scores": [0.31, 0.12],
}
# The first object has two parts, as one behind a pole has.
OUTLINES = {
    "polygons": [
        [[10.0, 10.0, 50.0, 10.0, 50.0, 50.0, 10.0, 50.0], [80.0, 10.0, 90.0, 10.0, 90.0, 50.0]],
        [[100.0, 20.0, 140.0, 20.0, 140.0, 60.0]],
    ],
    "labels": ["cat", "dog"],
    "scores": [0.5, 0.25],
}
QUADS = {"quad_boxes": [[10.0, 12.0, 60.0, 10.0, 60.0, 30.0, 10.0, 32.0]], "labels": ["=1+1"],
         "scores": [0.4]}  # fmt: skip


def row(name, value, task="<OD>", **extra):
    answers = [{"prompt": task, "result": {task: value}, **extra}]
    return {"id": str(name), "width": SIZE[0], "height": SIZE[1], "answers": answers}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    for name in ("a.png", "b.png", "deeper/c.png"):
        Image.new("RGB", SIZE).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def write_sidecars(kind, folder, rows, **options):
    suffix = ".xml" if kind == "voc" else ".txt"
    places = SidecarPlaces(folder, None, suffix)
    with open_sidecars(kind, places, **{"overwrite": False, **options}) as sidecars:
        for one in rows:
            sidecars.write(one)
    return sidecars


def supervised(name, *arguments, **options):
    """The data set as supervision reads it: (classes, {file name: detections})."""
    supervision = pytest.importorskip("supervision")
    dataset = getattr(supervision.DetectionDataset, name)(*map(str, arguments), **options)
    found = {path.rpartition("/")[2]: one for path, one in dataset.annotations.items()}
    return dataset.classes, found


pytestmark = pytest.mark.filterwarnings("ignore:OpenCV")


def test_yolo_boxes_are_what_supervision_reads(folder):
    rows = [row(folder / "a.png", BOXES), row(folder / "b.png", {"bboxes": [], "labels": []})]
    write_sidecars("yolo", folder, rows)
    assert (folder / "a.txt").read_text().splitlines()[0] == "0 0.350000 0.350000 0.500000 0.500000"
    assert (folder / "b.txt").read_text() == ""
    assert (folder / "classes.txt").read_text() == "cat\na red dog\n"
    classes, found = supervised("from_yolo", folder, folder, folder / "data.yaml")
    assert classes == ["cat", "a red dog"]
    assert found["a.png"].class_id.tolist() == [0, 1]
    np.testing.assert_allclose(found["a.png"].xyxy, BOXES["bboxes"], atol=1e-3)
    assert len(found["b.png"]) == 0


def test_yolo_outlines_keep_every_part(folder):
    write_sidecars("yolo", folder, [row(folder / "a.png", OUTLINES)])
    classes, found = supervised("from_yolo", folder, folder, folder / "data.yaml")
    assert classes == ["cat", "dog"]
    first, second = found["a.png"].mask
    # Both parts of the cat, and nothing between them.
    assert first[30, 30]
    assert first[15, 87]
    assert not first[30, 65]
    assert second[25, 135]
    assert not second[30, 30]


def test_yolo_classes_keep_their_numbers_in_later_runs(folder):
    write_sidecars("yolo", folder, [row(folder / "a.png", BOXES)])
    dogs = {"bboxes": [[0, 0, 200, 100]] * 2, "labels": ["bird", "cat"], "scores": [0.5, 0.5]}
    write_sidecars("yolo", folder, [row(folder / "b.png", dogs)])
    assert (folder / "classes.txt").read_text() == "cat\na red dog\nbird\n"
    whole = "0.500000 0.500000 1.000000 1.000000"
    assert (folder / "b.txt").read_text() == f"2 {whole}\n0 {whole}\n"
    assert supervised("from_yolo", folder, folder, folder / "data.yaml")[0] == [
        "cat", "a red dog", "bird"]  # fmt: skip


def test_yolo_names_of_any_letters_survive_yaml_and_lines(folder):
    yaml = pytest.importorskip("yaml")
    classes = YoloClasses(folder)
    labels = [
        'say "cheese"',
        "back\\slash",
        "two\nlines",
        "日本語 🐈",
        "no: yes",
        "\x85 \u2028x",
        "",
    ]
    for label in labels:
        classes.number(label)
    names = yaml.safe_load((folder / "data.yaml").read_text())["names"]
    lines = (folder / "classes.txt").read_text().split("\n")[:-1]
    assert [names[n] for n in range(len(labels))] == lines == [
        'say "cheese"', "back\\slash", "two lines", "日本語 🐈", "no: yes", "x", "object"
    ]  # fmt: skip


def test_a_data_yaml_of_somebody_else_is_kept(folder):
    (folder / "data.yaml").write_text("names: [mine]\n")
    write_sidecars("yolo", folder, [row(folder / "a.png", BOXES)])
    assert (folder / "data.yaml").read_text() == "names: [mine]\n"
    assert (folder / "classes.txt").read_text() == "cat\na red dog\n"


def test_yolo_stays_within_the_picture(folder):
    wide = {"bboxes": [[-50, 40, 300, 20]], "labels": ["x"], "scores": [1.0]}
    assert yolo_lines(row("a", wide), YoloClasses(folder)) == (
        "0 0.500000 0.300000 1.000000 0.200000\n"
    )


@pytest.mark.parametrize(
    ("text", "labels"),
    [("", 0), ("\n", 0), ("0 0.5 0.5 1 1\n", 1), ("1 0.5 0.5 1e-05 1\n", 1),
     ("2 .1 .2 .3 .4", None), ("a photo of 4 cats", None), ("0 0.5 0.5 1\n", None)],
)  # fmt: skip
def test_label_files_are_known_by_their_content(tmp_path, text, labels):
    (tmp_path / "a.txt").write_text(text)
    assert count_labels(tmp_path / "a.txt", 2) == labels


def test_voc_is_what_supervision_reads(folder):
    rows = [row(folder / "a.png", BOXES), row(folder / "b.png", QUADS, "<OCR_WITH_REGION>")]
    write_sidecars("voc", folder, rows)
    classes, found = supervised("from_pascal_voc", folder, folder)
    assert sorted(classes) == ["=1+1", "a red dog", "cat"]
    assert [classes[n] for n in found["a.png"].class_id] == ["cat", "a red dog"]
    np.testing.assert_allclose(found["a.png"].xyxy, BOXES["bboxes"], atol=0.5)
    np.testing.assert_allclose(found["b.png"].xyxy, [[10, 10, 60, 32]])
    assert found["b.png"].mask[0][20, 30]
    assert not found["b.png"].mask[0][50, 30]


def test_voc_counts_pixels_from_one_and_escapes_names():
    value = {"bboxes": [[0, 0, 200, 100], [199.9, 99.9, 200, 100]], "labels": ["a<b>&\x07", ""]}
    text = voc_xml(row("photos/x & y.png", value))
    assert "<folder>photos</folder>" in text
    assert "<filename>x &amp; y.png</filename>" in text
    assert "<name>a&lt;b&gt;&amp;\ufffd</name>" in text
    assert "<name>object</name>" in text
    corners = [text.split(f"<{tag}>")[1].partition("<")[0] for tag in ("xmin", "ymin", "xmax")]
    assert corners == ["1", "1", "200"]
    last = text.rpartition("<xmin>")[2]
    assert last.startswith("200<"), "inside the picture"


def test_voc_keeps_every_part_of_an_outline(folder):
    write_sidecars("voc", folder, [row(folder / "a.png", OUTLINES)])
    _, found = supervised("from_pascal_voc", folder, folder)
    first = found["a.png"].mask[0]
    assert (first[30, 30], first[15, 87], first[30, 65]) == (True, True, False)


def coco(rows):
    text = []
    file = CocoFile(text.append, lambda name: name.rpartition("photos/")[2])
    for one in rows:
        file.write(one)
    file.save()
    return json.loads("".join(text))


# Of pycocotools' own compiled code.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_coco_is_what_pycocotools_and_supervision_read(folder, tmp_path):
    tools = pytest.importorskip("pycocotools.coco")
    rows = [
        row(folder / "a.png", BOXES),
        row(folder / "b.png", {"bboxes": [], "labels": []}),
        row(folder / "deeper/c.png", OUTLINES),
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco(rows)))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = tools.COCO(str(path))
    images = dataset.loadImgs(sorted(dataset.getImgIds()))
    assert [(one["file_name"], one["width"], one["height"]) for one in images] == [
        ("a.png", 200, 100), ("b.png", 200, 100), ("deeper/c.png", 200, 100)]  # fmt: skip
    found = dataset.loadAnns(sorted(dataset.getAnnIds()))
    assert [one["id"] for one in found] == [1, 2, 3, 4]
    assert sorted(dataset.getCatIds()) == [1, 2, 3]
    names = {one["id"]: one["name"] for one in dataset.loadCats(dataset.getCatIds())}
    assert [names[one["category_id"]] for one in found] == ["cat", "a red dog", "cat", "dog"]
    assert found[0]["bbox"] == [20, 10, 100, 50]
    assert (found[0]["area"], found[0]["iscrowd"], found[0]["score"]) == (5000, 0, 0.31)
    assert dataset.annToMask(found[2])[30, 30] == 1
    assert found[3]["area"] == 800
    classes, seen = supervised("from_coco", folder, path)
    assert classes == ["a red dog", "cat", "dog"]
    np.testing.assert_allclose(seen["a.png"].xyxy, BOXES["bboxes"], atol=1e-3)


def test_csv_has_a_line_for_each_box_and_each_text():
    output = io.StringIO(newline="")
    writer = CsvRows(lambda line: print(line, file=output))
    writer.write(row("photos/a, b.png", BOXES))
    writer.write(row("c.png", 'A "cat",\nand a dog', "<CAPTION>"))
    writer.write(row("d.png", {"bboxes": [], "labels": []}))
    writer.write({"id": "e.png", "error": "is not an image"})
    writer.write(row("f.png", OUTLINES, "<REFERRING_EXPRESSION_SEGMENTATION>", text="a cat"))
    region = "star<loc_100><loc_200><loc_300><loc_400>"
    writer.write(row("g.png", region, "<REGION_TO_CATEGORY>", region=[1, 2, 3, 4]))
    text = output.getvalue()
    assert text.startswith(
        "image,task,label,score,x0,y0,x1,y1,text,polygons,input,error\r\n"
        '"photos/a, b.png",<OD>,cat,0.31,20.0,10.0,120.0,60.0,,,,\r\n'
    )
    lines = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert [line["image"] for line in lines] == [
        "photos/a, b.png", "photos/a, b.png", "c.png", "d.png", "e.png", "f.png", "f.png", "g.png"
    ]  # fmt: skip
    assert lines[1]["label"] == "a red dog"
    assert float(lines[1]["x1"]) == 199.8
    assert lines[2]["text"] == 'A "cat",\nand a dog'
    assert (lines[3]["label"], lines[3]["x0"], lines[3]["error"]) == ("", "", "")
    assert lines[4]["error"] == "is not an image"
    assert json.loads(lines[5]["polygons"]) == OUTLINES["polygons"][0]
    assert lines[5]["input"] == "a cat"
    assert (lines[7]["text"], lines[7]["input"]) == ("star", "[1, 2, 3, 4]")
    assert float(lines[7]["x0"]) == pytest.approx(20.1)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_a_csv_is_a_formula(start):
    output = io.StringIO(newline="")
    CsvRows(lambda line: print(line, file=output)).write(
        row("a.png", f"{start}cmd|' /C calc'!A0", "<OCR>")
    )
    (line,) = csv.DictReader(io.StringIO(output.getvalue(), newline=""))
    assert line["text"][0] not in "=+-@\t\r"
    assert line["text"].endswith("cmd|' /C calc'!A0")


def test_texts_are_files_of_the_text_alone(folder):
    located = "dog<loc_1><loc_2><loc_3><loc_4>"
    rows = [
        row(folder / "a.png", "A cat.", "<CAPTION>"),
        row(folder / "b.png", located, "<REGION_TO_CATEGORY>"),
    ]
    write_sidecars("txt", folder, rows)
    assert (folder / "a.txt").read_text() == "A cat."
    assert (folder / "b.txt").read_text() == "dog"


def test_existing_sidecars_are_kept_and_counted(folder):
    (folder / "a.txt").write_text("mine")
    rows = [row(folder / name, "A cat.", "<CAPTION>") for name in ("a.png", "b.png")]
    sidecars = write_sidecars("txt", folder, rows)
    assert (sidecars.written, sidecars.skipped) == (1, 1)
    assert (folder / "a.txt").read_text() == "mine"
    write_sidecars("txt", folder, rows, overwrite=True)
    assert (folder / "a.txt").read_text() == "A cat."
    assert not list(folder.glob(".incomplete*"))


def test_a_failed_write_leaves_what_was_there_and_names_the_file(folder, monkeypatch):
    from florence_jax.runtime import atomic_file

    def full(*paths):
        raise OSError(28, "No space left on device")

    (folder / "a.txt").write_text("mine")
    monkeypatch.setattr(atomic_file.os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'"):
        write_sidecars("txt", folder, [row(folder / "a.png", "A", "<CAPTION>")], overwrite=True)
    assert (folder / "a.txt").read_text() == "mine"
    assert not list(folder.glob(".incomplete*"))


def test_rows_that_a_format_cannot_hold_are_named(folder):
    broken = {"id": "a", "error": "is not an image"}
    failed = {**row("a", BOXES), "answers": [{"prompt": "<OD>", "error": "too large"}]}
    for bad, message in ((broken, "is not an image"), (failed, "<OD>: too large"),
                         (row("a", "text", "<CAPTION>"), "the answer is text")):  # fmt: skip
        with pytest.raises(UnsuitableRowError, match=message):
            voc_xml(bad)
        with pytest.raises(UnsuitableRowError, match=message):
            coco([bad])


ROWS = [
    row("a", BOXES),
    row("b", "A cat.", "<CAPTION>") | {"image": "b.png", "truth": {"x": [1, 2.5]}, "extra": "mine"},
    row("c", OUTLINES, "<REGION_TO_SEGMENTATION>", region=[1, 2, 3, 4]),
    row("d", QUADS, "<OCR_WITH_REGION>"),
    row("e", {"bboxes": [], "bboxes_labels": [], "polygons": OUTLINES["polygons"][:1],
              "polygons_labels": ["x"], "bboxes_scores": [], "polygons_scores": [0.5]},
        "<OPEN_VOCABULARY_DETECTION>", text=["x", "y"], labels=["x"]),
    row("f", "t", "<REGION_TO_OCR>", region="<loc_1><loc_2><loc_3><loc_4>", text="one"),
    row("g2", "A cat.", "<CAPTION>", drawing_error="the disk is full"),
    {"id": "g", "error": "is not an image"},
    {"id": "h", "width": 3, "height": 4, "answers": [{"prompt": "x", "error": "no"}],
     "error": "no"},
    {"id": "caf\udce9.png", "error": "caf\udce9.png does not exist"},
]  # fmt: skip


def test_parquet_holds_every_row_in_typed_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    path.write_bytes(table_bytes(ROWS))
    assert list(table_rows(path)) == ROWS
    table = parquet.read_table(path)
    assert table.schema.names == ["id", "image", "width", "height", "error", "answers", "extra"]
    assert table.schema.field("width").type == pyarrow.int32()
    first = table["answers"][0].as_py()[0]
    assert first["prompt"] == "<OD>"
    assert first["result"]["bboxes"] == BOXES["bboxes"]
    assert first["result"]["scores"] == BOXES["scores"]
    assert table["id"][9].as_py() == "caf\\udce9.png"


@pytest.mark.parametrize("rows", [ROWS[7:8], ROWS[1:2], [row("x", {"bboxes": [], "labels": []})]])
def test_all_parquet_blocks_have_one_schema(rows):
    parquet = pytest.importorskip("pyarrow.parquet")
    schemas = [parquet.read_schema(io.BytesIO(table_bytes(one))) for one in (rows, ROWS)]
    assert schemas[0].equals(schemas[1])


def test_regions_beyond_any_number_stop_no_block(tmp_path):
    pytest.importorskip("pyarrow")
    answers = [{"prompt": "x", "region": [0, 0, 10**400, 5], "error": "too large"}]
    path = tmp_path / "rows.parquet"
    path.write_bytes(table_bytes([{"id": "a", "answers": answers}]))
    assert next(table_rows(path))["answers"][0]["region"] == [0, 0, float("inf"), 5]


def test_parquet_drops_nothing_in_silence():
    pytest.importorskip("pyarrow")
    for bad, message in (
        (row("a", BOXES | {"angles": [1, 2]}), r"no column for \['angles'\] of <OD>"),
        (row("a", BOXES, later=1), r"no column for \['later'\] of an answer"),
    ):
        with pytest.raises(ValueError, match=message):
            table_bytes([bad])


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "a.txt/b", "deeper"])
def test_a_name_that_can_be_no_file_stops_no_other_row(folder, name):
    (folder / "a.txt").write_text("a file")
    (folder / "deeper.txt").mkdir()
    with pytest.raises(UnsuitableRowError, match=r"is no file name|cannot be a file"):
        write_sidecars("txt", folder, [row(f"{folder}/{name}", "A cat.", "<CAPTION>")],
                       overwrite=True)  # fmt: skip
    assert not list(folder.rglob(".incomplete*"))
