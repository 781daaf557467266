"""Our own convention (compat=None): what it keeps, what it scores, and that it is total."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.processing import TASKS, demo_tokenizer, parse, parse_tokens
from tests.shared_data import needs_shared

SIZE = (640, 480)
QUAD = "<loc_0><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7>"
REGION_TASKS = [token for token, task in TASKS.items() if task.answer != "pure_text"]


def score(text, task, scores_of, *, compat=None):
    """Parse demo tokens of ``text`` whose scores are given by token text; others score -9."""
    tokenizer = demo_tokenizer()
    ids = [tokenizer.eos_id, *tokenizer.encode([text])[0]]
    scores = [scores_of.get(tokenizer.decode([index]), -9.0) for index in ids]
    return parse_tokens(ids, scores, tokenizer, task, SIZE, compat=compat)[task]


class TestLabels:
    def test_unicode_is_kept(self):
        text = "</s><s>café 中<loc_0><loc_0><loc_9><loc_9></s>"
        assert parse(text, "<OD>", SIZE)["<OD>"]["labels"] == ["café 中"]
        assert parse(text, "<OD>", SIZE, compat="native")["<OD>"]["labels"] == ["caf "]

    def test_no_special_token_stays_in_any_label_or_text(self):
        task = "<OCR_WITH_REGION>"
        text = f"</s><s>STOP{QUAD}GO{QUAD}</s><pad><pad>"
        assert parse(text, task, SIZE)[task]["labels"] == ["STOP", "GO"]
        original = parse(text, task, SIZE, compat="original")[task]["labels"]
        assert original == ["</s>STOP", "GO"]
        assert parse("</s><s> Hi </s><pad>", "<CAPTION>") == {"<CAPTION>": "Hi"}
        assert parse("<s> Hi </s><pad>", "<VQA>", compat="native") == {"<VQA>": "Hi <pad>"}
        assert parse("<s> Hi </s>", "<VQA>", compat="original") == {"<VQA>": " Hi "}

    def test_no_markup_stays_in_a_label(self):
        box = "<loc_1><loc_2><loc_3><loc_4>"
        assert parse(f"<od>cat{box}</od>", "<OD>", SIZE)["<OD>"]["labels"] == ["cat"]
        assert parse(f"<loc_9>cat{box}", "<OD>", SIZE)["<OD>"]["labels"] == ["cat"]
        task = "<OCR_WITH_REGION>"
        assert parse(f"{QUAD}<loc_9>B{QUAD}", task, SIZE)[task]["labels"] == ["B"]
        task = "<OPEN_VOCABULARY_DETECTION>"
        text = "cat<sep><poly><loc_1><loc_2><loc_3><loc_4></poly>"
        assert parse(text, task, SIZE)[task]["polygons_labels"] == ["cat"]

    def test_a_label_with_angle_brackets_of_its_own_is_kept(self):
        text = "a < b>c<loc_1><loc_2><loc_3><loc_4>"
        assert parse(text, "<OD>", SIZE)["<OD>"]["labels"] == ["b>c"]

    @needs_shared
    def test_fillers_are_the_published_list(self, native_processor):
        from florence_jax.processing.compat import UNGROUNDED_PHRASES

        assert native_processor.post_processor.banned_grounding_tokens == UNGROUNDED_PHRASES


class TestCoordinates:
    def test_float64_bin_centres(self):
        boxes = parse("a<loc_0><loc_1><loc_998><loc_999>", "<OD>", (1300, 876))["<OD>"]["bboxes"]
        assert boxes == [[0.5 * 1300 / 1000, 1.5 * 876 / 1000, 998.5 * 1.3, 999.5 * 876 / 1000]]

    @pytest.mark.parametrize("number", ["1000", "9" * 22, "9" * 5000, "٩٩٩٩"])
    def test_bins_that_no_token_has_are_clamped_to_the_last(self, number):
        text = f"a<loc_0><loc_0><loc_{number}><loc_{number}>"
        (box,) = parse(text, "<OD>", (1000, 1000))["<OD>"]["bboxes"]
        assert box == [0.5, 0.5, 999.5, 999.5]
        for compat in ("native", "original"):
            assert len(parse(text, "<OD>", SIZE, compat=compat)["<OD>"]["bboxes"]) == 1

    def test_polygons_without_a_point_are_left_out(self):
        task = "<REFERRING_EXPRESSION_SEGMENTATION>"
        text = "<loc_1><sep><loc_1><loc_2><loc_3><loc_4><loc_5>"
        assert parse(text, task, (1000, 1000))[task]["polygons"] == [[[1.5, 2.5, 3.5, 4.5]]]


class TestScores:
    def test_boxes(self):
        cat = "".join(f"<loc_{n}>" for n in range(1, 9))
        text = f"cat{cat}dog<loc_9><loc_9><loc_9><loc_9>"
        scores = {f"<loc_{n}>": -n / 10 for n in range(10)}
        result = score(text, "<OD>", scores)
        assert list(result) == ["bboxes", "labels", "scores"]
        assert result["labels"] == ["cat", "cat", "dog"]
        assert result["scores"] == pytest.approx([math.exp(-n) for n in (0.25, 0.65, 0.9)])

    @pytest.mark.parametrize("task", ["<REGION_PROPOSAL>", "<CAPTION_TO_PHRASE_GROUNDING>"])
    def test_proposals_and_grounding(self, task):
        text = "it<loc_3><loc_3><loc_3><loc_3>cat<loc_1><loc_1><loc_2><loc_2>"
        result = score(text, task, {"<loc_1>": -1.0, "<loc_2>": -2.0, "<loc_3>": -3.0})
        expected = [math.exp(-3.0), math.exp(-1.5)][task == "<CAPTION_TO_PHRASE_GROUNDING>" :]
        assert result["scores"] == pytest.approx(expected)

    def test_quads_of_multi_byte_text(self):
        scores = {f"<loc_{n}>": -1.0 for n in range(7)} | {"<loc_7>": -9.0}
        result = score(f"中新中{QUAD}é{QUAD}", "<OCR_WITH_REGION>", scores)
        assert result["labels"] == ["中新中", "é"]
        assert result["scores"] == pytest.approx([math.exp(-2.0)] * 2)

    def test_a_polygon_instance_has_one_score_over_all_its_locations(self):
        text = "<loc_1><loc_1><loc_1><loc_1><sep><loc_2><loc_2><loc_2><loc_2><loc_5>"
        scores = {"<loc_1>": -1.0, "<loc_2>": -2.0}
        result = score(text, "<REGION_TO_SEGMENTATION>", scores)
        assert len(result["polygons"]) == 1
        assert result["scores"] == pytest.approx([math.exp(-1.5)])

    def test_open_vocabulary_detection_scores_each_kind(self):
        box = "cat<loc_1><loc_1><loc_1><loc_1>"
        result = score(box, "<OPEN_VOCABULARY_DETECTION>", {"<loc_1>": -1.0})
        assert result["bboxes_scores"] == pytest.approx([math.exp(-1)])
        assert result["polygons_scores"] == []
        polygon = "cat<poly><loc_1><loc_1><loc_1><loc_1></poly>"
        result = score(polygon, "<OPEN_VOCABULARY_DETECTION>", {"<loc_1>": -1.0})
        assert result["bboxes_scores"] == []
        assert result["polygons_scores"] == pytest.approx([math.exp(-1)])

    @pytest.mark.parametrize("task", REGION_TASKS)
    def test_scores_are_there_even_when_nothing_was_found(self, task):
        result = score("nothing here", task, {})
        assert [value for key, value in result.items() if key.endswith("scores")] in (
            [[]],
            [[], []],
        )
        assert not any(key.endswith("scores") for key in parse("x", task, SIZE)[task])

    def test_free_text_has_none(self):
        assert score("<s>a cat</s>", "<CAPTION>", {}) == "a cat"

    def test_text_between_phrases_does_not_shift_ours(self):
        # The original loses its place after the first stray token.
        text = "<s><s>a<loc_1><loc_1><loc_1><loc_1><od>b<loc_2><loc_2><loc_2><loc_2>"
        scores = {"<loc_1>": -1.0, "<loc_2>": -2.0}
        assert score(text, "<OD>", scores)["scores"] == pytest.approx([math.exp(-1), math.exp(-2)])
        theirs = score(text, "<OD>", scores, compat="original")["scores"]
        assert theirs != pytest.approx([math.exp(-1), math.exp(-2)])

    def test_impossible_tokens_score_zero(self):
        result = score("a<loc_1><loc_1><loc_1><loc_1>", "<OD>", {"<loc_1>": -math.inf})
        assert result["scores"] == [0.0]

    def test_arrays_are_welcome(self):
        tokenizer = demo_tokenizer()
        ids = np.array([2, *tokenizer.encode(["a<loc_1><loc_1><loc_1><loc_1>"])[0]], np.int32)
        result = parse_tokens(
            ids, np.zeros(len(ids), np.float32), tokenizer, "<OD>", np.array(SIZE)
        )
        assert result["<OD>"]["scores"] == [1.0]
        assert all(type(x) is float for x in result["<OD>"]["bboxes"][0])


class TestArguments:
    @pytest.mark.parametrize("task", REGION_TASKS)
    @pytest.mark.parametrize("size", [None, (640,), (0, 480), "640x480", (640, math.nan), 640])
    def test_tasks_with_coordinates_need_the_image_size(self, task, size):
        with pytest.raises(ValueError, match=rf"parsing {task} needs image_size=\(width, height\)"):
            parse("a", task, size)

    def test_other_arguments(self):
        for call, message in [
            (lambda: parse(None, "<OD>", SIZE), "text must be a string"),
            (lambda: parse("a", None, SIZE), "task must be a string"),
            (lambda: parse("a", "<OD>", SIZE, compat="hf"), "compat must be None"),
            (
                lambda: parse_tokens([2, 0], [0.0], demo_tokenizer(), "<OD>", SIZE),
                "got 1 for 2 ids",
            ),
        ]:
            with pytest.raises(ValueError, match=message):
                call()

    @pytest.mark.parametrize("compat", [None, "native", "original"])
    @pytest.mark.parametrize("task", TASKS)
    def test_no_tokens_at_all(self, task, compat):
        assert parse_tokens([], [], demo_tokenizer(), task, SIZE, compat=compat).keys() == {task}


pieces = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=()), max_size=6),
    st.sampled_from(
        ["<loc_5>", "<loc_5>" * 8, f"<loc_{'9' * 700}>", "<loc_²>", "<loc_৫>", "\ud800"]
    ),
    st.sampled_from(["<s>", "</s>", "<pad>", "<sep>", "<poly>", "</poly>", "<", "cat", "\n", "\0"]),
)


@settings(max_examples=300)
@given(text=st.lists(pieces, max_size=12).map("".join))
def test_parsing_is_total(text):
    for task in (*TASKS, "anything"):
        for compat in (None, "native", "original"):
            result = parse(text, task, SIZE, compat=compat)[task]
            if isinstance(result, dict) and compat is None:
                lengths = [len(value) for value in result.values()]
                assert lengths[::2] == lengths[1::2]
                for label in result.get("labels", []):
                    assert label == label.strip()
                    assert "<loc_5>" not in label


N = 60_000
HOSTILE = {
    "plain": "a" * N,
    "opening": "<" * N,
    "spaces then a line": " " * (N // 2) + "\n" * (N // 2) + "a" + QUAD,
    "one number": "cat<loc_" + "1" * N,
    "long numbers": "cat" + ("<loc_" + "1" * 5000 + ">") * (N // 5000),
    "three locations": ("cat" + "<loc_1>" * 3) * (N // 24),
    "seven locations": ("<loc_1>" * 7 + "x") * (N // 50),
    "a line before every quad": ("\n" + QUAD) * (N // 57),
    "one run": "<loc_1>" * (N // 7),
    "locations never ended": "cat" + "<loc_1><poly>" * (N // 13),
    "polygons never closed": "a" + "<poly>" * (N // 6) + "</poly>",
    "markers in markers": "<" * (N // 2) + "s>" * (N // 4),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_parsing_takes_linear_time(name):
    # A second or two on a busy core; the references' expressions take minutes on several of these.
    start = time.process_time()
    for task in REGION_TASKS:
        for compat in (None, "native", "original"):
            parse(HOSTILE[name], task, SIZE, compat=compat)
    assert time.process_time() - start < 10
