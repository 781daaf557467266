"""How sure the model was of its words, beside how sure it was of its locations."""

import math

import pytest

from florence_jax.processing import demo_tokenizer, parse_tokens
from florence_jax.processing.confidence import text_confidence

TOKENIZER = demo_tokenizer()
SIZE = (1000, 1000)
BOX, OTHER = "<loc_1><loc_2><loc_3><loc_4>", "<loc_5><loc_6><loc_7><loc_8>"


def scored(text, chances):
    """Ids of a text with the start token, and log-probabilities: of each piece's tokens alike."""
    ids, scores = [TOKENIZER.eos_id], [0.0]
    assert "".join(piece for piece, _ in chances) == text
    for piece, chance in chances:
        added = TOKENIZER.encode([piece])[0][1:-1]
        ids += added
        scores += [math.log(chance)] * len(added)
    return ids, scores


def test_each_shape_has_the_confidence_of_its_own_label():
    text = f"<s>dog{BOX}{OTHER}cat{BOX}</s>"
    ids, scores = scored(
        text,
        [("<s>", 1.0), ("dog", 0.5), (BOX, 0.25), (OTHER, 0.75), ("cat", 0.125), (BOX, 0.5),
         ("</s>", 0.01)],
    )  # fmt: skip
    result = parse_tokens(ids, scores, TOKENIZER, "<OD>", SIZE, label_scores=True)["<OD>"]
    assert result["labels"] == ["dog", "dog", "cat"]
    assert result["label_scores"] == pytest.approx([0.5, 0.5, 0.125])
    assert result["scores"] == pytest.approx([0.25, 0.75, 0.5])
    assert "label_scores" not in parse_tokens(ids, scores, TOKENIZER, "<OD>", SIZE)["<OD>"]


@pytest.mark.parametrize(
    ("task", "text", "chances", "expected"),
    [
        ("<OCR_WITH_REGION>", f"STOP{BOX}{OTHER}", [("STOP", 0.5), (BOX + OTHER, 0.1)], [0.5]),
        ("<REGION_PROPOSAL>", BOX, [(BOX, 0.1)], [1.0]),  # nothing was said
        (
            "<OPEN_VOCABULARY_DETECTION>",
            f"dog<poly>{BOX}{OTHER}</poly>",
            [("dog", 0.5), (f"<poly>{BOX}{OTHER}</poly>", 0.1)],
            [0.5],
        ),
    ],
)
def test_every_form_of_answer(task, text, chances, expected):
    ids, scores = scored(text, chances)
    result = parse_tokens(ids, scores, TOKENIZER, task, SIZE, label_scores=True)[task]
    assert result["label_scores"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([("<s>", 0.1), ("a dog", 0.5), ("</s>", 0.01)], 0.5),
        ([("a dog", 0.5), (BOX, 0.01)], 0.5),  # a region's answer repeats the region
        ([("ab", 0.5), (BOX, 0.01), ("cd", 0.125)], 0.25),
        ([("<s>", 0.1), (BOX, 0.5)], 0.0),
        ([], 0.0),
    ],
)
def test_the_confidence_of_words(pieces, expected):
    ids, scores = scored("".join(piece for piece, _ in pieces), pieces)
    assert text_confidence(*TOKENIZER.decode_with_spans(ids), scores) == pytest.approx(expected)
