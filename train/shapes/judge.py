"""One number for each of the 15 tasks of the world: the trainer's judges, and captions by facts.

A caption of any level is read back into the facts that it states; captions are scored by "facts",
the F1 of the facts, each exact.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from florence_jax.training.metrics import judge as common
from florence_jax.training.metrics.judge import Answered, Pair, Score, share
from train.shapes.lexicon import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    NUMBERS,
    PLACES,
    RELATIONS,
    SIZES,
    TEXTURES,
    plural,
)

Fact = tuple[str, ...]


CAPTIONS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
METRICS = ("facts", "captions with every fact")


def _one_of(names) -> str:
    return "(?:" + "|".join(map(re.escape, names)) + ")"


_SHAPE = (
    rf"(?:{_one_of(SIZES)} )?(?:{_one_of(COLOURS)} )?(?:{_one_of(TEXTURES[1:])} )?{_one_of(KINDS)}"
)
_WORD = r'word "[A-Z]+"'
_ANY_PLACE = _one_of(place for row in PLACES for place in row)
_COUNT = _one_of(NUMBERS)

_LIST = re.compile(r", | and ")
_SENTENCE = re.compile(r"(?<=\.) ")
_SINGULAR = {plural(kind): kind for kind in KINDS}

_ONE = re.compile(rf"(?:[Aa]n? ({_SHAPE})|[Tt]he ({_WORD}))")
_SEVERAL = re.compile(rf"({_COUNT}) ((?:{_one_of(COLOURS)} )?)({_one_of(_SINGULAR)})", re.I)
_COUNTED = re.compile(rf"({_COUNT}) (shape|word)s?")
_PLACED = re.compile(rf"({_ONE.pattern}) is ({_ANY_PLACE})\.")
_RELATED = re.compile(rf"The ({_SHAPE}) is ({_one_of(RELATIONS)}) the ({_SHAPE})\.")
_OVERVIEW = re.compile(rf"The image shows (.+) on a ({_one_of(BACKGROUNDS)}) background\.")


def facts(text: str) -> Counter[Fact]:
    """The facts that a caption of any level states, each with its count.

    ("thing", name) for each shape and word named; ("count", noun, number); ("place", name, place);
    ("relation", subject, relation, object); ("background", name). What cannot be read is a fact of
    its own, ("unread", text), which is in no truth.
    """
    found: Counter[Fact] = Counter()
    for sentence in _SENTENCE.split(text.strip()):
        overview = _OVERVIEW.fullmatch(sentence)
        placed = _PLACED.fullmatch(sentence)
        related = _RELATED.fullmatch(sentence)
        if overview:
            found["background", overview[2]] += 1
            found.update(_things(overview[1]))
        elif placed:
            found.update(_things(placed[1]))
            found["place", placed[2] or placed[3], placed[4]] += 1
        elif related:
            found["relation", *related.groups()] += 1
        elif sentence.endswith("."):
            found.update(_things(sentence[:-1]))
        else:
            found["unread", sentence] += 1
    return found


def _things(listed: str) -> Counter[Fact]:
    found: Counter[Fact] = Counter()
    for item in _LIST.split(listed):
        one, several = _ONE.fullmatch(item), _SEVERAL.fullmatch(item)
        counted = _COUNTED.fullmatch(item)
        if one:
            found["thing", one[1] or one[2]] += 1
        elif several:
            name = several[2] + _SINGULAR[several[3]]
            found["thing", name] += NUMBERS.index(several[1].lower())
        elif counted:
            found["count", counted[2], counted[1]] += 1
        else:
            found["unread", item] += 1
    return found


def judge(answered: Iterable[Answered]) -> dict[str, Score]:
    """The score of every task that was answered, in the order of `TASKS`.

    Raises:
        ValueError: a prefix of none of the 15 tasks.
    """
    return common.judge(answered, dict.fromkeys(CAPTIONS, _captions))


def _captions(pairs: Sequence[Pair]) -> Score:
    right = stated = exact = 0
    for pair in pairs:
        truth, answer = facts(pair.truth), facts(pair.answer)
        right += (truth & answer).total()
        stated += truth.total() + answer.total()
        exact += truth == answer
    value, every = METRICS
    return Score(
        metric=value,
        value=share(2 * right, stated),
        count=len(pairs),
        others={every: share(exact, len(pairs))},
    )
