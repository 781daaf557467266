"""The answers that each task's automaton allows: exactly the whole ones."""

import functools
import itertools
import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from florence_jax.constrained.answer_grammars import AnswerGrammars
from florence_jax.constrained.answer_schema import AnswerSchema, answer_schema
from florence_jax.processing import TASKS, demo_tokenizer, load_tokenizer
from tests.constrained.answer_oracle import follows_grammar, reads_back
from tests.shared_data import needs_shared, shared_path
from tests.token_walk import FINISHED, accepts, next_state

EVERY_TASK = (*TASKS, "<DocVQA>")
fuzz = settings(max_examples=250)


@functools.cache
def vocabulary(name):
    """A tokenizer, its automata, and tokens of every kind that make or break an answer."""
    tokenizer = demo_tokenizer() if name == "bytes" else load_tokenizer(shared_path("processor"))
    automata = AnswerGrammars(tokenizer, tokenizer.vocab_size + 5)
    spelled = tokenizer.encode(
        ["cat it A < </ s> <s loc_ pad> / _", " \n中é🦄\u3000\u2028", "<sep><poly></poly><od><and>"]
    )
    locations = [tokenizer.loc_id(bin) for bin in (0, 5, 6, 500, 999)]
    tokens = sorted({*itertools.chain(*spelled), *range(4), *locations})
    return tokenizer, automata, tokens


both = pytest.mark.parametrize("name", ["bytes", pytest.param("published", marks=needs_shared)])

# fmt: off
label = st.one_of(
    st.sampled_from(["cat", "a red car", "it", " cat", "cat ", "é", "中新中", "a\nb", "<", "a<b",
                     "</s", "s>", "\u3000", "x\u3000", "<pad", "<lo", ""]),
    st.text(max_size=4),
)
location = st.sampled_from([0, 1, 2, 500, 999]).map(lambda bin: f"<loc_{bin}>")
point = st.tuples(location, location).map("".join)
ordered_box = st.lists(st.integers(0, 999), min_size=4, max_size=4).map(
    lambda bins: "".join(
        f"<loc_{b}>" for b in (min(bins[::2]), min(bins[1::2]), max(bins[::2]), max(bins[1::2]))
    )
)
shape = st.one_of(
    ordered_box,
    ordered_box,
    st.lists(location, min_size=1, max_size=9).map("".join),
    st.lists(point, min_size=4, max_size=4).map("".join),
    st.lists(point, min_size=3, max_size=5).map("".join),
    st.lists(st.lists(point, min_size=3, max_size=4).map("".join), min_size=1, max_size=3).map(
        lambda polygons: "<poly>" + "<sep>".join(polygons) + "</poly>"
    ),
    st.sampled_from(["<sep>", "<poly>", "</poly>", "<od>", "<pad>", "<mask>", "</s>", "<s>"]),
)
# fmt: on
phrase = st.tuples(label, shape).map("".join)
answers = st.one_of(
    st.lists(phrase, max_size=4).map("".join),
    st.lists(shape, max_size=4).map("".join),
    st.tuples(label, label, shape).map("".join),
    label,
)


def check(name, ids):
    tokenizer, automata, _ = vocabulary(name)
    automaton, starts = automata.automaton()
    for task in EVERY_TASK:
        whole = accepts(automaton, starts[answer_schema(task)], ids)
        assert whole == follows_grammar(tokenizer, ids, task), (task, tokenizer.decode(ids))
        if whole:
            assert reads_back(tokenizer.decode([tokenizer.eos_id, *ids]), task)


@both
@fuzz
@given(text=answers, more=st.integers(0, 2))
@example(text="", more=0)
@example(text="it<loc_1><loc_1><loc_1><loc_1>", more=2)
@example(text="<loc_5><loc_5><loc_4><loc_5>", more=0)
@example(text="cat<loc_1><loc_2><loc_3><loc_4>dog<poly>" + "<loc_1>" * 6 + "</poly>", more=0)
@example(text="car<loc_52><loc_332><loc_932><loc_774>", more=0)
def test_written_answers(name, text, more):
    tokenizer, _, _ = vocabulary(name)
    (ids,) = tokenizer.encode([text])
    check(name, [tokenizer.bos_id] * more + ids)


@both
@fuzz
@given(data=st.data())
def test_any_tokens(name, data):
    """Also spellings that no tokenizer writes, such as a marker of several ordinary tokens."""
    tokenizer, _, tokens = vocabulary(name)
    ids = data.draw(st.lists(st.sampled_from(tokens), max_size=9))
    check(name, [tokenizer.bos_id, *ids, tokenizer.eos_id])


@both
@pytest.mark.parametrize("task", EVERY_TASK)
def test_random_walks_are_whole(name, task):
    tokenizer, automata, tokens = vocabulary(name)
    automaton, starts = automata.automaton()
    rng = random.Random(task)
    start = starts[answer_schema(task)]
    for _ in range(40):
        ids, state = [], start
        while state != FINISHED and len(ids) < 40:
            after = {token: next_state(automaton, state, ids, token) for token in tokens}
            token = rng.choice([token for token, reached in after.items() if reached])
            ids.append(token)
            state = after[token]
        assert follows_grammar(tokenizer, ids, task) == (state == FINISHED)
        if state == FINISHED:
            assert reads_back(tokenizer.decode([tokenizer.eos_id, *ids]), task)


