"""Constrained answers of random weights: always whole, where free ones hardly ever are."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from florence_jax.generation import GenerationConfig, generate
from florence_jax.inference.constraints import AnswerConstraints
from florence_jax.inference.requests import Request
from florence_jax.processing import TASKS, ImageConfig
from tests.constrained.answer_oracle import follows_grammar, reads_back
from tests.inference.counting import counted_programs
from tests.random_pipeline import random_pipeline

EVERY_TASK = (*TASKS, "<DocVQA>")
SEARCHES = {
    "greedy": GenerationConfig(),
    "beam search as published": GenerationConfig(
        num_beams=3, no_repeat_ngram_size=3, early_stopping=True
    ),
    "sampling": GenerationConfig(do_sample=True, top_p=0.95, no_repeat_ngram_size=2),
    "beam sampling": GenerationConfig(do_sample=True, num_beams=2, min_new_tokens=12),
}


@functools.cache
def demo():
    return dataclasses.replace(random_pipeline(), image_config=ImageConfig(size=(64, 64)))


@functools.cache
def constraints() -> AnswerConstraints:
    return demo().constraints


def answers(requests, config, seed, *, constrained):
    """Token ids of the answers, from behind the decoder start token on."""
    pipe, rng = demo(), np.random.default_rng(seed)
    count, vocab = len(requests), pipe.tokenizer.vocab_size
    out = generate(
        pipe.model,
        pipe.params,
        image_features=rng.standard_normal((count, 5, 24)).astype(np.float32),
        input_ids=rng.integers(4, vocab, (count, 12)),
        config=config,
        constraint=constraints()(requests) if constrained else None,
        rng=jax.random.key(seed),
    )
    return [row[1 : n + 1].tolist() for row, n in zip(out.sequences, out.lengths, strict=True)]


def is_whole(ids, task) -> bool:
    tokenizer = demo().tokenizer
    written = tokenizer.decode([tokenizer.eos_id, *ids])
    return follows_grammar(tokenizer, ids, task) and reads_back(written, task)


def whole_share(config, *, constrained, draws=5) -> dict[str, float]:
    """By task, the share of its answers that are whole."""
    requests = [Request(image=None, prompt=task) for task in EVERY_TASK]
    whole = dict.fromkeys(EVERY_TASK, 0)
    for seed in range(draws):
        # Limits at which all kinds of answers are cut at all kinds of places.
        config = dataclasses.replace(config, max_new_tokens=20 + 8 * seed)
        for task, ids in zip(
            EVERY_TASK, answers(requests, config, seed, constrained=constrained), strict=True
        ):
            whole[task] += is_whole(ids, task)
    return {task: count / draws for task, count in whole.items()}


@pytest.mark.parametrize(
    "search",
    # Both of what it consists of are here; how it samples: tests/generation/test_sampling.py.
    [
        pytest.param(name, marks=pytest.mark.slow if name == "beam sampling" else ())
        for name in SEARCHES
    ],
)
def test_every_constrained_answer_is_whole_and_hardly_a_free_one(search):
    constrained = whole_share(SEARCHES[search], constrained=True)
    assert set(constrained.values()) == {1.0}, constrained
    free = whole_share(SEARCHES[search], constrained=False)
    # What a fine-tune's task answers is free text with markup: nearly anything is whole.
    del free["<DocVQA>"]
    assert np.mean(list(free.values())) < 0.15, free


@pytest.mark.parametrize("beams", [1, 3])
def test_every_limit_gives_whole_answers_or_says_what_the_least_is(beams):
    requests = [
        Request(image=None, prompt="<OD>"),
        Request(image=None, prompt="<REGION_TO_CATEGORY>", labels=["cat", "cat house"]),
        Request(image=None, prompt="<OPEN_VOCABULARY_DETECTION>", text=["a", "b"]),
        Request(image=None, prompt="<REGION_TO_SEGMENTATION>"),
    ]
    least = len("cat") + 2  # a token each, <s> and </s>
    for limit in range(1, 40):
        config = GenerationConfig(num_beams=beams, max_new_tokens=limit)
        if limit < least:
            with pytest.raises(ValueError, match=r"in row . takes . tokens"):
                answers(requests, config, limit, constrained=True)
            continue
        decoded = answers(requests, config, limit, constrained=True)
        for request, ids in zip(requests, decoded, strict=True):
            assert len(ids) <= limit
            assert is_whole(ids, request.prompt)


def test_the_least_limit_is_named_with_its_row():
    requests = [
        Request(image=None, prompt="<OD>"),
        Request(image=None, prompt="<REGION_TO_CATEGORY>", labels=["horse", "cats"]),
    ]
    with pytest.raises(ValueError, match=r"max_new_tokens=5 .* row 1 takes 6 tokens"):
        answers(requests, GenerationConfig(max_new_tokens=5), 0, constrained=True)


def test_labels_are_those_that_were_given():
    lists = [["cat", "dog", "cat house"], ["dog house", "d"], ["tree"]]
    requests = [
        Request(image=None, prompt=task, labels=labels)
        for task in ("<OD>", "<OCR_WITH_REGION>", "<CAPTION_TO_PHRASE_GROUNDING>")
        for labels in lists
    ]
    found = {number: set() for number in range(len(requests))}
    for seed in range(6):
        # The model's own wish to stop would leave most of these answers empty.
        config = GenerationConfig(do_sample=True, max_new_tokens=60, min_new_tokens=30)
        decoded = answers(requests, config, seed, constrained=True)
        for number, (request, ids) in enumerate(zip(requests, decoded, strict=True)):
            assert is_whole(ids, request.prompt)
            text = demo().tokenizer.decode(ids, skip_special_tokens=False)
            found[number] |= {part.split(">")[-1] for part in text.split("<loc_")[:-1]} - {""}
    for number, request in enumerate(requests):
        assert found[number]
        assert found[number] <= set(request.labels)


def test_one_label_is_the_answer_of_a_text_task():
    labels = ["cat", "cat house", "dog"]
    results = demo()(
        np.zeros((8, 8, 3), np.uint8),
        ["<REGION_TO_CATEGORY>", "<CAPTION>", "<VQA>What is this?"],
        region=[(0, 0, 4, 4), None, None],
        labels=labels,
        constrained=True,
        max_new_tokens=30,
        free_prompt=True,
    )
    region, caption, own = (answer for result in results for answer in result.values())
    # About a region the published models repeat its box behind the label.
    assert region.split("<loc_")[0] in labels
    assert caption in labels
    assert own in labels


def test_the_pipeline_answers_all_tasks_in_one_batch():
    image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    regions = [(1, 2, 20, 30) if TASKS[task].takes == "region" else None for task in TASKS]
    texts = ["a cat" if TASKS[task].takes == "text" else None for task in TASKS]
    results = demo()(
        image, list(TASKS), text=texts, region=regions, constrained=True, max_new_tokens=48
    )
    shapes = 0
    for task, result in zip(TASKS, results, strict=True):
        answer = result[task]
        if isinstance(answer, str):
            assert "<s>" not in answer
            assert "\ufffd" not in answer
            continue
        for box in answer.get("bboxes", []):
            assert 0 <= box[0] <= box[2] <= 30
            assert 0 <= box[1] <= box[3] <= 40
        assert all(len(quad) == 8 for quad in answer.get("quad_boxes", []))
        for polygon in [part for instance in answer.get("polygons", []) for part in instance]:
            assert len(polygon) >= 6
            assert len(polygon) % 2 == 0
        shapes += sum(len(values) for name, values in answer.items() if "scores" in name)
    assert set(
        results[list(TASKS).index("<OPEN_VOCABULARY_DETECTION>")]["<OPEN_VOCABULARY_DETECTION>"][
            "bboxes_labels"
        ]
    ) <= {"a cat"}
    assert shapes >= 5


def test_other_labels_and_tasks_compile_nothing():
    image = np.zeros((8, 8, 3), np.uint8)

    def ask(task, labels, limit):
        demo()([image] * 2, [task, "<OD>"], labels=[labels, None], constrained=True,
               max_new_tokens=limit, num_beams=1)  # fmt: skip

    ask("<OD>", ["cat"], 20)
    rng = np.random.default_rng(0)
    with counted_programs() as programs:
        for number in range(8):
            words = [f"{rng.integers(10**6)}" for _ in range(rng.integers(1, 90))]
            task = ("<OD>", "<CAPTION>", "<OCR_WITH_REGION>", "<DENSE_REGION_CAPTION>")[number % 4]
            ask(task, words, int(rng.integers(20, 60)))
        ask("<REGION_PROPOSAL>", None, 33)
    assert programs == []


def test_a_free_call_is_not_changed_by_a_constrained_one():
    image = np.full((8, 8, 3), 90, np.uint8)
    arguments = {"max_new_tokens": 20, "num_beams": 1}
    before = demo()(image, "<CAPTION>", **arguments)
    constrained = demo()(image, "<CAPTION>", constrained=True, **arguments)
    assert demo()(image, "<CAPTION>", **arguments) == before != constrained


def test_labels_without_constrained_are_refused():
    with pytest.raises(ValueError, match=r"labels=\['cat'\] confine only constrained answers"):
        demo()(np.zeros((8, 8, 3), np.uint8), "<OD>", labels=["cat"])
