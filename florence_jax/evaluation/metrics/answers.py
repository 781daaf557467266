"""Metrics of short answers: exact match, edit distance, ANLS, and three VQA accuracies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np


def exact_match(truths: Iterable[str], answer: str) -> float:
    """1.0 if the answer equals one of the truths exactly, else 0.0."""
    return float(any(answer == truth for truth in truths))


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: characters to insert, delete or replace."""
    letters = np.frombuffer(other.encode("utf-32-le"), np.uint32)
    places = np.arange(len(letters) + 1)
    row = places.copy()
    for number, letter in enumerate(one, start=1):
        replaced = row[:-1] + (letters != ord(letter))
        best = np.concatenate([[number], np.minimum(row[1:] + 1, replaced)])
        # Insertions run along the row: the least of all entries before, one more for each place.
        row = np.minimum.accumulate(best - places) + places
    return int(row[-1])


def similarity(one: str, other: str) -> float:
    """1 minus the edit distance over the longer text's length; 1 for two empty ones."""
    longer = max(len(one), len(other))
    return 1.0 - edit_distance(one, other) / longer if longer else 1.0


def anls(truths: Iterable[str], answer: str, *, threshold: float = 0.5) -> float:
    """One answer's term of the average normalised Levenshtein similarity (ANLS).

    Equation 1 of https://arxiv.org/abs/1907.00490: the similarity to the best truth, ignoring case
    and repeated spaces; 0 if the normalised distance is above `threshold`. At the threshold itself
    the equation gives 0. DocVQA's server counts a similarity of exactly 0.5, and so does this.

    Raises:
        ValueError: there is no truth.
    """
    given = _plain(answer)
    best = max((similarity(_plain(truth), given) for truth in truths), default=None)
    if best is None:
        raise ValueError(f"the answer {answer!r} has no truth to be compared with")
    return best if 1.0 - best <= threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_->< @`,?!'.replace(" ", "")
# Both expressions are the challenge's. The first is meant to keep periods after a digit, but keeps
# those before one. At most 32 periods are removed, as the challenge passes a flag for the count.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MOST_PERIODS = 32
_DIGIT_COMMA = re.compile(r"(\d)(,)(\d)")


def vqa_accuracy(truths: Sequence[str], answer: str) -> float:
    """VQAv2 accuracy of one answer (https://arxiv.org/abs/1505.00468, section 5).

    This is min(1, annotators who gave the answer / 3), averaged over leaving out each annotator. As
    in the challenge's evaluation (GT-Vision-Lab/VQA, vqaEval.py), texts are normalised only if the
    annotators disagree. Otherwise the answer must equal theirs exactly, capitals included.

    Args:
        truths: the annotators' answers, ten of them in VQAv2, TextVQA and VizWiz.
        answer: the model's.

    Returns:
        0..1.

    Raises:
        ValueError: there is no truth.
    """
    people = [_one_line(truth) for truth in truths]
    given = _one_line(answer)
    if len(set(people)) > 1:
        people = [normalized_answer(text) for text in people]
        given = normalized_answer(given)
    return _agreement(people, given)


def textvqa_accuracy(truths: Sequence[str], answer: str) -> float:
    """TextVQA accuracy of one answer: `vqa_accuracy` of texts that are always normalised.

    As in its evaluation (facebookresearch/mmf, TextVQAAccuracyEvaluator), commas and question marks
    are dropped and "'s" is split off first. Arguments, result and errors: `vqa_accuracy`.
    """
    return _agreement([_textvqa_answer(truth) for truth in truths], _textvqa_answer(answer))


def vizwiz_accuracy(truths: Sequence[str], answer: str) -> float:
    """VizWiz accuracy of one answer: `vqa_accuracy` with only the model's answer normalised.

    As in its evaluation (the VizWiz Python API, vqaEval.py), the annotators' answers are compared
    as they are in the file. Arguments, result and errors: `vqa_accuracy`.
    """
    return _agreement(truths, normalized_answer(_one_line(answer)))


def _agreement(people: Sequence[str], given: str) -> float:
    if not people:
        raise ValueError(f"the answer {given!r} has no truths to be compared with")
    agreed = [text == given for text in people]
    others = (sum(agreed) - own for own in agreed)
    return sum(min(1.0, count / 3) for count in others) / len(people)


def _textvqa_answer(text: str) -> str:
    tokenized = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalized_answer(_one_line(tokenized))


def normalized_answer(text: str) -> str:
    """The answer as vqaEval's `processPunctuation` and `processDigitArticle` make it.

    Lower case, without punctuation and articles, numbers as digits, contractions with apostrophes.
    """
    stripped = text
    between_digits = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or between_digits else " ")
    stripped = _PERIOD.sub("", stripped, count=_MOST_PERIODS)
    words = (_DIGITS.get(word, word) for word in stripped.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


# The challenge's table, oddities included ("somebody'd" loses its apostrophe). Keys that hold
# capitals there are left out: words are in lower case when they are looked up.
_TABLE = """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've
couldnt've=couldn't've didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've
hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's
howd=how'd howll=how'll hows=how's isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll
let's=let's maam=ma'am mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've
mightve=might've mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock
oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't
shed've=she'd've she'dve=she'd've she's=she's shouldve=should've shouldnt=shouldn't
shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd
somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll
somebodys=somebody's someoned=someone'd someoned've=someone'd've someone'dve=someone'd've
someonell=someone'll someones=someone's somethingd=something'd somethingd've=something'd've
something'dve=something'd've somethingll=something'll thats=that's thered=there'd
thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd
theyd've=they'd've they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas
wasnt=wasn't wed've=we'd've we'dve=we'd've weve=we've werent=weren't whatll=what'll
whatre=what're whats=what's whatve=what've whens=when's whered=where'd wheres=where's
whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's
whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't
wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll
yall'd've=y'all'd've y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've
you'dve=you'd've youll=you'll youre=you're youve=you've
"""
_CONTRACTIONS = {
    short: whole for short, _, whole in (pair.partition("=") for pair in _TABLE.split())
}
