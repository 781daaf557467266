"""Settings of annotation: the tasks, and the thresholds of the filters with their reasons."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from florence_jax.annotation.schema import LEVELS, Level

Polygons = Literal["none", "phrases", "all"]


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Thresholds of the filters.

    The paper's engine (arXiv 2311.06242, sections 4.2 and 4.3) filters texts by their objects and
    by the complexity of objects and actions, boxes by confidence and non-maximum suppression, and
    grounded phrases by confidence and a blacklist of pronouns and abstract concepts. It gives no
    threshold: every number here, and every other filter, is this project's own.

    Scores are exp of mean log-probabilities, so 0.5 says that a token was as likely as not.

    Attributes:
        text_score: least of a brief, a detailed and a more detailed text. Low on purpose: many
            wordings are right, so a good caption shares its probability with others. What makes
            texts doubtful is a few words, so the longer ones score higher.
        box_score: least of a box or a quad. Each of the four coordinates may be a few bins off
            without harm, which alone takes a good box to about 0.2; half of that is doubt. Models
            of few pixels are a bin's neighbours unsure of: less for them.
        label_score: least of a label, a description or a grounded phrase's wording. A category is
            one or two tokens with few rivals: below a third the model names something else as
            readily.
        agreement: share of a label's words that the description of its box must have, where it has
            one; 0 asks for none. Where they contradict, a second label decides which stays. 1 is
            for closed vocabularies: elsewhere a "person" is described as "a man in red".
        line_score: least of the words of a line of written text.
        overlap: of two boxes with one label, the less certain goes where they share this much
            (intersection over union). 0.7 keeps neighbours in a crowd apart.
        overlap_any: likewise for boxes with different labels: only what is the same box to a few
            pixels is one thing under two names.
        least_side: of a box, as a share of the image's side. Five of the 1000 bins: below that the
            rounding of locations is a fifth of the box.
        most_objects: that a brief, detailed and more detailed text may name. Texts that list more
            tend to name what is not there.
        least_complexity: least degree of the best connected noun or verb in the dependency tree,
            determiners aside: 1 asks for an attribute, a relation or an action, so "A dog." goes
            and "A brown dog." stays.
        joined: a described box tells about a labelled one where they share this much.
    """

    text_score: tuple[float, float, float] = (0.1, 0.1, 0.1)
    box_score: float = 0.1
    label_score: float = 0.33
    agreement: float = 0.0
    line_score: float = 0.33
    overlap: float = 0.7
    overlap_any: float = 0.95
    least_side: float = 0.005
    most_objects: tuple[int, int, int] = (8, 16, 40)
    least_complexity: int = 1
    joined: float = 0.7

    def __post_init__(self) -> None:
        for name in ("text_score", "most_objects"):
            if len(getattr(self, name)) != len(LEVELS):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected three numbers, one for each of "
                    f"{LEVELS}"
                )
        for score in self.text_score:
            _check_share("text_score", score, zero=True)
        for name in ("box_score", "label_score", "agreement", "line_score", "least_side"):
            _check_share(name, getattr(self, name), zero=True)
        for name in ("overlap", "overlap_any", "joined"):
            _check_share(name, getattr(self, name), zero=False)
        if min(self.most_objects) < 1:
            raise ValueError(f"most_objects is {self.most_objects}, expected at least 1 of each")


@dataclass(frozen=True, kw_only=True)
class AnnotateSettings:
    """The tasks of an annotation.

    Attributes:
        levels: levels of captions.
        regions: find objects, with a label and a description each.
        proposals: ask for region proposals too, and for the names of those that neither list of
            objects has: a model leaves objects out of one list that it has in another.
        ocr: read written text.
        ground: find the regions that the noun phrases of the captions speak of.
        complete: ask for the label or the description of each box that lacks one, and for a second
            label where the two contradict.
        polygons: outline the boxes of "phrases", "all" boxes, or "none": one prompt a box.
        filters: thresholds of the filters.
    """

    levels: tuple[Level, ...] = LEVELS
    regions: bool = True
    proposals: bool = False
    ocr: bool = True
    ground: bool = True
    complete: bool = True
    polygons: Polygons = "none"
    filters: FilterSettings = field(default_factory=FilterSettings)

    def __post_init__(self) -> None:
        unknown = [level for level in self.levels if level not in LEVELS]
        if unknown or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels are {self.levels}, expected some of {LEVELS}, each once")
        if not (self.levels or self.regions or self.ocr):
            raise ValueError("nothing is asked: choose a level of text, regions or ocr")
        if self.proposals and not (self.regions and self.complete):
            raise ValueError(
                "proposals (--proposals) have no names and are of use where regions are asked for "
                "and completed: leave out --no-completion, and let --only have regions"
            )

    def record(self) -> dict[str, Any]:
        """The settings as JSON."""
        return dataclasses.asdict(self)


def _check_share(name: str, value: float, *, zero: bool) -> None:
    if not (0.0 <= value <= 1.0 if zero else 0.0 < value <= 1.0):
        raise ValueError(f"{name} is {value}, expected {'0' if zero else 'more than 0'} to 1")
