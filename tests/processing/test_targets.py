"""Targets: what is written is read back, in the form in which the published models answer."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.processing import TASKS, build_prompt, parse, quantize, text_to_bins
from florence_jax.processing.compat import ALL_MARKERS, UNGROUNDED_PHRASES
from florence_jax.processing.targets import LABELS_ONCE, canonical_polygon, region_text, target_text
from tests.shared_data import needs_shared, shared_path

SIZE = (640, 480)
BOX_TASKS = [
    "<OD>",
    "<DENSE_REGION_CAPTION>",
    "<CAPTION_TO_PHRASE_GROUNDING>",
    "<OPEN_VOCABULARY_DETECTION>",
    "<REGION_PROPOSAL>",
]
POLYGON_TASKS = ["<REFERRING_EXPRESSION_SEGMENTATION>", "<REGION_TO_SEGMENTATION>"]
TEXT_TASKS = [token for token, task in TASKS.items() if task.answer == "pure_text"]

fuzz = settings(max_examples=80)
sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
# Beyond the picture too: both are clamped to its edge.
fractions = st.floats(-0.125, 1.125, width=32)
labels = (
    st.text(st.characters(exclude_characters="<\n", exclude_categories=["Cs"]), min_size=1)
    .map(str.strip)
    .filter(bool)
    .filter(lambda label: label not in UNGROUNDED_PHRASES)
)
boxes = st.tuples(*[fractions] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
quads = st.tuples(*[fractions] * 8)
parts = st.lists(st.tuples(fractions, fractions), min_size=3, max_size=8, unique=True).map(
    lambda points: [c for point in points for c in point]
)


def in_pixels(fraction_list, size):
    return [float(f) * size[n % 2] for n, f in enumerate(fraction_list)]


def clamped(pixels, size):
    """What any reader can get back at best: the coordinate inside the picture."""
    return [min(max(c, 0), size[n % 2]) for n, c in enumerate(pixels)]


def assert_within_a_bin(read, written, size):
    assert len(read) == len(written)
    for n, (a, b) in enumerate(zip(read, clamped(written, size), strict=True)):
        assert abs(a - b) <= size[n % 2] / 1000 * (0.5 + 1e-6)


def gathered(labelled):
    """Instances with those of one label together, as the tasks of `LABELS_ONCE` write them."""
    first = {}
    for label, _ in labelled:
        first.setdefault(label, len(first))
    return sorted(labelled, key=lambda pair: first[pair[0]])


def value_of(task, labelled):
    shapes, names = [shape for _, shape in labelled], [label for label, _ in labelled]
    if task == "<OPEN_VOCABULARY_DETECTION>":
        return {"bboxes": shapes, "bboxes_labels": names, "polygons": [], "polygons_labels": []}
    return {"bboxes": shapes, "labels": names}


@pytest.mark.parametrize("task", BOX_TASKS)
@fuzz
@given(st.data(), sizes)
def test_boxes_are_read_back(task, data, size):
    labelled = data.draw(st.lists(st.tuples(labels, boxes), max_size=6))
    labelled = [(label, in_pixels(box, size)) for label, box in labelled]
    answer = value_of(task, labelled)
    read = parse(target_text(task, answer, size), task, size)[task]
    names = read["bboxes_labels" if task == "<OPEN_VOCABULARY_DETECTION>" else "labels"]
    expected = gathered(labelled) if task in LABELS_ONCE else labelled
    unlabelled = task == "<REGION_PROPOSAL>"
    assert names == ["" if unlabelled else label for label, _ in expected]
    for box, (_, written) in zip(read["bboxes"], expected, strict=True):
        assert_within_a_bin(box, written, size)


@fuzz
@given(st.lists(st.tuples(labels, quads), max_size=5), sizes)
def test_quads_are_read_back(lines, size):
    task = "<OCR_WITH_REGION>"
    shapes = [in_pixels(quad, size) for _, quad in lines]
    answer = {"quad_boxes": shapes, "labels": [label for label, _ in lines]}
    read = parse(target_text(task, answer, size), task, size)[task]
    assert read["labels"] == answer["labels"]
    for quad, written in zip(read["quad_boxes"], shapes, strict=True):
        assert_within_a_bin(quad, written, size)


def as_written(part, size):
    """A polygon's bins in the order they are written, or None where there are too few."""
    written = canonical_polygon(quantize(np.reshape(part, (-1, 2)), size))
    return written if len(written) >= 3 else None


