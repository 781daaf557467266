"""Differential fuzzing: Florence-like and hostile text against both references, exact equality."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from florence_jax.processing import TASKS, parse, parse_tokens
from tests.shared_data import needs_shared

pytestmark = needs_shared

EVERY_TASK = (*TASKS, "<DocVQA>")

location = st.one_of(
    st.integers(0, 999),
    st.integers(0, 1100),
    st.integers(10**4, 10**12),
).map(lambda bin: f"<loc_{bin}>")
locations = st.lists(location, min_size=1, max_size=18).map("".join)
label = st.one_of(
    st.sampled_from(
        ["cat", " a red car ", "the", "it", "it é", "É", "中新中", "a\nb", "\n x", "c\n"]
    ),
    st.text(max_size=6),
)
# fmt: off
markup = st.sampled_from([
    "<s>", "</s>", "<pad>", "<sep>", "<poly>", "</poly>", "<od>", "</od>", "<box>", "</bbox>",
    "<obj>", "<ground>", "<and>", "<OD>", "<mask>", "<", ">", "<<", "<loc_", "<loc_>", "loc_7>",
    "<loc_7", "<loc_٣>", "<loc_007>", "<<s>/s>", "<po<s>ly>", "<seg>cat",
])
# fmt: on
unit_run = st.lists(
    st.one_of(location, st.sampled_from(["<sep>", "<poly>", "</poly>"])), min_size=1, max_size=12
).map("".join)
phrase = st.tuples(label, locations).map("".join)
answer = st.lists(
    st.one_of(phrase, label, locations, unit_run, markup), min_size=0, max_size=10
).map("".join)
image_size = st.one_of(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.just((640, 480)),
    st.tuples(st.floats(0.5, 3000), st.floats(0.5, 3000)),
)

fuzz = settings(max_examples=250)


def check(reference, text, size, compat):
    for task in EVERY_TASK:
        theirs = reference.post_process_generation(text=text, task=task, image_size=size)
        assert parse(text, task, size, compat=compat) == theirs


@fuzz
@given(text=answer, size=image_size)
@example(text="<loc_1><sep><loc_2><loc_3>", size=(10, 10))
@example(text="<loc_1><loc_2><loc_3><loc_4><loc_5>", size=(10, 10))
@example(text="cat<sep><poly><loc_1><loc_2><loc_3></poly><poly><loc_4></poly>", size=(10, 10))
@example(text="x" + "<loc_99999999999>" * 9, size=(5000, 5000))
def test_native_text(native_processor, text, size):
    check(native_processor, text, size, "native")


@fuzz
@given(text=answer, size=image_size)
@example(text="loc_1>" + "<loc_1>" * 8 + "<poly>", size=(10, 10))
@example(text="<loc_7> cat<poly><loc_1><loc_2><loc_3></poly>", size=(10, 10))
@example(text="<poly></s><s>a" + "<loc_5>" * 9 + "</s><pad>", size=(10, 10))
def test_original_text(original_processor, text, size):
    check(original_processor, text, size, "original")


@fuzz
@given(text=answer, seed=st.integers(0, 2**32), size=image_size)
def test_token_sequences_and_scores(
    native_processor, original_processor, tokenizer, text, seed, size
):
    ids = [2, *tokenizer.encode([text])[0]]
    rng = random.Random(seed)
    scores = [0.0, *(-rng.expovariate(1.0) for _ in ids[1:])]
    for task in EVERY_TASK:
        native = native_processor.post_process_generation(
            sequence=list(ids), task=task, image_size=size
        )
        assert parse_tokens(ids, scores, tokenizer, task, size, compat="native") == native
        original = original_processor.post_process_generation(
            sequence=list(ids), transition_beam_score=scores[1:], task=task, image_size=size
        )
        assert parse_tokens(ids, scores, tokenizer, task, size, compat="original") == original
        unscored = original_processor.post_process_generation(
            sequence=list(ids), task=task, image_size=size
        )
        assert parse_tokens(ids, None, tokenizer, task, size, compat="original") == unscored


def test_native_skips_a_leading_bos(native_processor, tokenizer):
    ids = tokenizer.encode(["cat<loc_1><loc_2><loc_3><loc_4>"])[0]
    theirs = native_processor.post_process_generation(sequence=ids, task="<OD>", image_size=(9, 9))
    assert parse_tokens(ids, None, tokenizer, "<OD>", (9, 9), compat="native") == theirs


@pytest.mark.parametrize("size", [(640, 480), (1300, 876), (1, 1), (4999, 3)])
def test_every_bin_gives_the_references_coordinates(native_processor, original_processor, size):
    text = "a" + "".join(f"<loc_{bin}>" for bin in range(1000))
    check(native_processor, text, size, "native")
    check(original_processor, text, size, "original")
