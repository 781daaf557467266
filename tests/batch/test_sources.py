"""What directories, lists, JSON lines, Parquet and tars hold, read from any place on."""

import base64
import io
import json
import os
import tarfile

import pytest
from PIL import Image

from florence_jax.batch.image_reader import FileBelow, open_image
from florence_jax.batch.sources.open import open_source
from florence_jax.batch.sources.rows import FileChangedError
from florence_jax.inference.requests import Query
from florence_jax.processing import ImageError

OD = Query(prompt="<OD>")
ROWS = [
    {"image": "0.png", "truth": 7},
    {"image": "1.png", "id": "mine", "task": "<OCR>", "split": "test"},
    {"image": "2.png", "task": "<REGION_TO_OCR>", "region": [1, 2, 3.5, 4]},
    {"image": "3.png", "task": "<OPEN_VOCABULARY_DETECTION>", "text": ["cat", "dog"],
     "labels": ["cat"]},
    {"image": "4.png", "queries": ["<OD>", {"task": "<CAPTION_TO_PHRASE_GROUNDING>",
                                           "text": "a cat"}]},
]  # fmt: skip
QUERIES = [
    (OD,),
    (Query(prompt="<OCR>"),),
    (Query(prompt="<REGION_TO_OCR>", region=[1, 2, 3.5, 4]),),
    (Query(prompt="<OPEN_VOCABULARY_DETECTION>", text=["cat", "dog"], labels=["cat"]),),
    (OD, Query(prompt="<CAPTION_TO_PHRASE_GROUNDING>", text="a cat")),
]


def picture(number):
    return Image.new("RGB", (10 + number, 8), (number, 0, 0))


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        picture(number).save(tmp_path / f"{number}.png")
    return tmp_path


def png(number):
    buffer = io.BytesIO()
    picture(number).save(buffer, "png")
    return buffer.getvalue()


def check_stretches(source):
    """Any stretch is what the whole says."""
    whole = list(source.read(0, len(source)))
    assert [item.id for item in whole] == list(source.ids())
    for start in range(len(source)):
        for stop in range(start, len(source) + 1):
            assert list(source.read(start, stop)) == whole[start:stop]
    return whole


def check_rows(items):
    assert [item.error for item in items] == [None] * 5
    assert [item.queries for item in items] == QUERIES
    assert [open_image(item.image).width for item in items] == [10, 11, 12, 13, 14]
    assert items[0].extra == {"truth": 7}
    assert items[1].extra == {"split": "test"}
    assert items[2].extra == {}


def test_directories_lists_and_images(folder):
    (folder / "deeper").mkdir()
    picture(0).save(folder / "deeper/x.JPG")
    (folder / "notes.md").write_text("no picture")
    listing = folder / "list.txt"
    listing.write_text(f"{folder}/3.png\n\n{folder}/nowhere.png\n")
    source = open_source([folder, listing], [OD])
    items = check_stretches(source)
    names = ["0.png", "1.png", "2.png", "3.png", "4.png", "deeper/x.JPG", "3.png", "nowhere.png"]
    assert [item.id for item in items] == [f"{folder}/{name}" for name in names]
    assert all(item.queries == (OD,) and item.image == item.id for item in items)


def test_json_lines(folder):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS[:2]) + "\n\n"
                    + "\n".join(json.dumps(row) for row in ROWS[2:]))  # fmt: skip
    items = check_stretches(open_source([path], [OD]))
    check_rows(items)
    assert [item.id for item in items] == [f"{path}:0", "mine", f"{path}:2", f"{path}:3",
                                           f"{path}:4"]  # fmt: skip
    assert items[0].image == FileBelow(str(folder), "0.png")
    (item,) = open_source([path], [OD], image_root=folder / "other").read(0, 1)
    assert item.image == FileBelow(str(folder / "other"), "0.png")


