"""Data sets in their published layouts, and what their rows become."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from florence_jax.processing import demo_tokenizer, load_image, parse
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.coco import Coco
from florence_jax.training.data.example import DataError
from florence_jax.training.data.preprocess import Preprocessor
from florence_jax.training.data.sources import JsonlConfig, SourceConfig, open_data
from florence_jax.training.data.tabular import ArrayRecord, Jsonl, Parquet
from florence_jax.training.data.vqa import DocVqa, Vqa
from tests.shared_data import needs_shared, shared_path
from train.shapes.source import ShapesConfig

ROW = Preprocessor(tokenizer=demo_tokenizer(), image_size=(32, 32), augmentation=AugmentConfig())


def png(colour=(255, 0, 0), size=(40, 20)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def read(source, index=0):
    """(prompt text, answer text, image) of a row."""
    row = ROW.of_example(source[index], np.random.default_rng(0))
    prompt, answer = (ROW.tokenizer.decode(ids[1:-1]) for ids in (row.prompt, row.labels))
    return prompt, answer, row.image


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png())
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 20},
            {"id": 8, "file_name": "b.png", "width": 80, "height": 40},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [4, 2, 8, 4], "caption": "a cat "},
            {"image_id": 7, "category_id": 5, "bbox": [20, 10, 30, 20]},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 0, 20]},
            {
                "image_id": 8,
                "category_id": 3,
                "bbox": [8, 4, 16, 8],
                "caption": "the cat",
                "segmentation": [[8, 4, 24, 4, 24, 12]],
            },
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_the_order_of_a_directory_is_that_of_its_files(coco, tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        shutil.copy(tmp_path / "a.png", tmp_path / split)
        shutil.copy(tmp_path / "b.png", tmp_path / split)
        shutil.copy(coco, tmp_path / split / "own.coco.json")
    for order in (None, "label", "area"):
        opened = open_data(directory=str(tmp_path), order=order)
        for source in (opened.train[0][1], *opened.valid.values()):
            assert source[0].order == (order or "random")


def test_detection_has_all_boxes_of_a_picture_but_crowds(coco):
    source = Coco(coco, "<OD>")
    assert len(source) == 2
    prompt, answer, _ = read(source)
    assert prompt == "Locate the objects with category name in the image."
    # The second box leaves the picture and is cut at its edge.
    assert answer == (
        "cat<loc_100><loc_100><loc_300><loc_300>dog<loc_500><loc_500><loc_999><loc_999>"
    )


def test_a_box_beside_its_picture_is_left_out(coco):
    content = json.loads(coco.read_text())
    content["annotations"][1]["bbox"] = [45, 2, 8, 4]
    coco.write_text(json.dumps(content))
    assert read(Coco(coco, "<OD>"))[1] == "cat<loc_100><loc_100><loc_300><loc_300>"


@pytest.mark.parametrize("known", [True, False])
def test_shares_of_sides_need_the_sides(coco, known):
    content = json.loads(coco.read_text())
    content["annotations"] = [{"image_id": 7, "category_id": 3, "bbox": [0.1, 0.1, 0.5, 0.5]}]
    if not known:
        content["images"][0] |= {"width": None}
    coco.write_text(json.dumps(content))
    # Where the file does not say them, the picture does.
    assert read(Coco(coco, "<OD>"))[1] == "cat<loc_100><loc_100><loc_600><loc_600>"
    if not known:
        (coco.parent / "a.png").unlink()
        with pytest.raises(DataError, match="image 7 has no `width` and `height`, nor can the ima"):
            Coco(coco, "<OD>")


def test_coordinates_of_a_larger_original_are_scaled(coco):
    # b.png is stored at half the size that the annotation speaks of.
    _, answer, _ = read(Coco(coco, "<OD>"), 1)
    assert answer == "cat<loc_100><loc_100><loc_300><loc_300>"


@pytest.mark.parametrize(
    ("task", "index", "prompt", "answer"),
    [
        ("<REGION_PROPOSAL>", 1, "region proposals", "<loc_100><loc_100><loc_300><loc_300>"),
        (
            "<OPEN_VOCABULARY_DETECTION>",
            1,
            "Locate dog in",
            "dog<loc_500><loc_500><loc_999><loc_999>",
        ),
        (
            "<REGION_TO_CATEGORY>",
            0,
            "region <loc_100><loc_100><loc_300><loc_300>?",
            "cat<loc_100><loc_100><loc_300><loc_300>",
        ),
        ("<CAPTION>", 0, "What does the image describe?", "a cat"),
        (
            "<CAPTION_TO_PHRASE_GROUNDING>",
            1,
            "caption: the cat",
            "the cat<loc_100><loc_100><loc_300><loc_300>",
        ),
    ],
)
def test_one_file_serves_many_tasks(coco, task, index, prompt, answer):
    asked, learnt, _ = read(Coco(coco, task), index)
    assert prompt in asked
    assert learnt == answer


def test_referring_expressions_learn_polygons(coco):
    source = Coco(coco, "<REFERRING_EXPRESSION_SEGMENTATION>")
    example = source[len(source) - 1]
    row = ROW.of_example(example, np.random.default_rng(0))
    text = ROW.tokenizer.decode(row.labels[1:-1])
    found = parse(text, example.task, (80, 40))[example.task]
    np.testing.assert_allclose(found["polygons"][0][0], [8, 4, 24, 4, 24, 12], atol=0.1)


def test_an_annotation_of_another_shape_is_named(coco):
    content = json.loads(coco.read_text())
    content["images"][0] |= {"width": 20, "height": 40}
    coco.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"20 x 40 pixels, but as shown .* it has 40 x 20"):
        read(Coco(coco, "<OD>"))


@needs_shared
@pytest.mark.parametrize("name", ["2x2_rubix_COCO.json", "coco_512.json"])
def test_boxes_are_in_the_frame_of_the_turned_picture(name):
    """Files with EXIF orientation 6: each box's middle shows the colour that its label names."""
    folder = shared_path("annotations/rubix")
    source = Coco(folder / name, "<OD>")
    seen = {"red": [], "green": [], "blue": [], "white": []}
    for index in range(len(source)):
        example = source[index]
        picture = load_image(example.image)
        scale = picture.width / example.size[0]
        for box, label in zip(example.labels["bboxes"], example.labels["labels"], strict=True):
            x0, y0, x1, y1 = (round(edge * scale) for edge in box)
            middle = picture.crop((x0, y0, x1, y1)).resize((3, 3)).getpixel((1, 1))
            if label in seen:
                seen[label].append(middle)
    for channel, name in enumerate(("red", "green", "blue")):
        assert seen[name]
        assert all(np.argmax(colour) == channel for colour in seen[name])
    assert all(min(colour) > 90 for colour in seen["white"])


