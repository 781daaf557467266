"""The 15 questions of a scene: exact answers, in text that is read back to them."""

import numpy as np
import pytest

from florence_jax.evaluation.metrics import box_iou
from florence_jax.processing import TASKS, build_prompt, dequantize, parse, quantize, text_to_bins
from florence_jax.processing.targets import canonical_polygon
from train.shapes import SceneConfig, ShapesWorld
from train.shapes.ground_truth import things_seen
from train.shapes.lexicon import TEXTURES
from train.shapes.render import draw
from train.shapes.tasks import questions

SIDE = 224
SIZE = (SIDE, SIDE)
SCENES = 60


@pytest.fixture(scope="module")
def asked():
    worlds = [ShapesWorld(split=split, seed=6) for split in ("train", "held-out")]
    scenes = [world.scene(index) for world in worlds for index in range(SCENES)]
    return [(scene, things_seen(scene), questions(scene)) for scene in scenes]


def each(asked, task):
    for scene, things, rows in asked:
        (question,) = [row for row in rows if row.task == task]
        yield scene, things, question


def test_every_scene_has_all_tasks_in_order(asked):
    for _, _, rows in asked:
        assert [question.task for question in rows] == list(TASKS)


def test_prompts_are_those_of_inference(asked):
    for _, _, rows in asked:
        for question in rows:
            given = question.prefix.removeprefix(question.task)
            task = TASKS[question.task]
            assert bool(given) == (task.takes != "nothing")
            prompt = build_prompt(question.prefix)
            assert prompt == task.prompt.replace("{input}", given)
            argument = {"text": {"text": given}, "region": {"region": given}}.get(task.takes, {})
            assert prompt == build_prompt(question.task, **argument)


@pytest.mark.parametrize("task", list(TASKS))
def test_targets_are_read_back_to_the_answers(asked, task):
    for _, _, question in each(asked, task):
        read = parse(question.suffix, task, SIZE)[task]
        if isinstance(question.answer, str):
            assert read == question.answer
            continue
        written, found = labelled(question.answer), labelled(read)
        assert len(written) == len(found)
        for label, shape in found:
            # Naming a label once may have moved its boxes together.
            same = [n for n, (name, s) in enumerate(written) if name == label and near(s, shape)]
            del written[same[0]]


def labelled(answer):
    return [
        pair
        for labels, shapes in (
            ("labels", "bboxes"),
            ("labels", "quad_boxes"),
            ("labels", "polygons"),
            ("bboxes_labels", "bboxes"),
            ("polygons_labels", "polygons"),
        )
        if labels in answer and shapes in answer
        for pair in zip(answer[labels], answer[shapes], strict=True)
    ]


def near(written, read):
    if isinstance(written[0], list):
        bins = [canonical_polygon(quantize(np.reshape(p, (-1, 2)), SIZE)) for p in written]
        return len(bins) == len(read) and all(
            np.array_equal(b, quantize(np.reshape(p, (-1, 2)), SIZE))
            for b, p in zip(bins, read, strict=True)
        )
    return len(written) == len(read) and np.allclose(written, read, atol=SIDE / 1000 * 0.501)


def test_detection_has_every_visible_thing(asked):
    for _, things, question in each(asked, "<OD>"):
        boxes = dict.fromkeys(thing.box for thing in things)
        assert sorted(boxes) == sorted(map(tuple, question.answer["bboxes"]))
        categories = {thing.box: thing.category for thing in things}
        for box, label in zip(*question.answer.values(), strict=True):
            assert categories[tuple(box)] == label


def test_detection_draws_the_thing_in_its_box(asked):
    """The colour named is the colour in the picture: layout, drawing and answer agree."""
    for scene, _, question in each(asked, "<DENSE_REGION_CAPTION>"):
        pixels = np.asarray(draw(scene)).astype(int)
        by_name = {
            " ".join(
                (s.size, s.colour, *([s.texture] if s.texture in TEXTURES[1:] else []), s.kind)
            ): s
            for s in scene.shapes
        }
        for box, label in zip(*question.answer.values(), strict=True):
            if label in by_name:
                x0, y0, x1, y1 = map(int, box)
                off = np.abs(pixels[y0:y1, x0:x1] - by_name[label].rgb).max(axis=2)
                assert np.mean(off < 45) > 0.06


def test_reading_is_in_reading_order(asked):
    for scene, _, question in each(asked, "<OCR>"):
        words = sorted(scene.words, key=lambda word: word.quad[:, 1].min())
        assert question.suffix == "\n".join(word.text for word in words)