@pytest.mark.parametrize("task", [*POLYGON_TASKS, "<OPEN_VOCABULARY_DETECTION>"])
@fuzz
@given(st.data(), sizes)
def test_polygons_are_read_back(task, data, size):
    mixed = task == "<OPEN_VOCABULARY_DETECTION>"
    drawn = st.tuples(labels, st.lists(parts, min_size=1, max_size=3))
    instances = []
    for label, shape in data.draw(st.lists(drawn, min_size=1, max_size=4)):
        kept = [
            p for p in (in_pixels(part, size) for part in shape) if as_written(p, size) is not None
        ]
        if kept:
            instances.append((label if mixed else "", kept))
    answer = {"polygons": [shape for _, shape in instances]}
    answer["polygons_labels" if mixed else "labels"] = [label for label, _ in instances]
    read = parse(target_text(task, answer, size), task, size)[task]
    assert read["polygons_labels" if mixed else "labels"] == [label for label, _ in instances]
    for shape, (_, written) in zip(read["polygons"], instances, strict=True):
        assert len(shape) == len(written)
        for part, points in zip(shape, written, strict=True):
            bins = quantize(np.reshape(part, (-1, 2)), size)
            assert np.array_equal(bins, as_written(points, size))


@pytest.mark.parametrize("task", TEXT_TASKS)
@given(st.text(max_size=30))
def test_texts_are_read_back(task, text):
    if any(marker in text for marker in ALL_MARKERS):
        return
    assert parse(target_text(task, text), task) == {task: text.strip()}


def test_a_region_answer_repeats_the_region_of_its_prompt():
    region = (33.6, 159.4, 596.8, 371.7)
    text = region_text("car", region, SIZE)
    assert text == "car<loc_52><loc_332><loc_932><loc_774>"
    prompt = build_prompt("<REGION_TO_CATEGORY>", region=region, image_size=SIZE)
    assert text_to_bins(prompt) == text_to_bins(text)
    assert region_text("car", text.removeprefix("car"), SIZE) == text


@needs_shared
def test_the_published_models_own_answers_are_written_alike():
    cases = json.loads(shared_path("expected_postprocess.json").read_text("utf-8"))["cases"]
    checked = set()
    for case in cases:
        task = case.get("task")
        if task not in TASKS:
            continue
        text = case["text"]
        for marker in ALL_MARKERS:
            text = text.replace(marker, "")
        size = case["image_size"] or SIZE
        written = target_text(task, parse(text, task, size)[task], size)
        if task == "<REGION_TO_SEGMENTATION>":
            # A model chooses its first vertex: the same polygon from the same corner, clockwise.
            published, ours = (np.reshape(text_to_bins(t), (-1, 2)) for t in (text, written))
            shift = int(np.flatnonzero((ours == published[0]).all(axis=1))[0])
            assert shift <= 1
            assert np.array_equal(np.roll(ours, -shift, axis=0), published)
        else:
            assert written == text.strip(), case["id"]
        checked.add(task)
    assert len(checked) == 10


class TestOrder:
    BOXES = ((100, 300, 200, 400), (400, 100, 440, 140), (10, 100, 60, 140), (0, 0, 300, 320))
    ANSWER = value_of("<OPEN_VOCABULARY_DETECTION>", list(zip("cabc", BOXES, strict=True)))

    def order(self, **options):
        task = "<OPEN_VOCABULARY_DETECTION>"
        read = parse(target_text(task, self.ANSWER, SIZE, **options), task, SIZE)[task]
        lefts = [round(box[0] / 10) * 10 for box in read["bboxes"]]
        return [[100, 400, 10, 0].index(left) for left in lefts]

    def test_each_option(self):
        assert self.order() == [0, 1, 2, 3]
        assert self.order(order="reading") == [3, 2, 1, 0]
        assert self.order(order="area") == [3, 0, 2, 1]
        assert self.order(order="class") == [1, 2, 3, 0]

    def test_random_is_a_permutation_of_the_generator(self):
        drawn = [self.order(order="random", rng=np.random.default_rng(s)) for s in range(6)]
        again = [self.order(order="random", rng=np.random.default_rng(s)) for s in range(6)]
        assert drawn == again
        assert all(sorted(order) == [0, 1, 2, 3] for order in drawn)
        assert len({tuple(order) for order in drawn}) > 1

    def test_labels_are_named_once_in_front_of_their_boxes(self):
        answer = {"bboxes": [(0, 0, 64, 48), (64, 48, 128, 96), (0, 0, 640, 480)], "labels": "aba"}
        answer["labels"] = list(answer["labels"])
        one, two, all_of_it = (
            "<loc_0><loc_0><loc_100><loc_100>",
            "<loc_100><loc_100><loc_200><loc_200>",
            "<loc_0><loc_0><loc_999><loc_999>",
        )
        assert target_text("<OD>", answer, SIZE) == f"a{one}{all_of_it}b{two}"
        assert target_text("<REGION_PROPOSAL>", answer, SIZE) == one + two + all_of_it
        mixed = {"bboxes": answer["bboxes"], "bboxes_labels": answer["labels"]}
        repeated = target_text("<OPEN_VOCABULARY_DETECTION>", mixed, SIZE)
        assert repeated == f"a{one}b{two}a{all_of_it}"

    def test_an_answer_with_nothing_is_empty(self):
        for task in (*BOX_TASKS, *POLYGON_TASKS, "<OCR_WITH_REGION>"):
            assert target_text(task, parse("", task, SIZE)[task], SIZE) == ""


