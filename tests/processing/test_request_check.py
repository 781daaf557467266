"""Refused before a model is asked: misspelt tasks, missing inputs, regions of no picture."""

import pytest

from florence_jax.processing import TASKS, build_prompt, check_request
from florence_jax.processing.request_check import (
    check_task_of_data,
    may_be_declared,
    tasks_of_data,
)

SIZE = (640, 480)


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("OD", "<OD>"),
        ("od", "<OD>"),
        ("<od>", "<OD>"),
        ("<ODD>", "<OD>"),
        ("<OD >", "<OD>"),
        ("< OD>", "<OD>"),
        ("<OD", "<OD>"),
        ("OD>", "<OD>"),
        ("[OD]", "<OD>"),
        ("\uff1cOD\uff1e", "<OD>"),
        ("<OBJECT_DETECTION>", "<OD>"),
        ("object detection", "<OD>"),
        ("detect", "<OD>"),
        ("caption", "<CAPTION>"),
        ("Caption.", "<CAPTION>"),
        ("<CAPTIONS>", "<CAPTION>"),
        ("<captoin>", "<CAPTION>"),
        ("<DETAILED CAPTION>", "<DETAILED_CAPTION>"),
        ("<MORE-DETAILED-CAPTION>", "<MORE_DETAILED_CAPTION>"),
        ("ocr", "<OCR>"),
        ("<OCR_WITH_REGIONS>", "<OCR_WITH_REGION>"),
        ("<REGION_TO_CATEGORIES><loc_1><loc_2><loc_3><loc_4>", "<REGION_TO_CATEGORY>"),
        ("<PHRASE_GROUNDING>a cat", "<CAPTION_TO_PHRASE_GROUNDING>"),
        ("OPEN_VOCABULARY_DETECTION cat", "<OPEN_VOCABULARY_DETECTION>"),
        ("<OPEN_VOCAB_DETECTION>cat", "<OPEN_VOCABULARY_DETECTION>"),
        ("&lt;OD&gt;", "<OD>"),
        ("%3COD%3E", "<OD>"),
        ("\\u003cod\\u003e", "<OD>"),
        ("O\u200bD", "<OD>"),
        ("OD cat", "<OD>"),
        ("OCR: the sign", "<OCR>"),
    ],
)
def test_a_near_miss_is_an_error_that_says_what_was_meant(prompt, meant):
    with pytest.raises(ValueError, match="did you mean '<") as caught:
        check_request(prompt)
    assert f"did you mean {meant!r}?" in str(caught.value)
    assert "--free-prompt" in str(caught.value)
    check_request(prompt, free_prompt=True)


def test_a_token_that_is_like_no_task_lists_the_tasks():
    with pytest.raises(ValueError, match="'<DocVQA>' is none of the 15") as caught:
        check_request("<DocVQA>What is the total?")
    assert all(task in str(caught.value) for task in TASKS)


def test_a_declared_task_and_a_free_prompt_are_asked():
    question = "<DocVQA>What is the total?"
    check_request(question, free_prompt=True)
    check_request(question, declared={"<DocVQA>"})
    with pytest.raises(ValueError, match="none of the 15"):
        check_request("<VQA>What is the total?", declared={"<DocVQA>"})
    assert build_prompt(question) == question


@pytest.mark.parametrize(
    "prompt",
    [
        "What is this?",
        "What does the image describe?",
        "Describe the weather in this picture",
        "how many dogs are there",
        "is x < y and y > 3 here?",
        "<loc_1><loc_2><loc_3><loc_4> what is here?",
        "Was steht da?",
    ],
)
def test_a_sentence_is_a_free_prompt(prompt):
    check_request(prompt)


@pytest.mark.parametrize("prompt", ["", " \n", None, 5, ["<OD>"]])
def test_nothing_is_no_prompt(prompt):
    with pytest.raises(ValueError, match="prompt"):
        check_request(prompt)


def test_every_task_passes_with_its_input():
    for token, task in TASKS.items():
        given = {"text": {"text": "a cat"}, "region": {"region": (1, 2, 30, 40)}}
        check_request(token, **given.get(task.takes, {}), image_size=SIZE)
        check_request(f" {token}\n", **given.get(task.takes, {}), image_size=SIZE)
    check_request("<OPEN_VOCABULARY_DETECTION>", text=["cat", "dog"])
    check_request("<OPEN_VOCABULARY_DETECTION>cat")
    check_request("<REGION_TO_OCR><loc_1><loc_2><loc_3><loc_4>")


@pytest.mark.parametrize("task", [t for t in TASKS.values() if t.takes != "nothing"])
@pytest.mark.parametrize("prompt", ["{}", "{} ", " {}\n"])
def test_a_missing_text_or_region_is_an_error(task, prompt):
    with pytest.raises(ValueError, match=f"{task.token} needs a {task.takes} and got none"):
        check_request(prompt.format(task.token))


@pytest.mark.parametrize("text", ["", "  ", []])
def test_an_empty_text_is_none(text):
    with pytest.raises(ValueError, match="needs a text and got none"):
        check_request("<OPEN_VOCABULARY_DETECTION>", text=text)


@pytest.mark.parametrize("text", [5, [1, 2], {"a": 1}, b"cat"])
def test_a_text_is_text(text):
    with pytest.raises(ValueError, match="text must be a string or a list of strings"):
        check_request("<OPEN_VOCABULARY_DETECTION>", text=text)