def test_a_changed_file_is_another_input(folder):
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    before = open_source([path], [OD]).fingerprint
    assert open_source([path], [OD]).fingerprint == before
    assert open_source([path], [Query(prompt="<OCR>")]).fingerprint != before
    path.write_text(json.dumps(ROWS[0] | {"truth": 8}))
    assert open_source([path], [OD]).fingerprint != before


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{not json", r"line 2\) is not JSON"),
        ("[1]", "no row"),
        (100_000 * "[", "nested too deeply to be read as JSON"),
        ('{"image": "0.png"}', "no `task`"),
        ('{"image": 3, "task": "<OD>"}', "`image` must be"),
        ('{"image_base64": "?", "task": "<OD>"}', "not base64"),
        ('{"image": "0.png", "task": 3}', "`task` that is text"),
        ('{"image": "0.png", "task": "<OD>", "region": [1, 2]}', "four numbers"),
        (
            f'{{"image": "0.png", "task": "<OD>", "region": [0, 0, 1{400 * "0"}, 5]}}',
            "four numbers",
        ),
        ('{"image": "0.png", "task": "<OD>", "region": [0, 0, NaN, 5]}', "four numbers"),
        ('{"image": "0.png", "task": "<OD>", "region": [0, 0, 1e999, 5]}', "four numbers"),
        ('{"image": "0.png", "task": "<OD>", "region": [0, 0, true, 5]}', "four numbers"),
        (f'{{"image": "0.png", "task": "<OD>", "n": 1{5000 * "0"}}}', "is not JSON"),
        ('{"messages": [], "images": ["0.png"]}', "its columns are messages, images"),
        ('{"image": null, "task": "<OD>"}', "`image` must be a file name or bytes, got None"),
        ('{"file_name": 3, "task": "<OD>"}', "`file_name` must be a file name"),
        ('{"image_base64": 3, "task": "<OD>"}', "not base64"),
        ('{"image": "0.png", "task": "<OD>", "text": {"a": 1}}', "`text` must be"),
        ('{"image": "0.png", "task": "<OD>", "labels": "cat"}', "`labels` must be"),
        ('{"image": "0.png", "task": "<OD>", "queries": ["<OD>"]}', "one of them"),
        ('{"image": "0.png", "queries": []}', "`queries` must be"),
        ('{"image": "0.png", "prompt": "<OD>"}', "column 'prompt' holds a task"),
        ('{"image": "0.png", "Tasks": ["<OD>"]}', "column 'Tasks' holds a task"),
        ('{"image": "0.png", "task": "<OD>", "answers": 1}', r"\['answers'\] are the output's"),
    ],
)
def test_a_row_without_sense_is_an_error_of_its_own(folder, line, error):
    import re

    path = folder / "rows.jsonl"
    path.write_text(f'{{"image": "1.png", "task": "<OD>"}}\n{line}\n')
    good, bad = check_stretches(open_source([path]))
    assert good.error is None
    assert re.search(error, bad.error)
    assert f"{path}:1" in bad.error


@pytest.mark.parametrize("name", ["a\0.png", "cut \ud83d.png", "../0.png", "nowhere.png"])
def test_a_row_without_such_a_file_is_an_image_error(folder, name):
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"image": name, "task": "<OD>"}))
    (item,) = open_source([path]).read(0, 1)
    with pytest.raises(ImageError):
        open_image(item.image)


LINES = [
    '{"image": "0.png", "note": "one\u2028line"}',
    '{"image": "1.png", "note": "and\x85another"}',
    '{"image": "2.png"}',
]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES),
        "\ufeff" + "\n".join(LINES),
        "\r\n".join([*LINES, ""]),
        "\ufeff\r\n\n" + "\n\n".join(f"\ufeff{line}" for line in LINES),
    ],
    ids=["plain", "byte-order mark", "CRLF", "files put together"],
)
def test_lines_of_every_system(folder, content):
    path = folder / "rows.jsonl"
    path.write_bytes(content.encode())
    items = check_stretches(open_source([path], [OD]))
    assert [item.image for item in items] == [FileBelow(str(folder), f"{n}.png") for n in range(3)]
    assert items[0].extra == {"note": "one\u2028line"}
    assert items[1].extra == {"note": "and\x85another"}


def test_a_line_in_another_encoding_is_an_error_that_names_file_and_line(folder):
    path = folder / "rows.jsonl"
    path.write_bytes(b'\n{"image": "0.png"}\n{"image": "1.png", "note": "caf\xe9"}\n')
    good, bad = check_stretches(open_source([path], [OD]))
    assert good.error is None
    assert f"{path}:1 (line 3) is not UTF-8: byte 0xe9" in bad.error
    path.write_bytes('{"image": "0.png"}\n'.encode("utf-16"))
    with pytest.raises(ValueError, match=r"rows\.jsonl is UTF-16"):
        open_source([path], [OD])