@needs_shared
def test_rows_of_both_conventions_agree_on_the_same_pictures():
    folder = shared_path("annotations/rubix")
    lines, boxes = Jsonl(folder / "annotations.jsonl"), Coco(folder / "2x2_rubix_COCO.json", "<OD>")
    by_image = {boxes[index].image: index for index in range(len(boxes))}
    for index in range(len(lines)):
        _, written, _ = read(lines, index)
        _, built, _ = read(boxes, by_image[lines[index].image])
        one, other = (parse(text, "<OD>", (1000, 1000))["<OD>"] for text in (written, built))
        assert sorted(one["labels"]) == sorted(other["labels"])
        np.testing.assert_allclose(sorted(one["bboxes"]), sorted(other["bboxes"]), atol=1.01)


def test_questions_learn_the_most_frequent_answer(tmp_path):
    (tmp_path / "COCO_000000000009.png").write_bytes(png())
    questions = {"questions": [{"question_id": 1, "image_id": 9, "question": "What colour?"}]}
    answers = [{"answer": text} for text in ("red", "blue", "blue")]
    (tmp_path / "q.json").write_text(json.dumps(questions))
    (tmp_path / "a.json").write_text(
        json.dumps({"annotations": [{"question_id": 1, "answers": answers}]})
    )
    pattern = "COCO_{image_id:012d}.png"
    source = Vqa(tmp_path / "q.json", annotations=tmp_path / "a.json", image_pattern=pattern)
    assert read(source)[:2] == ("<VQA>What colour?", "blue")


