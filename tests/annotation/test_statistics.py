"""Counts against those made by hand, and the pictures and pages made of them."""

import dataclasses
import json

import pytest
from PIL import Image

from florence_jax.annotation.noun_phrase_extractors import RuleBasedExtractor
from florence_jax.annotation.outputs import AnnotationOutputs, write_gallery, write_outputs
from florence_jax.annotation.schema import Annotation, write_annotations
from florence_jax.annotation.statistics import count_tokens, statistics
from tests.annotation.written import EXAMPLE

NOTHING = Annotation(id="b.png", image="b.png", width=10, height=10, rejected={"ocr: tiny": 1})


@pytest.mark.parametrize(
    ("text", "count"), [("A dog.", 3), ("", 0), ("it's 2.5 m", 7), ("a-b  c", 4), ("über", 1)]
)
def test_tokens(text, count):
    assert count_tokens(text) == count


def test_the_table_of_two_images():
    found = statistics([EXAMPLE, NOTHING], RuleBasedExtractor())
    rows = {row.kind: row for row in found.rows}
    assert (found.images, found.annotations) == (2, 2 + 2 + 1 + 2)
    brief = rows["text, brief"]
    assert (brief.images, brief.annotations, brief.tokens) == (1, 1, 6.0)
    assert (brief.objects, brief.actions, brief.complexity) == (2.0, 0.0, 1.0)
    assert rows["text, more_detailed"].objects == 2.0  # a brown dog, a ball, and no "it"
    regions = rows["region-text"]
    assert (regions.images, regions.regions, regions.regions_per_image) == (1, 2, 2.0)
    assert regions.regional_tokens == 4.0  # "dog" + "a brown dog", "ball" + "a red ball"
    triplets = rows["text-phrase-region, brief"]
    assert (triplets.annotations, triplets.tokens, triplets.regional_tokens) == (2, 6.0, 2.0)
    assert rows["text, detailed"].images == 0
    assert rows["text, detailed"].tokens is None
    assert found.rejected == {"ocr: tiny": 1, "regions: score": 2}
    assert found.labels == {"ball": 1, "dog": 1}
    assert found.distributions.boxes_per_image == [5, 0]
    assert found.distributions.area[0] == pytest.approx(0.24)
    assert found.distributions.centre_x[0] == pytest.approx(0.3)
    lines = found.table().splitlines()
    assert lines[-4:] == [
        "7 annotations of 2 images",
        "3 rejected:",
        "         2  regions: score",
        "         1  ocr: tiny",
    ]
    assert len(lines) == 1 + len(rows) + 4


def test_everything_that_is_made_of_annotations(tmp_path):
    Image.new("RGB", (640, 480), "grey").save(tmp_path / "a.png")
    hostile = dataclasses.replace(
        EXAMPLE, id="c", texts=(dataclasses.replace(EXAMPLE.texts[0], text="<script>alert()"),),
        phrases=(),
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    write_annotations([EXAMPLE, NOTHING, hostile], out / "annotations.jsonl")
    products = AnnotationOutputs(exports=("coco", "rows"), gallery=2)
    write_outputs(out, out, tmp_path, RuleBasedExtractor(), products)
    assert json.loads((out / "statistics.json").read_text())["images"] == 3
    plots = {file.stem for file in (out / "plots").iterdir()}
    assert plots == {"boxes_per_image", "area", "aspect", "centres", "box_score", "text_score"}
    page = (out / "gallery" / "index.html").read_text()
    assert "A dog and a ball." in page
    assert "b.png" in page  # there is no such picture, and the page says so
    assert page.count("<img") == 3  # regions, phrases, written text
    for file in (out / "gallery").glob("*.jpg"):
        with Image.open(file) as picture:
            assert picture.width == 640
    assert (out / "rows.jsonl").exists()
    assert (out / "instances.coco.json").exists()
    write_outputs(
        out, out, tmp_path, RuleBasedExtractor(), dataclasses.replace(products, gallery=3)
    )
    page = (out / "gallery" / "index.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert()" in page


def test_nothing_to_count(tmp_path):
    found = statistics([], RuleBasedExtractor())
    assert (found.images, found.annotations) == (0, 0)
    assert "0 annotations of 0 images" in found.table()
    (tmp_path / "annotations.jsonl").touch()
    write_outputs(tmp_path, tmp_path, tmp_path, RuleBasedExtractor(), AnnotationOutputs())
    assert list((tmp_path / "plots").iterdir()) == []


def test_the_gallery_escapes_names_that_are_no_utf8(tmp_path):
    one = dataclasses.replace(NOTHING, image="caf\udce9.png")
    page = write_gallery([one], tmp_path, tmp_path / "gallery", 1)
    assert "caf\\udce9.png" in page.read_text(encoding="utf-8")