@needs_shared
def test_what_the_published_models_answered_is_allowed():
    """Text that real checkpoints wrote, as public tests of other projects pin it."""
    tokenizer, automata, _ = vocabulary("published")
    automaton, starts = automata.automaton()
    cases = json.loads(shared_path("expected_postprocess.json").read_text("utf-8"))["cases"]
    answered = [case for case in cases if str(case.get("text", "")).startswith("</s><s>")]
    answered = [case for case in answered if "task" in case]
    assert len(answered) >= 12
    for case in answered:
        (ids,) = tokenizer.encode([case["text"].replace("<pad>", "")])
        start = starts[answer_schema(case["task"])]
        # Without the decoder start token, and the <s> and </s> that encoding adds.
        assert accepts(automaton, start, ids[2:-1]), case["text"]


LABELS = ("car", "car door", "carpet", "traffic light", "a", "中", "a car")


@both
@pytest.mark.parametrize("task", ["<OD>", "<OCR_WITH_REGION>", "<REGION_TO_CATEGORY>", "<VQA>"])
def test_given_labels_are_the_only_ones(name, task):
    tokenizer, automata, _ = vocabulary(name)
    form = answer_schema(task, labels=LABELS)
    automaton, starts = automata.automaton([form])
    shape = {"<OD>": "<loc_1>" * 4, "<OCR_WITH_REGION>": "<loc_1>" * 8}.get(task, "")
    others = ("ca", "cars", "car d", "car door ", "door", "traffic", "", " car", "b", "Car")
    for given_label in (*LABELS, *others):
        (ids,) = tokenizer.encode([given_label + shape])
        assert accepts(automaton, starts[form], ids) == (given_label in LABELS), given_label
        (ids,) = tokenizer.encode([(given_label + shape) * 2])
        several = given_label in LABELS and shape != ""
        assert accepts(automaton, starts[form], ids) == several, given_label
    if shape:
        (ids,) = tokenizer.encode(["car" + shape + "carpet" + shape + "a" + shape])
        assert accepts(automaton, starts[form], ids)


@both
def test_several_lists_in_one_table_do_not_mix(name):
    tokenizer, automata, _ = vocabulary(name)
    forms = [
        answer_schema("<OD>", labels=["cat", "dog"]),
        answer_schema("<OD>", labels=["dog house", "cat"]),
        answer_schema("<REGION_TO_CATEGORY>", labels=["dog"]),
        answer_schema("<OPEN_VOCABULARY_DETECTION>", ["dog", "cat house"]),
    ]
    automaton, starts = automata.automaton(forms)
    box = "<loc_3>" * 4
    texts = ["cat" + box, "dog" + box, "dog house" + box, "dog", "cat house" + box, "mouse" + box]
    allowed = [
        [accepts(automaton, starts[form], tokenizer.encode([text])[0]) for text in texts]
        for form in (*forms, answer_schema("<OD>"), answer_schema("<CAPTION>"))
    ]
    assert allowed == [
        [True, True, False, False, False, False],
        [True, False, True, False, False, False],
        [False, True, False, True, False, False],
        [False, True, False, False, True, False],
        [True, True, True, False, True, True],
        [False, False, False, True, False, False],
    ]


def test_open_vocabulary_detection_is_confined_to_its_classes():
    task = "<OPEN_VOCABULARY_DETECTION>"
    both_classes = AnswerSchema("labelled boxes or polygons", ("a cat", "dog"))
    assert answer_schema(task, ["a cat", " dog"]) == both_classes
    assert answer_schema(task, "a cat <and> dog<and>") == both_classes
    assert answer_schema(task + "a cat <and>dog") == both_classes
    assert answer_schema(task, "dog", labels=["dog", "a cat", "dog"]).labels == ("dog", "a cat")
    assert answer_schema(task).labels is None
    assert answer_schema("<CAPTION_TO_PHRASE_GROUNDING>", "a cat").labels is None


def test_one_shape_decides_for_all_in_open_vocabulary_detection():
    tokenizer, automata, _ = vocabulary("bytes")
    form = answer_schema("<OPEN_VOCABULARY_DETECTION>", ["cat", "dog"])
    automaton, starts = automata.automaton([form])
    box, instance = "<loc_1>" * 4, "<poly>" + "<loc_1>" * 6 + "</poly>"
    for text, whole in {
        "cat" + box + "dog" + box: True,
        "cat" + instance + "dog" + instance * 2: True,
        "cat" + box + "dog" + instance: False,
        "cat" + instance + "dog" + box: False,
    }.items():
        assert accepts(automaton, starts[form], tokenizer.encode([text])[0]) == whole, text


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("<OD>", [], "labels must be a list of one or more strings"),
        ("<OD>", "cat", "labels must be a list"),
        ("<OD>", ["cat", 3], "labels must be a list"),
        ("<OD>", ["cat", "  "], "the label '' cannot be read back"),
        ("<OD>", ["a<b"], "the label 'a<b' cannot be read back"),
        ("<OD>", ["two\nlines"], "cannot be read back"),
        ("<OD>", ["\ud800"], "cannot be read back"),
        ("<REGION_PROPOSAL>", ["cat"], "the answer to <REGION_PROPOSAL> has no labels"),
        ("<REGION_TO_SEGMENTATION>", ["cat"], "has no labels"),
    ],
)
def test_wrong_labels_are_named(task, labels, message):
    with pytest.raises(ValueError, match=message):
        answer_schema(task, labels=labels)


def test_a_tokenizer_that_the_model_does_not_know_is_refused():
    with pytest.raises(ValueError, match="the tokenizer has 1284 tokens, the model only 1000"):
        AnswerGrammars(demo_tokenizer(), 1000)


def test_more_labels_than_a_table_holds_are_refused():
    _, automata, _ = vocabulary("bytes")
    form = AnswerSchema("labelled boxes", tuple(f"{number:06}" for number in range(40_000)))
    with pytest.raises(ValueError, match="give fewer labels"):
        automata.automaton([form])