def test_hugging_faces_file_name_is_the_image_and_its_text_goes_along(folder):
    path = folder / "metadata.jsonl"
    rows = [{"file_name": "0.png", "text": "a cat"}, {"file_name": "x", "image": "1.png"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = check_stretches(open_source([path], [OD]))
    assert (first.image.name, first.queries, first.extra) == ("0.png", (OD,), {"text": "a cat"})
    assert (second.image.name, second.extra) == ("1.png", {"file_name": "x"})


@pytest.mark.parametrize("change", ["cut", "grown", "replaced", "removed"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_a_file_that_changes_under_a_run_ends_it(folder, kind, change):
    path = folder / f"rows.{kind}"
    write_rows(path)
    source = open_source([path], [OD])
    assert len(list(source.read(0, 5))) == 5
    content = path.read_bytes()
    if change == "removed":
        path.unlink()
    else:
        more = {"cut": content[:-20], "grown": content + content, "replaced": content}[change]
        path.write_bytes(more)
        os.utime(path, ns=(0, 1))
    with pytest.raises(FileChangedError, match=rf"rows\.{kind} (changed|was removed) while"):
        list(source.read(0, 2))


def test_a_file_that_changes_while_a_block_is_read_ends_the_run(folder):
    path = folder / "rows.jsonl"
    write_rows(path)
    stream = open_source([path], [OD]).read(0, 5)
    next(stream)
    path.write_bytes(path.read_bytes().replace(b"4.png", b"0.png"))
    os.utime(path, ns=(0, 1))
    with pytest.raises(FileChangedError):
        list(stream)


def write_rows(path):
    """Five pictures as rows of a .jsonl, .parquet or .tar."""
    rows = [{"image": f"{number}.png"} for number in range(5)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with tarfile.open(path, "w") as archive:
            for number in range(5):
                archive.add(path.parent / f"{number}.png", f"{number}.png")


def test_base64_pictures(folder):
    path = folder / "rows.jsonl"
    row = {"image_base64": base64.b64encode(png(2)).decode(), "task": "<OD>"}
    path.write_text(json.dumps(row))
    (item,) = open_source([path]).read(0, 1)
    assert open_image(item.image).width == 12


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_parquet(folder, as_bytes, group):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = dict.fromkeys(name for row in ROWS for name in row if name not in ("text", "queries"))
    columns = {name: [row.get(name) for row in ROWS] for name in names}
    columns["text"] = [None, None, None, ["cat", "dog"], None]
    columns["queries"] = [None] * 4 + [
        [{"task": "<OD>"}, {"task": "<CAPTION_TO_PHRASE_GROUNDING>", "text": "a cat"}]
    ]
    if as_bytes:
        columns["image"] = [{"bytes": png(number), "path": None} for number in range(5)]
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    check_rows(check_stretches(open_source([path], [OD])))


def test_webdataset(folder):
    path = folder / "shard.tar"
    with tarfile.open(path, "w") as archive:

        def add(name, content):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for number, row in enumerate(ROWS):
            fields = {name: value for name, value in row.items() if name not in ("image", "id")}
            add(f"train/{number}.png", png(number))
            add(f"train/{number}.json", json.dumps(fields).encode())
            add(f"train/{number}.txt", b"a caption that nobody asked for")
        add("train/5.json", b"{}")
        add("train/6.left.png", png(1))
        add("train/7.png", png(1))
        add("train/7.json", b"{")
    items = check_stretches(open_source([path], [OD]))
    check_rows(items[:5])
    assert [item.id for item in items] == [f"{path}/train/{n}" for n in range(8)]
    assert "has no image" in items[5].error
    assert items[6].error is None
    assert "is not JSON" in items[7].error


def test_several_sources_follow_each_other(folder):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    source = open_source([folder / "0.png", path, folder], [OD])
    assert len(source) == 1 + 5 + 5
    assert len({item.id for item in list(source.read(0, 11))}) == 10
    check_stretches(source)


def test_places_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source([tmp_path / "nowhere"], [OD])
    with pytest.raises(ValueError, match=r"holds no image.*as in .*/\*\.tar"):
        open_source([tmp_path], [OD])
    with pytest.raises(ValueError, match=r"is a URL.*mount the bucket"):
        open_source([tmp_path, "gs://bucket/photos"], [OD])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no image"):
        open_source([tmp_path / "empty.txt"], [OD])
    picture(0).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="says nothing of a task"):
        open_source([tmp_path], [])