@pytest.mark.parametrize("task", [t for t in TASKS.values() if t.takes == "nothing"])
def test_an_input_too_many_is_an_error(task):
    with pytest.raises(ValueError, match="takes no input"):
        check_request(task.token, text="a cat")
    with pytest.raises(ValueError, match="takes no input"):
        check_request(task.token, region=(1, 2, 30, 40))
    with pytest.raises(ValueError, match="takes no input"):
        check_request(f"{task.token}a cat")


def test_the_wrong_kind_of_input_is_an_error():
    with pytest.raises(ValueError, match="the region is 'a cat'"):
        check_request("<REGION_TO_CATEGORY>", text="a cat")
    with pytest.raises(ValueError, match="takes a text"):
        check_request("<CAPTION_TO_PHRASE_GROUNDING>", region=(1, 2, 30, 40))


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((0.1, 0.2, 0.5, 0.9), "looks like shares"),
        ((0, 0, 1, 1), "looks like shares"),
        ((0, 0, 1.0, 0.5), "looks like shares"),
        ((0.1, 0.1, 0.9, 1.001), "looks like shares"),
        ((0, 0, 641, 100), "outside the image of 640 x 480"),
        ((0, 0, 100, 5000), "outside the image"),
        ((700, 500, 800, 600), "outside the image"),
        ((-5, 0, 100, 100), "outside the image"),
        ((300, 20, 10, 200), "wrong order"),
        ((10, 200, 300, 20), "wrong order"),
        ((10, 20, 10, 200), "wrong order"),
        ((float("nan"), 0, 5, 5), "four finite numbers"),
        ((0, 0, float("inf"), 5), "four finite numbers"),
        ((0, 0, 10**400, 5), "expected .x0, y0, x1, y1. in pixels"),
        ((0, 0, "a", 5), "expected .x0, y0, x1, y1. in pixels"),
        ((0, 0, None, 5), "expected .x0, y0, x1, y1. in pixels"),
        ((1, 2, 3), "four finite numbers"),
        ((1, 2, 3, 4, 5), "four finite numbers"),
        (7, "expected .x0, y0, x1, y1. in pixels"),
        ("10,20,30,40", "tokens <loc_0>"),
        ("<loc_1><loc_2><loc_3>", "tokens <loc_0>"),
        ("<loc_1><loc_2><loc_3><loc_4><loc_5>", "tokens <loc_0>"),
        ("<loc_1><loc_2><loc_3><loc_1000>", "tokens <loc_0>"),
        ("<loc_01><loc_2><loc_3><loc_4>", "tokens <loc_0>"),
        ("<loc_300><loc_2><loc_3><loc_4>", "wrong order"),
        ({10: 0, 20: 0, 300: 0, 200: 0}, "expected .x0, y0, x1, y1. in pixels"),
        (b"1234", "expected .x0, y0, x1, y1. in pixels"),
        ((number for number in (10, 20, 300, 200)), "expected .x0, y0, x1, y1. in pixels"),
    ],
)
def test_a_region_is_one_of_the_picture(region, message):
    with pytest.raises(ValueError, match=message):
        check_request("<REGION_TO_CATEGORY>", region=region, image_size=SIZE)


def test_shares_are_told_the_pixels_of_the_picture():
    with pytest.raises(ValueError, match=r"the whole image is \(0, 0, 640, 480\)"):
        check_request("<REGION_TO_CATEGORY>", region=(0.0, 0.0, 1.0, 1.0), image_size=SIZE)


@pytest.mark.parametrize("region", [(0, 0, 640, 480), (0, 0, 640.4, 480), (639, 479, 640, 480)])
def test_a_region_may_reach_the_edge(region):
    check_request("<REGION_TO_OCR>", region=region, image_size=SIZE)


def test_without_the_pictures_size_the_rest_is_checked():
    check_request("<REGION_TO_OCR>", region=(0, 0, 5000, 5000))
    with pytest.raises(ValueError, match="looks like shares"):
        check_request("<REGION_TO_OCR>", region=(0, 0, 0.5, 0.5))


def test_which_prompts_depend_on_the_checkpoint():
    assert may_be_declared("<DocVQA>What?")
    assert not any(map(may_be_declared, ["<OD>", "<od>", "OD", "What is this?"]))


def test_a_data_sets_own_tasks_are_no_misspelt_ones():
    prompts = ["<DocVQA>a?", "<VQA>b?", "<od>", "<ODD>", "<OD>", "what?", "<OBJECT_DETECTION>"]
    assert tasks_of_data(prompts) == {"<DocVQA>", "<VQA>"}


@pytest.mark.parametrize("prompt", ["<loc_1><loc_2><loc_3><loc_4>", "<and>", " <sep> "])
def test_locations_alone_ask_nothing(prompt):
    with pytest.raises(ValueError, match="is none of the 15"):
        check_request(prompt)
    check_request(f"what is in {prompt}")


@pytest.mark.parametrize("prompt", ["OD", "<od>", "<ODD>", "<OBJECT_DETECTION>", "CAPTION a dog"])
def test_training_data_names_tasks_as_they_are_asked(prompt):
    with pytest.raises(ValueError, match=r"did you mean '<(OD|CAPTION)>'"):
        check_task_of_data(prompt)
    check_task_of_data(prompt, declared={prompt, prompt.split()[0]})


@pytest.mark.parametrize(
    "prompt", ["", "<OD>", "<DocVQA>What is the total?", "what is <b> here?", "detect cat"]
)
def test_training_data_has_tasks_of_its_own(prompt):
    check_task_of_data(prompt)