def test_quads_begin_at_the_upper_left_and_turn_right(asked):
    for scene, _, question in each(asked, "<OCR_WITH_REGION>"):
        tilts = {word.text: word.tilt for word in scene.words}
        for label, quad in zip(
            question.answer["labels"], question.answer["quad_boxes"], strict=True
        ):
            (ax, ay), (bx, by), (cx, cy), (dx, dy) = np.reshape(quad, (4, 2))
            assert ax < bx
            assert dy > ay
            assert cy > by
            assert (cx - ax) * (dy - by) - (cy - ay) * (dx - bx) > 0
            assert np.degrees(np.arctan2(by - ay, bx - ax)) == pytest.approx(tilts[label], abs=0.01)


def test_grounding_grounds_phrases_of_its_caption(asked):
    several = 0
    for _, things, question in each(asked, "<CAPTION_TO_PHRASE_GROUNDING>"):
        text = question.prefix.removeprefix(question.task)
        for label, box in zip(question.answer["labels"], question.answer["bboxes"], strict=True):
            assert label in text
            (thing,) = [thing for thing in things if thing.box == tuple(box)]
            assert (thing.source.text if thing.category == "word" else thing.source.colour) in label
        several += len(set(question.answer["labels"])) < len(question.answer["labels"])
    assert several > 3


def test_segmentation_answers_with_what_was_asked_for(asked):
    for _, things, question in each(asked, "<REGION_TO_SEGMENTATION>"):
        region = dequantize(text_to_bins(question.prefix), SIZE)
        points = np.reshape(np.concatenate(question.answer["polygons"][0]), (-1, 2))
        extent = (*points.min(axis=0), *points.max(axis=0))
        assert box_iou(region, extent) > 0.7
        assert len(question.answer["polygons"]) == 1
        assert any(box_iou(extent, thing.box) > 0.8 for thing in things)


def test_open_vocabulary_answers_every_class_that_is_there(asked):
    absent = several = 0
    for _, things, question in each(asked, "<OPEN_VOCABULARY_DETECTION>"):
        classes = question.prefix.removeprefix(question.task).split(" <and> ")
        expected = []
        for name in classes:
            for thing in things:
                source = thing.source
                properties = {thing.category}
                if thing.category != "word":
                    properties |= {f"{source.colour} shape", f"{source.texture} shape"}
                if name in properties:
                    expected.append((name, thing.box))
        found = zip(question.answer["bboxes_labels"], question.answer["bboxes"], strict=True)
        assert [(label, tuple(box)) for label, box in found] == expected
        assert expected
        absent += len({name for name, _ in expected}) < len(classes)
        several += len(classes) == 2
    assert several > SCENES // 2
    assert absent > 5


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("<REGION_TO_CATEGORY>", lambda thing: thing.category),
        ("<REGION_TO_DESCRIPTION>", lambda thing: thing.description),
        ("<REGION_TO_OCR>", lambda thing: getattr(thing.source, "text", None)),
    ],
)
def test_region_answers_are_of_the_thing_in_the_region(asked, task, expected):
    for _, things, question in each(asked, task):
        given = question.prefix.removeprefix(task)
        assert question.suffix.endswith(given)
        region = dequantize(text_to_bins(given), SIZE)
        nearest = max(things, key=lambda thing: box_iou(region, thing.box))
        assert box_iou(region, nearest.box) > 0.85
        assert question.suffix == expected(nearest) + given


def test_a_question_does_not_depend_on_what_else_is_asked(asked):
    for scene, _, rows in asked[:10]:
        for question in rows:
            assert questions(scene, [question.task]) == [question]


def test_scenes_without_words_have_no_question_about_them():
    world = ShapesWorld(config=SceneConfig(words=(0, 0)))
    for index in range(20):
        tasks = {question.task for question in world.questions(index)}
        assert tasks == {task for task in TASKS if "OCR" not in task}


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="no such task: \\['<VQA>'\\]"):
        ShapesWorld().questions(0, ["<OD>", "<VQA>"])


def test_examples_share_the_scenes_picture():
    world = ShapesWorld(seed=8)
    examples = world.examples(4)
    assert [(e.prefix, e.suffix) for e in examples] == [
        (q.prefix, q.suffix) for q in world.questions(4)
    ]
    assert all(example.image is examples[0].image for example in examples)
    assert examples[0].image.size == SIZE
    assert examples[0].image.mode == "RGB"