class TestPolygonForm:
    SQUARE = ((100, 100, 200, 100, 200, 200, 100, 200),)

    @pytest.mark.parametrize("turn", range(4))
    @pytest.mark.parametrize("step", [1, -1])
    def test_clockwise_from_the_upper_left(self, turn, step):
        corners = np.reshape(self.SQUARE, (4, 2))[::step]
        part = np.roll(corners, turn, axis=0).ravel().tolist()
        text = target_text(POLYGON_TASKS[0], {"polygons": [[part]]}, (1000, 1000))
        assert text_to_bins(text) == list(self.SQUARE[0])

    def test_parts_are_separated_and_instances_enclosed(self):
        locations = "".join(f"<loc_{c}>" for c in self.SQUARE[0])
        one = {"polygons": [self.SQUARE * 2]}
        assert target_text(POLYGON_TASKS[0], one, (1000, 1000)) == f"{locations}<sep>{locations}"
        two = {"polygons": [self.SQUARE, self.SQUARE]}
        enclosed = f"<poly>{locations}</poly>" * 2
        assert target_text(POLYGON_TASKS[0], two, (1000, 1000)) == enclosed

    def test_points_of_one_bin_are_one(self):
        part = [0, 0, 0.2, 0.3, 500, 0, 500, 500, 0.1, 0.1]
        text = target_text(POLYGON_TASKS[0], {"polygons": [[part]]}, (1000, 1000))
        assert text_to_bins(text) == [0, 0, 500, 0, 500, 500]


@pytest.mark.parametrize(
    ("task", "answer", "message"),
    [
        ("<OD>", {"bboxes": [(0, 0, 1, 1)], "labels": []}, "1 bboxes need as many labels"),
        ("<OD>", {"bboxes": [(0, 0, 1, 1)]}, "need as many labels, got None"),
        ("<OD>", {"bboxes": [(0, 0, 1, 1)], "labels": [" "]}, "non-empty string"),
        ("<OD>", {"bboxes": [(0, 0, 1, 1)], "labels": ["a<b"]}, "'a<b' would not be read back"),
        ("<OD>", {"bboxes": [(0, 0, 1, 1)], "labels": ["a\nb"]}, "would not be read back"),
        ("<OD>", {"bboxes": [(0, 0, 1, 1)], "labels": ["a "]}, "would not be read back"),
        ("<OD>", {"bboxes": [(1, 0, 0, 1)], "labels": ["a"]}, "corners in the wrong order"),
        ("<OD>", {"bboxes": [(0, 0, 1, math.nan)], "labels": ["a"]}, "must be finite"),
        ("<OD>", "car", "a mapping as parse returns"),
        ("<OD>", {"boxes": []}, r"has bboxes, got \['boxes'\]"),
        ("<CAPTION>", {"bboxes": []}, "is a string"),
        ("<CAPTION>", "the </s> end", "which decoding removes"),
        (
            "<CAPTION_TO_PHRASE_GROUNDING>",
            {"bboxes": [(0, 0, 1, 1)], "labels": ["it"]},
            "never reports the phrase 'it'",
        ),
        ("<OCR_WITH_REGION>", {"quad_boxes": [[0] * 6], "labels": ["a"]}, "a quad is four points"),
        (POLYGON_TASKS[0], {"polygons": [[[0, 0, 0.1, 0, 0, 0.1]]]}, "fewer than three different"),
        (POLYGON_TASKS[0], {"polygons": [[]]}, "fewer than three different"),
        (
            "<OPEN_VOCABULARY_DETECTION>",
            {
                "bboxes": [(0, 0, 1, 1)],
                "bboxes_labels": ["a"],
                "polygons": [TestPolygonForm.SQUARE],
                "polygons_labels": ["a"],
            },
            "boxes or polygons, not both",
        ),
    ],
)
def test_what_a_task_cannot_express_is_refused(task, answer, message):
    with pytest.raises(ValueError, match=message):
        target_text(task, answer, SIZE)


def test_wrong_arguments_are_explained():
    empty = {"bboxes": [], "labels": []}
    with pytest.raises(ValueError, match="order must be one of"):
        target_text("<OD>", empty, SIZE, order="size")
    with pytest.raises(ValueError, match="give an rng for 'random', and only then"):
        target_text("<OD>", empty, SIZE, order="random")
    with pytest.raises(ValueError, match="give an rng for 'random', and only then"):
        target_text("<OD>", empty, SIZE, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="writing <OD> needs image_size"):
        target_text("<OD>", empty)
