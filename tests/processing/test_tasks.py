"""Prompts: the table against both references, and what our extra arguments accept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.processing import TASKS, build_prompt, task_of
from tests.shared_data import needs_shared

INPUTS = ["", "a red car", "  two  words ", "{input} {}", "<loc_1><loc_2><loc_3><loc_4>", "é\n"]


@needs_shared
def test_the_table_is_transformers(native_processor):
    alone = native_processor.task_prompts_without_inputs
    with_input = native_processor.task_prompts_with_input
    assert {token: task.prompt for token, task in TASKS.items()} == alone | with_input
    assert list(TASKS) == [*alone, *with_input]
    assert {t for t, task in TASKS.items() if task.takes == "nothing"} == set(alone)
    answers = native_processor.tasks_answer_post_processing_type
    assert {token: task.answer for token, task in TASKS.items()} == answers
    assert len(TASKS) == 15


@needs_shared
@pytest.mark.parametrize("token", list(TASKS))
@pytest.mark.parametrize("content", INPUTS)
def test_one_string_prompts_match_transformers(native_processor, token, content):
    prompt = token + content
    if TASKS[token].takes == "nothing" and content:
        with pytest.raises(ValueError, match="takes no input and must be the whole prompt"):
            build_prompt(prompt, compat="native")
        with pytest.raises(ValueError, match="should be the only content"):
            native_processor._construct_prompts(prompt)
        return
    (expected,) = native_processor._construct_prompts(prompt)
    assert build_prompt(prompt, compat="native") == expected
    assert build_prompt(prompt) == expected
    original = TASKS[token].prompt.replace("{input}", content)
    assert build_prompt(prompt, compat="original") == original


@needs_shared
@settings(max_examples=200)
@given(st.lists(st.one_of(st.sampled_from([*TASKS, " ", "<", "<loc_3>"]), st.text(max_size=5))))
def test_any_prompt_is_read_as_transformers_reads_it(native_processor, pieces):
    prompt = "".join(pieces)
    try:
        (expected,) = native_processor._construct_prompts(prompt)
    except ValueError:
        with pytest.raises(ValueError, match="must be the whole prompt"):
            build_prompt(prompt, compat="native")
    else:
        assert build_prompt(prompt, compat="native") == expected


def test_text_may_come_apart_from_the_task():
    assert build_prompt("<CAPTION_TO_PHRASE_GROUNDING>", text=" a car ") == (
        "Locate the phrases in the caption: a car"
    )
    assert build_prompt("<CAPTION_TO_PHRASE_GROUNDING>", text=" a car ", compat="original") == (
        "Locate the phrases in the caption:  a car "
    )


def test_several_classes_are_joined_by_the_models_separator_token():
    prompt = build_prompt("<OPEN_VOCABULARY_DETECTION>", text=["car", " traffic light "])
    assert prompt == "Locate car <and> traffic light in the image."


def test_regions_come_in_pixels_or_as_location_text():
    region = (33.6, 159.4, 596.8, 371.7)
    expected = "What is the region <loc_52><loc_332><loc_932><loc_774>?"
    for given_region in (region, np.array(region), "<loc_52><loc_332><loc_932><loc_774>"):
        prompt = build_prompt("<REGION_TO_CATEGORY>", region=given_region, image_size=(640, 480))
        assert prompt == expected
    assert build_prompt("<REGION_TO_CATEGORY><loc_52><loc_332><loc_932><loc_774>") == expected


@pytest.mark.parametrize("prompt", ["<DocVQA>What is the total?", "", "describe", "<od>x", "a <b>"])
@pytest.mark.parametrize("compat", [None, "native", "original"])
def test_free_prompts_pass_unchanged(prompt, compat):
    assert build_prompt(prompt, compat=compat) == prompt


def test_free_prompts_take_text_and_regions_after_them():
    assert build_prompt("<DocVQA>", text="Who signed?") == "<DocVQA>Who signed?"
    boxed = build_prompt("<Read>", region=(0, 0, 5, 5), image_size=(10, 10))
    assert boxed == "<Read><loc_0><loc_0><loc_500><loc_500>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "<OCR> extra text"}, "<OCR> takes no input.*'<OCR> extra text'"),
        ({"prompt": "<OD>", "text": "car"}, "<OD> takes no input, got text='car'"),
        ({"prompt": "<OD>", "region": (0, 0, 1, 1)}, "<OD> takes no input"),
        ({"prompt": "<REGION_TO_OCR>", "text": "<loc_1>", "region": "x"}, "pass one of them"),
        ({"prompt": "<REGION_TO_OCR>x", "text": "y"}, "two inputs, 'x'.*'y'"),
        ({"prompt": "<REGION_TO_OCR>", "region": (0, 0, 1, 1)}, "image_size=.*got None"),
        ({"prompt": "<REGION_TO_OCR>", "region": "0,0,1,1"}, "got the string '0,0,1,1'"),
        ({"prompt": "<REGION_TO_OCR>", "region": "<loc_1000>" * 4}, "<loc_0>..<loc_999>"),
        ({"prompt": "<CAPTION_TO_PHRASE_GROUNDING>", "region": (0, 0, 1, 1)}, "takes a text"),
        ({"prompt": "<CAPTION_TO_PHRASE_GROUNDING>", "text": ["a", "b"]}, "takes one text"),
        ({"prompt": "<OPEN_VOCABULARY_DETECTION>", "text": []}, "one or more class names"),
        ({"prompt": "<OPEN_VOCABULARY_DETECTION>", "text": ["a", " "]}, "non-empty string"),
        ({"prompt": "<OD>", "compat": "hf"}, "compat must be None.*got 'hf'"),
        ({"prompt": None}, "prompt must be a string"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_prompt(**arguments)


@pytest.mark.parametrize(
    ("prompt", "task"),
    [
        ("<OD>", "<OD>"),
        ("<OPEN_VOCABULARY_DETECTION>cat", "<OPEN_VOCABULARY_DETECTION>"),
        ("please <CAPTION> it", "<CAPTION>"),
        ("<DocVQA>What is <b>?", "<DocVQA>"),
        (" <VQA> x", "<VQA>"),
        ("what is <b>?", "text"),
        ("<loc_1><loc_2>", "text"),
        ("", "text"),
    ],
)
def test_task_of(prompt, task):
    assert task_of(prompt) == task


@pytest.mark.parametrize("token", ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<image>"])
def test_special_tokens_in_a_prompt_are_refused_by_name(token):
    message = f"the prompt .* holds {token}.* as special tokens and not as text: remove it"
    with pytest.raises(ValueError, match=message):
        build_prompt(f"<VQA>what is {token}?")
    with pytest.raises(ValueError, match=message):
        build_prompt("<CAPTION_TO_PHRASE_GROUNDING>", text=f"a {token} cat")
    with pytest.raises(ValueError, match=message):
        build_prompt("<OPEN_VOCABULARY_DETECTION>", text=["cat", token])
    # The references pass them on.
    assert token in build_prompt(f"<VQA>{token}", compat="original")
    assert "<loc_3>" in build_prompt("<REGION_TO_OCR><loc_1><loc_2><loc_3><loc_4>")
