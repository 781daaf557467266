"""Data sets as they are published: read whole, or refused with what is missing."""

import contextlib
import json
import os
import pickle
import random
import resource

import pytest

from florence_jax.evaluation import scoring
from florence_jax.evaluation.datasets.dataset import LayoutError
from florence_jax.evaluation.datasets.restricted_pickle import read_plain_pickle
from florence_jax.evaluation.registry import BENCHMARKS
from florence_jax.evaluation.run import plan_evaluation, score_rows
from tests.evaluation import miniature


def plan(tmp_path, name, **options):
    miniature.DATA_SETS[name][1](tmp_path)
    return plan_evaluation(name, tmp_path, **options)


def test_every_data_set_has_a_miniature():
    assert set(miniature.DATA_SETS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_published_layout_is_read(tmp_path, name):
    planned = plan(tmp_path, name)
    items = planned.items
    assert len(items) == miniature.DATA_SETS[name][0]
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert (tmp_path / item.image.root / item.image.name).is_file()
        assert len(item.queries) == 1
        json.dumps(item.extra)
    assert len(planned.source().fingerprint["files"]) == len(planned.dataset.files)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_file_is_named_with_where_it_is_to_be_had(tmp_path, name):
    with pytest.raises(LayoutError, match=r"holds no (file|folder) .+\. .+"):
        plan_evaluation(name, tmp_path)
    with pytest.raises(LayoutError, match="nowhere is no folder: --data names the folder"):
        plan_evaluation(name, tmp_path / "nowhere")


def damaged(content, draw):
    """A copy with one value, anywhere, left out or of another kind."""
    content = json.loads(json.dumps(content))
    place = content
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.25:
            break
        place = place[key]
    if draw.random() < 0.4:
        del place[key]
    else:
        place[key] = draw.choice(
            [None, 7, "text", [], {}, [3], {"a": None}, True, 10**400, float("nan"), -1, "\ud800"]
        )
    return content


@pytest.mark.parametrize("name", BENCHMARKS)
def test_damaged_files_are_refused_in_words(tmp_path, monkeypatch, name):
    monkeypatch.setattr(scoring, "meteor_is_installed", lambda: False)
    miniature.DATA_SETS[name][1](tmp_path)
    draw, refused = random.Random(0), 0
    for path in sorted(tmp_path.rglob("*.json")):
        whole = path.read_text()
        for _ in range(40):
            path.write_text(json.dumps(damaged(json.loads(whole), draw)))
            try:
                planned = plan_evaluation(name, tmp_path)
            except LayoutError:
                refused += 1
                continue
            # What is accepted is judged, by answers that say nothing, or refused then.
            rows = [{"id": item.id, **item.extra} for item in planned.items]
            with contextlib.suppress(ValueError):
                score_rows(planned, rows, model="m", settings={})
        path.write_text(whole[: len(whole) // 2])
        if path in plan_files(name, tmp_path, path, whole):
            with pytest.raises(LayoutError, match="is not JSON"):
                plan_evaluation(name, tmp_path)
        path.write_text(whole)
    assert refused or name == "flickr30k"  # which has no JSON


def plan_files(name, root, path, whole):
    cut = path.read_text()
    path.write_text(whole)
    files = plan_evaluation(name, root).dataset.files
    path.write_text(cut)
    return files


def test_captions(tmp_path):
    first = plan(tmp_path, "coco-captions").items[0]
    assert first.extra["truth"] == ["A dog number 1.", "One 1 dog, sitting!"]
    assert first.queries[0].prompt == "<CAPTION>"
    assert first.image.name == "val2014/COCO_val2014_000000000001.jpg"
    assert len(plan_evaluation("coco-captions", tmp_path, split="val").items) == 1
    assert len(plan_evaluation("coco-captions", tmp_path, limit=2).items) == 2


def test_textcaps_has_one_item_for_each_picture(tmp_path):
    items = plan(tmp_path, "textcaps").items
    assert [len(item.extra["truth"]) for item in items] == [5, 5]


def test_nocaps_keeps_the_domain(tmp_path):
    items = plan(tmp_path, "nocaps").items
    assert [item.extra["domain"] for item in items] == ["in-domain", "out-domain"]
    assert [len(item.extra["truth"]) for item in items] == [10, 10]


def test_detection(tmp_path):
    planned = plan(tmp_path, "coco-detection")
    assert planned.items[0].extra == {
        "truth": {"bboxes": [[8, 8, 32, 24], [36, 20, 56, 44]], "labels": ["car", "dog"]},
        "image_id": 7,
    }
    assert len(planned.dataset.truth["coco"]["annotations"]) == 5  # the crowd counts there


def test_phrases_without_boxes_are_left_out(tmp_path):
    items = plan(tmp_path, "flickr30k").items
    assert items[0].id == "1000092795#0"
    assert items[0].queries[0].prompt == (
        "<CAPTION_TO_PHRASE_GROUNDING>Two men with hair in yard ."
    )
    # Files count pixels from 1.
    assert items[0].extra["truth"] == [
        {"phrase": "Two men", "boxes": [[8, 8, 32, 24], [36, 20, 56, 44]]},
        {"phrase": "hair", "boxes": [[36, 20, 56, 44]]},
    ]
    assert [phrase["phrase"] for phrase in items[1].extra["truth"]] == ["Friends"]


def test_entities_in_xml_are_refused(tmp_path):
    miniature.flickr30k(tmp_path)
    path = tmp_path / "Annotations" / "10002456.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    with pytest.raises(LayoutError, match=r"10002456\.xml declares the XML entity 'b'"):
        plan_evaluation("flickr30k", tmp_path)
    path.write_text("<annotation>")
    with pytest.raises(LayoutError, match=r"10002456\.xml is not XML"):
        plan_evaluation("flickr30k", tmp_path)


def test_expressions(tmp_path):
    items = plan(tmp_path, "refcoco").items
    assert [item.id for item in items] == ["1#10", "1#11", "4#40", "4#41"]
    assert items[0].extra["truth"] == {"box": [8, 8, 32, 24]}
    assert items[0].queries[0].prompt == "<CAPTION_TO_PHRASE_GROUNDING>the thing 0"
    assert [i.id for i in plan_evaluation("refcoco", tmp_path, split="testB").items] == [
        "3#30",
        "3#31",
    ]
    mask = plan_evaluation("refcoco-masks", tmp_path, split="testA").items[0]
    assert mask.extra["truth"]["segmentation"] == [[36, 20, 56, 20, 56, 44, 36, 44]]
    assert mask.extra["truth"]["size"] == [64, 48]
    with pytest.raises(ValueError, match="refcoco has no split 'test', it has val, testA, testB"):
        plan_evaluation("refcoco", tmp_path, split="test")


class Attack:
    def __reduce__(self):
        import os

        return os.mkdir, ("owned",)


@pytest.mark.parametrize("content", [Attack(), [{"ref": Attack()}], print, miniature.Path("x")])
def test_a_pickle_that_names_anything_is_refused_and_nothing_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"refs{protocol}.p"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(LayoutError, match=r"is not plain data: it names .+ Nothing of it was"):
            read_plain_pickle(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read(tmp_path, protocol):
    content = [{"sent": "a", "ids": (1, 2.5, None, True), "nested": {"é": [10**30, -1]}}]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_plain_pickle(path) == content
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(LayoutError, match="is damaged"):
        read_plain_pickle(path)


def _doubled(levels, kind):
    """A few hundred bytes that stand for 2 ** `levels` values."""
    value = kind(["x", "y"])
    for _ in range(levels):
        value = kind([value, value])
    return value


def _nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def _endless():
    value = []
    value.append({"again": value})
    return value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(_doubled(40, list)), "shared lists stand for more than 60000000 values"),
        (pickle.dumps(_doubled(45, tuple)), "shared lists stand for more than 60000000 values"),
        (pickle.dumps({"a": ["x" * (1 << 20)] * 5_000}), "shared lists stand for more"),
        (pickle.dumps(_nested(200)), "nested more than 50 levels deep"),
        (b"(" * 100_000 + b"l" * 100_000 + b".", "nested more than 50 levels deep"),
        (pickle.dumps(_endless(), protocol=2), "contains itself"),
        (b"]r\x00\x00\x00\x10.", "stores value number 268435456"),
        (b"]p268435456\n.", "stores value number 268435456"),
        (b"]p99999999999999999999999\n.", "stores value number"),
        (b"]q\x07r\xff\xff\xff\x7f.", "stores value number 7"),
        (pickle.dumps([1 << 100_000]), "a number of 100001 bits"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "is damaged"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "is damaged"),
        (b"B\xff\xff\xff\x7f.", "is damaged"),
        (b"\x8b\xff\xff\xff\x7f.", "is damaged"),
        (b"I" + b"9" * 100_000 + b"\n.", "is damaged"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "pickle",
)
def test_pickles_that_grow_without_end_are_refused(tmp_path, content, message):
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LayoutError, match=message) as raised:
        read_plain_pickle(path)
    assert len(str(raised.value)) < 1000 + len(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_pickles_that_are_too_large_or_no_files_are_refused(tmp_path):
    path = tmp_path / "refs.p"
    with path.open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(LayoutError, match="is larger than 536870912 bytes"):
        read_plain_pickle(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(LayoutError, match=r"is a pipe \(FIFO\)"):
        read_plain_pickle(path)


def test_what_is_shared_a_few_times_is_read(tmp_path):
    path = tmp_path / "refs.p"
    for content in (_doubled(10, list), [_doubled(10, tuple)] * 2, {"a": [], "b": [[], ()]}):
        path.write_bytes(pickle.dumps(content))
        assert read_plain_pickle(path) == content


def test_python_2_texts_are_read(tmp_path):
    path = tmp_path / "refs.p"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsa.")
    assert read_plain_pickle(path) == [{"sent": "café"}]


def test_questions(tmp_path):
    items = plan(tmp_path, "vqav2").items
    assert items[0].queries[0].prompt == "<VQA>What colour?"
    assert items[0].extra["truth"] == miniature.TEN
    assert items[0].image.name == "COCO_val2014_000000262148.jpg"
    hidden = plan_evaluation("vqav2", tmp_path, split="test-dev").items
    assert hidden[0].extra["truth"] is None
    assert hidden[0].image.name == "COCO_test2015_000000000001.jpg"


def test_another_prompt(tmp_path):
    items = plan(tmp_path, "textvqa", prompt="Question: {input} Answer:").items
    assert items[0].queries[0].prompt == "Question: what does it say? Answer:"


def test_own_rows(tmp_path):
    path = miniature.own(tmp_path)
    items = plan_evaluation("own", path).items
    assert len(items) == 10
    assert items[3].queries[0].prompt == "<CAPTION_TO_PHRASE_GROUNDING>a car"
    assert items[1].extra["truth"] == ["a car", "one car"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 1 is not JSON"),
        ("[]", r"line 1 is not an object of image, prefix and suffix"),
        (
            '{"image": "a", "prefix": "<OD>"}',
            r"line 1 lacks the columns suffix; it has image, prefix: .* expected image \(or file_",
        ),
        ('{"file_name": "a.png", "text": "a cat"}', r"lacks the columns prefix, suffix; it has fi"),
        ('{"image": "a", "file_name": "b", "prefix": "", "suffix": ""}', r"names two images"),
        (
            '{"image": "a", "prefix": "", "suffix": "a</s>b"}',
            r"line 1: `suffix` 'a</s>b' holds </s",
        ),
        ('{"image": "a", "prefix": "<s>", "suffix": ""}', r"line 1: `prefix` '<s>' holds <s>"),
        ('{"image": 1, "prefix": "", "suffix": ""}', r"line 1: `image` is 1, expected a text"),
        ("", "has no row"),
    ],
)
def test_own_rows_that_cannot_be_used(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(LayoutError, match=message):
        plan_evaluation("own", path)


def test_own_coco_file(tmp_path):
    miniature.coco_detection(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    planned = plan_evaluation("own", path, image_root=tmp_path / "val2017")
    assert planned.prompt == "<OD>"
    assert [item.id for item in planned.items] == ["7", "9"]
    path.write_text("[]")
    with pytest.raises(LayoutError, match="lacks COCO's `images` and `annotations`"):
        plan_evaluation("own", path)


def test_options_that_do_not_go_together(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}")
    with pytest.raises(ValueError, match="own data has no split 'val'"):
        plan_evaluation("own", file, split="val")
    with pytest.raises(ValueError, match="--image-root is for own data"):
        plan_evaluation("refcoco", tmp_path, image_root=tmp_path)
    with pytest.raises(ValueError, match="the limit is 0"):
        plan_evaluation("refcoco", tmp_path, limit=0)