def test_questions_may_be_the_file_itself(tmp_path):
    # As VizWiz has them.
    (tmp_path / "a.png").write_bytes(png())
    answers = [{"answer": "a mug", "answer_confidence": "yes"}]
    rows = [{"image": "a.png", "question": "What is it?", "answers": answers, "answerable": 1}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    assert read(Vqa(tmp_path / "train.json"))[:2] == ("<VQA>What is it?", "a mug")


def test_document_questions(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.png").write_bytes(png())
    data = [{"question": "Total?", "image": "documents/a.png", "answers": ["12", "12.00"]}]
    (tmp_path / "train.json").write_text(json.dumps({"data": data}))
    assert read(DocVqa(tmp_path / "train.json"))[:2] == ("<DocVQA>Total?", "12")


def rows():
    return [
        {"image": png((0, 0, 60 * n)), "prefix": "<CAPTION>", "suffix": f"number {n}"}
        for n in range(4)
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_with_pictures_inside(tmp_path, nested):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = rows()
    if nested:
        table = [row | {"image": {"bytes": row["image"], "path": None}} for row in table]
    for half in range(2):
        part = pa.Table.from_pylist(table[half * 2 : half * 2 + 2])
        parquet.write_table(part, tmp_path / f"{half}.parquet", row_group_size=1)
    source = Parquet(tmp_path)
    assert len(source) == 4
    for index in (3, 0, 2):
        prompt, answer, image = read(source, index)
        assert (prompt, answer) == ("What does the image describe?", f"number {index}")
        assert image[0, 0].tolist() == [0, 0, 60 * index]


@pytest.mark.parametrize("named", [".", "a.parquet"])
def test_parquet_with_pictures_beside_it(tmp_path, named):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    (tmp_path / "a.png").write_bytes(png((0, 0, 60)))
    row = {"image": "a.png", "prefix": "<CAPTION>", "suffix": "blue"}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert read(Parquet(tmp_path / named))[2][0, 0].tolist() == [0, 0, 60]


def test_array_records(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows():
        row["image"] = base64.b64encode(row["image"]).decode()
        writer.write(json.dumps(row).encode())
    writer.close()
    source = ArrayRecord(path)
    assert len(source) == 4
    assert read(source, 2)[1] == "number 2"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:0 is not JSON"),
        ("[]", "is not an object of image, prefix and suffix, but a list"),
        # What is missing is said with what is there and what was expected, as in evaluation.
        (
            '{"image": "a.png", "prefix": "<OD>"}',
            "a.jsonl:0 lacks the columns suffix; it has image, prefix: .* expected image .or",
        ),
        ('{"file_name": "a.png", "text": "a cat"}', "columns prefix, suffix; it has file_name"),
        ('{"messages": []}', "lacks the columns image, prefix, suffix; it has messages"),
        ('{"image": "a.png", "prefix": "<OD>", "suffix": null}', "suffix must be text, got None"),
        pytest.param("[" * 100000, "nested too deeply", id="deep"),
        ('{"image": "a\\u0000", "prefix": "", "suffix": ""}', "is no file name"),
        ('{"image": 3, "prefix": "<OD>", "suffix": ""}', "image must be a file name or bytes"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        Jsonl(tmp_path / "a.jsonl")[0]


def written(path, *rows, encoding="utf-8", end="\n"):
    lines = (json.dumps(row, ensure_ascii=False) + end for row in rows)
    path.write_bytes("".join(lines).encode(encoding))
    return path


def row(suffix="a cat", image="image"):
    return {image: "a.png", "prefix": "<CAPTION>", "suffix": suffix}


@pytest.mark.parametrize(
    ("encoding", "end"),
    [("utf-8", "\n"), ("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8", "\n\n")],
)
@pytest.mark.parametrize("image", ["image", "file_name"])
def test_rows_as_editors_write_them(tmp_path, encoding, end, image):
    (tmp_path / "a.png").write_bytes(png())
    texts = ["a cat", "one\u2028two", "three\u0085four", "caf\u00e9"]
    rows = [row(text, image) for text in texts]
    source = Jsonl(written(tmp_path / "a.jsonl", *rows, encoding=encoding, end=end))
    assert [source[index].labels for index in range(len(source))] == texts
    assert source[0].image == tmp_path / "a.png"


def test_a_file_name_beside_the_image_is_no_contradiction(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [row() | {"file_name": "train/a.png"}, row() | {"file_name": "b.png"}]
    source = Jsonl(written(tmp_path / "a.jsonl", *rows))
    assert source[0].image == tmp_path / "a.png"
    with pytest.raises(DataError, match=r"names two images, image 'a.png' and file_name"):
        source[1]


def test_a_row_that_is_not_utf_8_is_named_and_the_others_are_read(tmp_path):
    path = written(tmp_path / "a.jsonl", row("caf\u00e9"), row(), encoding="latin-1")
    source = Jsonl(path)
    with pytest.raises(DataError, match=r"a.jsonl:0 is not UTF-8: byte 0xe9 .* LATIN1"):
        source[0]
    assert source[1].labels == "a cat"
    with pytest.raises(DataError, match=r"a.jsonl:0 is UTF-16: save it as UTF-8"):
        Jsonl(written(path, row(), encoding="utf-16"))


@needs_shared
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("plain", "a cat"),
        ("bom", "a cat"),
        ("crlf", "a cat"),
        ("u2028", "a cat\u2028 sits"),
        ("latin1", "latin1.jsonl:0 is not UTF-8"),
        ("metadata", "metadata.jsonl:0 lacks the columns prefix, suffix; it has file_name, text"),
    ],
)
def test_rows_from_the_field(name, first):
    path = shared_path("..", "field", "jsonl", f"{name}.jsonl")
    if "jsonl" in first:
        with pytest.raises(DataError, match=first):
            Jsonl(path)[0]
    else:
        assert "".join(Jsonl(path)[0].labels.split()) == "".join(first.split())


@pytest.mark.parametrize("token", ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<image>"])
def test_special_tokens_in_a_row_are_refused_by_name(tmp_path, token):
    (tmp_path / "a.png").write_bytes(png())
    rows = [row(f"a cat {token} b"), row() | {"prefix": f"what {token}?"}]
    source = Jsonl(written(tmp_path / "a.jsonl", *rows))
    with pytest.raises(ValueError, match=f"labels .* holds {token}.* as special tokens"):
        read(source)
    with pytest.raises(ValueError, match=f"the prompt .* holds {token}.* as special tokens"):
        read(source, 1)
    regions = row("cat<loc_1><loc_2><loc_3><loc_4>") | {"prefix": "<OD>"}
    assert "<loc_4>" in read(Jsonl(written(tmp_path / "b.jsonl", regions)))[1]


@pytest.mark.parametrize("make", [Jsonl, lambda path: Coco(path, "<OD>"), Vqa, DocVqa])
def test_a_missing_file_is_named(tmp_path, make):
    with pytest.raises(DataError, match="absent"):
        make(tmp_path / "absent")


def test_task_tokens_anywhere_else_are_part_of_the_question(tmp_path):
    shutil.copyfile(__file__, tmp_path / "a.png")
    row = {"image": "a.png", "prefix": "Is this <OD> ?", "suffix": "no"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    example = Jsonl(tmp_path / "a.jsonl")[0]
    assert (example.task, example.prompt) == ("", "Is this <OD> ?")


def test_rows_of_files_with_one_name_have_ids_and_places_of_their_own(coco, tmp_path):
    names = [tmp_path / part / "valid" / "rows.jsonl" for part in "ab"]
    for path in names:
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"image": "a.png", "prefix": "<OD>", "suffix": "x"}) + "\n")
    sources = [Jsonl(path) for path in names]
    sources += [Coco(coco, "<OD>"), Coco(coco, "<REGION_PROPOSAL>")]
    assert len({source[0].id for source in sources}) == 4
    rows = tuple(JsonlConfig(path=str(path)) for path in names)
    opened = open_data(valid=rows).valid
    assert list(opened) == ["valid/rows.jsonl", "valid/rows.jsonl #2"]
    assert [source.path for source in opened.values()] == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 3}, "`images` is int, expected a list"),
        ({"images": [{"id": 7}]}, r"images\[0\] has no `file_name`"),
        ({"annotations": [{"bbox": [0, 0, 1, 1]}]}, r"annotations\[0\] has no `image_id`"),
        ({"annotations": [{"image_id": 9}]}, "of image_id 9, which is not among the images"),
        ({"categories": [{"id": 3}]}, r"categories\[0\] has no `name`"),
        ({"annotations": [{"image_id": 7, "bbox": [0, 0, 1, 2]}]}, "has no `category_id`"),
    ],
)
def test_a_coco_file_with_a_part_missing_is_named(coco, change, message):
    coco.write_text(json.dumps(json.loads(coco.read_text()) | change))
    with pytest.raises(DataError, match=rf"instances.json.*{message}"):
        Coco(coco, "<OPEN_VOCABULARY_DETECTION>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no list of `questions` .* and is none"),
        ({"rows": []}, "no list of `questions` .* or `data` .*; it has rows"),
    ],
)
def test_a_file_without_questions_is_named(tmp_path, content, message):
    (tmp_path / "q.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        Vqa(tmp_path / "q.json")


def test_a_question_without_text_is_named(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps({"questions": [{"question_id": 1, "answer": 2}]}))
    with pytest.raises(DataError, match=r"q\.json:0 has no text as its `question`"):
        Vqa(tmp_path / "q.json")[0]


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (Jsonl, ".", "is a directory: name the .jsonl file in it"),
        (Parquet, "a.parquet", "a.parquet cannot be read as Parquet"),
        (ArrayRecord, "a.array_record", "a.array_record cannot be read as ArrayRecord"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, make, name, message):
    if name != ".":
        (tmp_path / name).write_text("hello")
    with pytest.raises(DataError, match=message):
        make(tmp_path / name)


def test_a_table_with_other_columns_says_which_it_has(tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"image": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="lacks the columns prefix, suffix; it has image, text"):
        Parquet(tmp_path / "a.parquet")


def test_a_pattern_that_does_not_fit_is_named(tmp_path):
    questions = {"questions": [{"question": "Who?", "image_id": 1, "answers": ["I"]}]}
    (tmp_path / "q.json").write_text(json.dumps(questions))
    source = Vqa(tmp_path / "q.json", image_pattern="{id}.jpg")
    with pytest.raises(DataError, match=r"image_pattern '\{id\}.jpg' .* has question, image_id"):
        source[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("jsnl", r"must be one of jsonl.*got 'jsnl' \(did you mean jsonl\?\)"),
        (None, "must be one of jsonl"),
        ("absent_module:Source", "cannot be imported"),
        ("os:path", "is no dataclass that extends SourceConfig"),
    ],
)
def test_a_kind_names_a_layout_or_a_source_config(kind, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig.of_kind(kind)
    assert SourceConfig.of_kind("train.shapes.source:ShapesConfig") is ShapesConfig
