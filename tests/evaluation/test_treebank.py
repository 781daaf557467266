"""The tokens of captions are those of the program that COCO's caption evaluation runs in Java."""

import random
import shutil
from pathlib import Path

import pytest

from florence_jax.evaluation.metrics import tokenize

# Caption, and what pycocoevalcap's PTBTokenizer makes of it (recorded from Stanford's program).
RECORDED = {
    "A man's dog isn't here, is it?": "a man 's dog is n't here is it",
    'The sign says "stop" - (in red).': "the sign says stop -lrb- in red -rrb-",
    "They cannot, won't and gonna go!": "they can not wo n't and gon na go",
    "A t-shirt with AT&T on it; 5:30 p.m.": "a t-shirt with at&t on it 5:30 p.m.",
    "Mr. Smith of St. Louis, U.S., costs $5.99": "mr. smith of st. louis u.s. costs $ 5.99",
    "50% off #1 well-known 3/4-inch rock 'n' roll...": "50 % off # 1 well-known 3/4-inch rock 'n' "
    "roll",
    "\u201cCurly\u201d don\u2019t \u2018quotes\u2019 \u2013 café": "curly do n't quotes café",
    "www.nike.com or http://a.b/c?d=e.": "www.nike.com or http://a.b/c?d=e",
    "It's no. 5, not no. five :) &amp; ½": "it 's no. 5 not no five :-rrb- & 1/2",
    "the dogs' ball, y'all": "the dogs ball y' all",
    "": "",
}


def test_recorded_captions():
    for caption, words in RECORDED.items():
        assert tokenize([caption]) == [words], caption


def test_the_next_caption_decides_whether_a_letter_ends_a_sentence():
    assert tokenize(["vitamin b.", "It is here"])[0] == "vitamin b"
    assert tokenize(["vitamin b.", "fish swim"])[0] == "vitamin b."


def test_a_caption_is_one_line():
    assert tokenize(["two\nlines", "one"]) == ["two lines", "one"]


_MARKS = ",.!?;:'\"-()[]&/#@$%*+=_~"
_PIECES = """
's n't '' ... .. -- 're 'll 'd 've 2 10 3.5 12:30 1/2 50% $5 a.m. U.S. St. No. e.g. #1 A I The it
\u2019s \u201c \u201d \u00e9 \u2013 mr. Dr. '80s &amp; .com man woman street holding cannot gonna
red umbrella New York dog's teddy bear frisbee o'clock l'eau well-known T-shirt
"""
_PARTS = [*_MARKS, *_PIECES.split()]


def random_captions(seed, count):
    draw = random.Random(seed)
    return [
        "".join(
            draw.choice(_PARTS) + (" " if draw.random() < 0.55 else "")
            for _ in range(draw.randint(3, 14))
        ).strip()
        for _ in range(count)
    ]


@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_random_captions_against_the_program():
    package = pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap (the test extra)")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    assert Path(package.__path__[0]).is_dir()
    captions = random_captions(0, 3000)
    given = {n: [{"caption": caption}] for n, caption in enumerate(captions)}
    expected = [texts[0] for texts in PTBTokenizer().tokenize(given).values()]
    different = [
        (caption, want, got)
        for caption, want, got in zip(captions, expected, tokenize(captions), strict=True)
        if want.split() != got.split()
    ]
    assert not different, different[:5]
