"""Parquet of every kind of column, and of which parts are damaged."""

import io

import pytest
from PIL import Image

from florence_jax.batch.image_reader import FileBelow, open_image
from florence_jax.batch.sources.open import open_source
from florence_jax.inference.requests import Query
from tests.shared_data import needs_shared, shared_path

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

OD = Query(prompt="<OD>")


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (number, 8)).save(buffer, "png")
    return buffer.getvalue()


PNGS = [png(number) for number in range(1, 6)]


def items_of(path):
    """The items, the same from any place on."""
    source = open_source([path], [OD])
    items = list(source.read(0, len(source)))
    assert [item.id for item in items] == list(source.ids())
    for start in range(0, len(source), 7):
        assert list(source.read(start, start + 3)) == items[start : start + 3]
    return items


STRUCT = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(PNGS, pyarrow.binary()),
        pyarrow.array(PNGS, pyarrow.large_binary()),
        pyarrow.array(PNGS, pyarrow.binary()).dictionary_encode(),
        pyarrow.array([{"bytes": one, "path": "x.png"} for one in PNGS], STRUCT),
        pyarrow.array([{"bytes": one, "path": None} for one in PNGS], STRUCT),
    ],
    ids=["binary", "large binary", "dictionary", "Hugging Face", "Hugging Face, no path"],
)
def test_columns_of_bytes(tmp_path, column):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"image": column}), path, row_group_size=2)
    items = items_of(path)
    assert [open_image(item.image).width for item in items] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), STRUCT])
@pytest.mark.parametrize("name", ["image", "file_name"])
def test_columns_of_names(tmp_path, kind, name):
    path = tmp_path / "rows.parquet"
    names = [{"bytes": None, "path": "a.png"}] if kind == STRUCT else ["a.png"]
    parquet.write_table(pyarrow.table({name: pyarrow.array(names, kind)}), path)
    assert items_of(path)[0].image == FileBelow(str(tmp_path), "a.png")


def test_rows_without_a_picture_or_of_another_type(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"image": [PNGS[0], None, PNGS[2]], "task": ["<OD>", "<OD>", None]})
    parquet.write_table(table, path)
    first, none, third = items_of(path)
    assert (first.error, third.error) == (None, None)
    assert "`image` must be a file name or bytes, got None" in none.error
    parquet.write_table(pyarrow.table({"image": [1, 2], "task": [3, 4]}), path)
    assert all("`image` must be a file name" in item.error for item in items_of(path))
    parquet.write_table(pyarrow.table({"picture": PNGS, "text": ["a"] * 5}), path)
    with pytest.raises(ValueError, match=r"no column `image`.*it has picture, text"):
        open_source([path], [OD])


def test_a_value_that_python_cannot_hold_is_its_rows_error(tmp_path):
    path = tmp_path / "rows.parquet"
    texts = pyarrow.array([b"good", b"caf\xe9", b"good too"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"id": ["x", "y", "z"], "image": PNGS[:3], "n": texts}), path)
    items = items_of(path)
    assert [item.id for item in items] == ["x", "y", "z"]
    assert [item.error is None for item in items] == [True, False, True]
    assert f"{path}:1 cannot be read: a value" in items[1].error


@pytest.mark.parametrize("with_id", [False, True])
def test_rows_of_a_damaged_part_are_errors_and_the_others_are_read(tmp_path, with_id):
    path = tmp_path / "rows.parquet"
    columns = {"image": [png(1 + number % 9) for number in range(40)]}
    if with_id:
        columns["id"] = [f"row {number}" for number in range(40)]
    parquet.write_table(pyarrow.table(columns), path, row_group_size=10, use_dictionary=False)
    metadata = parquet.read_metadata(path)
    column = metadata.row_group(2).column(0)
    assert column.path_in_schema == "image"
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(content)
    good = tmp_path / "good.parquet"
    parquet.write_table(pyarrow.table({"image": PNGS}), good)
    source = open_source([path, good], [OD])
    items = list(source.read(0, len(source)))
    assert [item.id for item in items] == list(source.ids())
    assert [number for number, item in enumerate(items) if item.error] == list(range(20, 30))
    assert f"{path}:20 cannot be read: row group 2 of {path} is damaged" in items[20].error
    if with_id:
        assert [item.id for item in items[:40]] == columns["id"]
    items_of(path)


def test_pages_are_compared_with_their_checksums(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"image": PNGS}), path, write_page_checksum=True,
                        compression="none", use_dictionary=False)  # fmt: skip
    content = path.read_bytes()
    place = content.index(PNGS[3]) + 50
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert all("is damaged" in item.error for item in items_of(path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_what_is_no_parquet_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"rows\.parquet is no Parquet file"):
        open_source([path], [OD])


@needs_shared
def test_the_damaged_page_from_the_field():
    path = shared_path("..", "field", "parquet", "damaged_page.parquet")
    source = open_source([path], [OD])
    items = list(source.read(0, len(source)))
    assert [number for number, item in enumerate(items) if item.error] == list(range(100, 150))
    assert str(path) in items[100].error
    assert "row group 2" in items[100].error
