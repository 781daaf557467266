"""Every public case of the shared fixture, in the convention that it states."""

import json

import numpy as np
import pytest

from florence_jax.processing import (
    build_prompt,
    dequantize,
    load_tokenizer,
    parse,
    parse_tokens,
    quantize,
    task_of,
)
from tests.shared_data import needs_shared, shared_path

pytestmark = needs_shared

FILE = shared_path("expected_postprocess.json")
CASES = json.loads(FILE.read_text("utf-8"))["cases"] if FILE.exists() else []


def of_kind(kind, having="id"):
    cases = [case for case in CASES if case.get("kind") == kind and case.get(having) is not None]
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


def nested_close(ours, theirs, tolerance):
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(
            nested_close(ours[key], theirs[key], tolerance) for key in ours
        )
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(
            nested_close(a, b, tolerance) for a, b in zip(ours, theirs, strict=True)
        )
    return ours == theirs if isinstance(ours, str) else abs(ours - theirs) <= tolerance


def test_the_fixture_is_there():
    assert len(CASES) >= 34


@of_kind(None)
def test_text_parses_as_each_reference_parses_it(case):
    arguments = (case["text"], case["task"], case["image_size"])
    assert parse(*arguments, compat="native") == case["native_hf_5_23_output"]
    assert parse(*arguments, compat="original") == case["ms_original_00d2f15_output"]


@of_kind(None, having="expected")
def test_text_parses_as_the_public_test_pins_it(case):
    arguments = (case["text"], case["task"], case["image_size"])
    if case["convention"] == "native_hf_int":
        assert parse(*arguments, compat="native") == case["expected"]
    else:
        # transformers.js rounds its expectations to two decimals. Its polygons are nested once
        # deeper than the original's own output, which the test above compares with.
        expected = case["expected"]
        if "<REGION_TO_SEGMENTATION>" in expected:
            (expected["<REGION_TO_SEGMENTATION>"]["polygons"],) = expected[
                "<REGION_TO_SEGMENTATION>"
            ]["polygons"]
        assert nested_close(parse(*arguments, compat="original"), expected, case["abs_tol"])
        assert nested_close(parse(*arguments), expected, case["abs_tol"])


@of_kind(None, having="prediction_ids")
def test_generated_ids_decode_to_the_text_and_parse_with_scores(case, tokenizer):
    ids = case["prediction_ids"]
    assert tokenizer.decode(ids) == case["text"]
    scored = parse_tokens(ids, np.full(len(ids), -0.5), tokenizer, case["task"], case["image_size"])
    ours = parse(case["text"], case["task"], case["image_size"])
    result = scored[case["task"]]
    if isinstance(result, dict):
        scores = [result.pop(key) for key in list(result) if key.endswith("scores")]
        assert [len(s) for s in scores if s] == [len(result.get("labels", ())) or len(scores[0])]
        assert all(score == pytest.approx(np.exp(-0.5)) for row in scores for score in row)
    assert scored == ours


@of_kind(None, having="input_ids_after_image_tokens")
def test_prompts_tokenize_to_the_pinned_ids(case, tokenizer):
    ids = case["input_ids_after_image_tokens"]
    prompt = build_prompt(case["prompt"])
    padded, mask = tokenizer.encode_batch([prompt], pad_to=len(ids))
    assert padded[0].tolist() == ids
    assert mask[0].tolist() == [int(token != tokenizer.pad_id) for token in ids]
    assert task_of(case["prompt"]) == case["task"]


UNIT_TASKS = {
    "bboxes_parser": "<REGION_PROPOSAL>",
    "polygons": "<REGION_TO_SEGMENTATION>",
    "ocr": "<OCR_WITH_REGION>",
    "phrase_grounding": "<CAPTION_TO_PHRASE_GROUNDING>",
}


@of_kind("unit_parser")
def test_unit_parsers_give_the_same_instances(case):
    task = UNIT_TASKS[case["parser"]]
    result = parse(case["text"], task, case["image_size"], compat="native")[task]
    shapes = result.get("bboxes") or result.get("polygons") or result["quad_boxes"]
    flat = []
    for instance in case["expected"]:
        label = instance.get("cat_name", instance.get("text"))
        if case["parser"] == "phrase_grounding":
            flat.extend((box, label) for box in instance["bbox"])
        else:
            flat.append((next(v for k, v in instance.items() if isinstance(v, list)), label))
    assert list(zip(shapes, result["labels"], strict=True)) == flat


@of_kind("quantize_roundtrip")
def test_quantizer(case):
    bins = quantize(case["points"], case["image_size"])
    pixels = dequantize(bins, case["image_size"])
    assert pixels.astype(int).tolist() == case["expected_dequantized"]


@of_kind("prompt")
def test_prompts(case):
    if "expected_error" in case:
        for compat in (None, "native", "original"):
            with pytest.raises(ValueError, match="<OCR> takes no input"):
                build_prompt(case["prompt"], compat=compat)
        return
    assert build_prompt(case["prompt"]) == case["expected_prompt"]
    assert build_prompt(case["prompt"], compat="native") == case["native_hf_5_23_output"]
    assert build_prompt(case["prompt"], compat="original") == case["ms_original_00d2f15_output"]


@of_kind("input_ids")
def test_input_ids(case):
    tokenizer = load_tokenizer(shared_path("processor"))
    assert tokenizer.encode([build_prompt(case["prompt"])]) == [case["expected_input_ids"]]


@of_kind("maestro_result_to_detections")
def test_fine_tune_detections_give_the_same_boxes_within_a_bin(case):
    # maestro's convention has no half bin and lets bin 1000 mean the far edge: one bin apart.
    width, height = case["image_size"]
    result = parse(case["text"], "<OD>", case["image_size"])["<OD>"]
    kept = [
        (box, case["classes"].index(label))
        for box, label in zip(result["bboxes"], result["labels"], strict=True)
        if label in case["classes"]
    ]
    assert [index for _, index in kept] == case["expected_class_ids"]
    for (box, _), expected in zip(kept, case["expected_boxes"], strict=True):
        assert np.abs(np.subtract(box, expected)).max() <= max(width, height) / 1000
