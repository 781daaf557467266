"""Noun phrases of captions: their types, and which of them can be grounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from florence_jax.processing.compat import UNGROUNDED_PHRASES

PRONOUNS = frozenset(phrase.casefold() for phrase in UNGROUNDED_PHRASES)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Heads that no box can be drawn around: abstract things, the image itself, and its parts.
ABSTRACT_HEADS = _words(
    """
    joy beauty love happiness sadness anger fear excitement calm calmness peace tranquility serenity
    sense feeling feelings emotion mood atmosphere ambiance ambience vibe impression charm elegance
    warmth coziness nostalgia mystery drama energy movement motion harmony contrast depth balance
    image images picture pictures photo photos photograph photographs view scene shot frame
    composition angle perspective focus theme topic subject overall
    background foreground side sides front back middle center centre top bottom left right corner
    edge end rest part parts area areas region distance direction
    color colour colors colours style shade tone size shape type kind sort variety number lot lots
    set group bunch couple pair row rows amount addition total way ways manner case fact idea
    concept purpose focal example time day moment night morning evening afternoon season date
    condition appearance position place presence action activity use
    """
)

DETERMINERS = _words(
    """
    a an the this that these those each every some any no both all another several many few various
    numerous multiple his her its their my your our one two three four five six seven eight nine ten
    eleven twelve half
    """
)

# Adjectives that end a phrase only where a noun is missing.
ADJECTIVES = _words(
    """
    red orange yellow green blue purple violet pink brown black white grey gray silver gold golden
    beige turquoise tan dark light bright pale colorful colourful big small large little tiny huge
    tall short long wide narrow thick thin high low old young new ancient modern vintage rustic
    round square flat sharp soft hard smooth rough wet dry hot cold warm clean dirty empty full open
    closed happy sad calm serene peaceful busy quiet loud wooden metal plastic stone brick
    beautiful pretty cute nice lovely blurry clear cloudy sunny rainy visible same different other
    single double main entire whole medium striped dotted outlined plain outdoor indoor
    """
)

# Words between phrases. Verbs among them are actions.
LINKS = _words(
    """
    of in on at by with without to from for into onto over under above below behind beside besides
    between among near next across along around through against during before after about as like
    off out up down toward towards inside outside within upon per via beyond amid atop underneath
    beneath and or but nor so yet while when where who whom whose which what because if than then
    though although that's there here it he she they we i you him them us me who's not n't also
    very too just only together apart away
    """
)
AUXILIARIES = _words(
    "is are was were be been being am has have had do does did can could will would may might must "
    "should it's there's they're he's she's"
)
VERBS = _words(
    """
    sit sits sat stand stands stood lie lies lay walk walks walked run runs ran ride rides rode hold
    holds held wear wears wore play plays look looks looked show shows shown feature features
    depict depicts depicted display displays contain contains include includes appear appears seem
    seems suggest suggests create creates add adds give gives gave make makes made take takes took
    hang hangs hung fly flies flew eat eats ate drink drinks swim swims swam jump jumps drive drives
    drove face faces cover covers surround surrounds fill fills line rest rests lean leans come
    comes go goes read reads write writes written cut cuts carry carries pull pulls push pushes
    throw throws thrown catch catches hit hits kick kicks serve serves watch watches use uses used
    see sees saw seen set parked worn taken captured known based lit
    """
)

# Nouns that end like participles.
ING_NOUNS = _words(
    """
    building buildings ceiling painting paintings clothing ring rings string strings wing wings king
    thing things railing railings wedding drawing drawings sling swing swings lighting lettering
    writing awning siding flooring stuffing earring earrings dressing icing frosting parking
    crossing opening filling bedding landing living dining swimming skiing topping toppings sibling
    """
)
ED_NOUNS = _words("red bed beds shed sheds sled sleds seed weed reed hundred bread thread head")
LY_NOUNS = _words("family fly butterfly belly jelly lily trolley bully ally assembly supply curly")


@dataclass(frozen=True, kw_only=True)
class NounPhrase:
    """`text[start:end]`, and the noun that says what it is, in lower case."""

    start: int
    end: int
    head: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The noun phrases of a text, and how much it says about them.

    Attributes:
        phrases: noun phrases in order, pronouns among them.
        attributes: adjectives and other words that describe a noun.
        actions: verbs other than auxiliaries.
        complexity: the largest degree of a noun or a verb in the dependency tree, determiners,
            auxiliaries and punctuation left out.
    """

    phrases: tuple[NounPhrase, ...] = ()
    attributes: int = 0
    actions: int = 0
    complexity: int = 0

    @property
    def objects(self) -> int:
        """Number of different phrases, determiners aside, that name a visible thing."""
        named = (phrase for phrase in self.phrases if reason_against(phrase) is None)
        return len({_without_determiner(phrase.text) for phrase in named})


class NounPhraseExtractor(Protocol):
    """Finds the noun phrases of a text; safe to call from several threads."""

    @property
    def name(self) -> str:
        """The method and its version, on which the results depend."""
        ...

    def __call__(self, text: str) -> Analysis: ...


def reason_against(phrase: NounPhrase) -> str | None:
    """Why a phrase cannot be grounded: "pronoun", "abstract", or None if it can."""
    if phrase.text.casefold() in PRONOUNS or phrase.head in PRONOUNS:
        return "pronoun"
    return "abstract" if phrase.head in ABSTRACT_HEADS else None


def find_phrase(wording: str, text: str, phrases: Sequence[NounPhrase]) -> tuple[int, int] | str:
    """The place of a phrase, as a model wrote it, in the text that it was asked about.

    Args:
        wording: the phrase as the model wrote it; case does not matter.
        text: the text.
        phrases: the noun phrases of the text.

    Returns:
        (start, end) in `text`, the first of several places; or why the phrase cannot be grounded:
        "not in the text", "no noun phrase", "pronoun" or "abstract".
    """
    if wording.casefold() in PRONOUNS:
        return "pronoun"
    place = _place(wording, text)
    if place is None:
        return "not in the text"
    # A wording may hold several phrases ("a man and a woman"): one that can be grounded will do.
    inside = [phrase for phrase in phrases if phrase.start < place[1] and place[0] < phrase.end]
    if not inside:
        return "no noun phrase"
    reasons = [reason_against(phrase) for phrase in inside]
    return place if None in reasons else next(reason for reason in reasons if reason)


def _without_determiner(wording: str) -> str:
    first, _, rest = wording.lower().partition(" ")
    return rest if rest and first in DETERMINERS else wording.lower()


def _place(wording: str, text: str) -> tuple[int, int] | None:
    """The first place of the wording between word boundaries."""
    lowered, sought = text.lower(), wording.strip().lower()
    # Lower case may be longer than the original; then only an exact match can be trusted.
    if len(lowered) != len(text):
        lowered, sought = text, wording.strip()
    start = lowered.find(sought) if sought else -1
    while start >= 0:
        end = start + len(sought)
        before, after = lowered[start - 1 : start], lowered[end : end + 1]
        if not (_joins(before, sought[0]) or _joins(sought[-1], after)):
            return start, end
        start = lowered.find(sought, start + 1)
    return None


def _joins(left: str, right: str) -> bool:
    return bool(left) and bool(right) and left.isalnum() and right.isalnum()
