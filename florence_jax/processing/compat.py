"""The three sets of rules for parsing generated text: ours, transformers' and the original code's.

``None`` is this library's, ``"native"`` is transformers' ``Florence2Processor`` (checked against
5.23) and ``"original"`` is the model card's ``processing_florence2.py`` (revision 00d2f15). The two
references are reproduced exactly, oddities included. Ours has none of them: coordinates are float64
bin centres, a bin past 999 is clamped to 999, labels keep their Unicode and never hold markup, and
every shape can be scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from florence_jax.processing.answer_regex import Phrase
from florence_jax.processing.locations import BINS
from florence_jax.processing.vocabulary import FLORENCE_TOKENS, SPECIAL_TOKENS

Size = tuple[float, float]

ALL_MARKERS = ("<s>", "</s>", "<pad>")

_MARKUP = frozenset((*FLORENCE_TOKENS, *SPECIAL_TOKENS, "<mask>"))
_LOCATION = re.compile(r"<loc_\d++>")


@dataclass(frozen=True, kw_only=True)
class CompatRules:
    """One set of parsing rules.

    Attributes:
        coordinates: ``(bins, size)`` to pixels, x and y alternating.
        text_markers: markers removed from free text.
        ocr_markers: markers removed before OCR lines are parsed (from other answers, always
            `ALL_MARKERS`).
        strip: free text and OCR labels lose the whitespace around them.
        ascii_labels: box labels lose every character that is not ASCII.
        clean: labels never hold markup, and shapes without coordinates are left out.
        polygon_prefix: removed once from a polygon phrase before its label is read.
    """

    coordinates: Callable[[Sequence[int], Size], list]
    text_markers: tuple[str, ...] = ("<s>", "</s>")
    ocr_markers: tuple[str, ...] = ALL_MARKERS
    strip: bool = True
    ascii_labels: bool = True
    clean: bool = False
    polygon_prefix: re.Pattern[str] | None = None

    def box_label(self, text: str, phrase: Phrase) -> str | None:
        """The label of a box phrase, not yet reduced to ASCII; None where it spans lines."""
        return _one_line(self._own_text(text, phrase))

    def polygon_label(self, text: str, phrase: Phrase) -> str | None:
        """The label of a polygon phrase; None where there is none to read or it spans lines."""
        if self.polygon_prefix is None:
            return _one_line(self._own_text(text, phrase))
        # The references read the label up to the first location or <poly>, so that other units
        # before it (a leading <sep>) are part of the label.
        whole = self.polygon_prefix.sub("", text[phrase.start : phrase.end], count=1)
        ends = [end for end in (whole.find("<loc_"), whole.find("<poly>")) if end >= 0]
        return _one_line(whole[: min(ends)]) if ends else None

    def ocr_label(self, text: str, phrase: Phrase) -> str | None:
        """The label of an OCR line; None where nothing but markup is left of it."""
        label = text[phrase.start : phrase.label_end]
        if not self.clean:
            return label.strip() if self.strip else label
        return _LOCATION.split(label)[-1].strip() or None

    def _own_text(self, text: str, phrase: Phrase) -> str:
        label = text[phrase.start : phrase.label_end]
        if self.clean and text[phrase.start - 1 : phrase.start] == "<":
            head, _, tail = label.partition(">")
            if f"<{head}>" in _MARKUP or _LOCATION.fullmatch(f"<{head}>"):
                return tail
        return label


def _one_line(label: str) -> str | None:
    return None if "\n" in label.lstrip() else label.strip()


def _exact(bins: Sequence[int], size: Size) -> list[float]:
    """Bin centres in float64; a bin that no token has lies past the edge and is clamped to it."""
    return [(min(bin, BINS - 1) + 0.5) * size[index % 2] / BINS for index, bin in enumerate(bins)]


def _float32(bins: Sequence[int], size: Size) -> np.ndarray:
    """Bin centres as torch computes them from an int64 tensor: every step rounds to float32."""
    with np.errstate(all="ignore"):
        centres = np.asarray(bins, np.int64).astype(np.float32) + np.float32(0.5)
        for axis in (0, 1):
            centres[axis::2] *= np.float32(size[axis] / BINS)
    return centres


def _truncated(bins: Sequence[int], size: Size) -> list[int]:
    """`_float32` cut to int32. Out of range, x86's conversion gives the smallest int32."""
    lowest = -(2**31)
    return [
        int(centre) if abs(centre) < 2**31 else lowest for centre in _float32(bins, size).tolist()
    ]


COMPAT_RULES: dict[str | None, CompatRules] = {
    None: CompatRules(coordinates=_exact, text_markers=ALL_MARKERS, ascii_labels=False, clean=True),
    "native": CompatRules(coordinates=_truncated, polygon_prefix=re.compile(r"^<loc_\d++>")),
    "original": CompatRules(
        coordinates=lambda bins, size: _float32(bins, size).tolist(),
        ocr_markers=("<s>",),
        strip=False,
        polygon_prefix=re.compile(r"^loc_\d++>"),
    ),
}

# Pronouns and fillers that phrase grounding never reports (both references, one list).
# fmt: off
UNGROUNDED_PHRASES = frozenset((
    "it", "I", "me", "mine", "you", "your", "yours", "he", "him", "his", "she", "her", "hers",
    "they", "them", "their", "theirs", "one", "oneself", "we", "us", "our", "ours", "its",
    "myself", "yourself", "himself", "herself", "itself", "ourselves", "yourselves", "themselves",
    "this", "that", "these", "those", "who", "whom", "whose", "which", "what",
    "all", "another", "any", "anybody", "anyone", "anything", "each", "everybody", "everyone",
    "everything", "few", "many", "nobody", "none", "several", "some", "somebody", "someone",
    "something", "each other", "one another", "the image", "image", "images", "the", "a", "an",
    "a group", "other objects", "lots", "a set",
))
# fmt: on
