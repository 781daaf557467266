"""Questions about a scene and their exact answers: the 15 tasks in Florence-2's own grammar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from florence_jax.processing import TASKS, box_to_text
from florence_jax.processing.targets import region_text, target_text
from florence_jax.processing.tasks import CLASS_SEPARATOR
from train.shapes.captions import (
    Phrase,
    caption,
    detailed_caption,
    detailed_phrases,
    expressions,
    more_detailed_caption,
    sentence_case,
    shapes_of,
    short_phrases,
)
from train.shapes.ground_truth import Thing, mislabelled, things_seen
from train.shapes.lexicon import COLOURS, KINDS, PLAIN, TEXTURES, WORD
from train.shapes.scene import Scene, Shape, Word

Answer = str | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of a data set.

    Attributes:
        task: "<OD>" and so on.
        prefix: the task and its input, as `build_prompt` takes it.
        suffix: the text to be generated.
        answer: The answer behind `suffix`, in the form of `parse` and in exact pixels.
    """

    task: str
    prefix: str
    suffix: str
    answer: Answer


def questions(scene: Scene, tasks: Sequence[str] = tuple(TASKS)) -> list[Question]:
    """One question for each of `tasks` that the scene has an answer to.

    All 15 have one, but without a word (`SceneConfig.words`) the OCR tasks have none.
    What is asked about is drawn at random, for each task by itself.

    Raises:
        ValueError: an unknown task.
    """
    unknown = [task for task in tasks if task not in _ASK]
    if unknown:
        raise ValueError(f"no such task: {unknown}; there are {', '.join(_ASK)}")
    view = _View(scene, mislabelled(scene, things_seen(scene)))
    asked = []
    for task in tasks:
        rng = scene.stream("questions", list(TASKS).index(task))
        if view.words or "OCR" not in task:
            given, answer = _ASK[task](view, rng)
            suffix = target_text(task, answer, view.size)
            asked.append(Question(task=task, prefix=task + given, suffix=suffix, answer=answer))
    return asked


@dataclass(frozen=True)
class _View:
    """A scene as it is seen: `things` in reading order, the shapes and words among them."""

    scene: Scene
    things: tuple[Thing, ...]

    @property
    def size(self) -> tuple[int, int]:
        side = self.scene.config.side
        return side, side

    @property
    def shapes(self) -> list[Thing]:
        return shapes_of(self.things)

    @property
    def words(self) -> list[Thing]:
        return [thing for thing in self.things if isinstance(thing.source, Word)]


def _ocr(view: _View, _: np.random.Generator) -> tuple[str, Answer]:
    return "", "\n".join(_text(word) for word in view.words)


def _ocr_with_region(view: _View, _: np.random.Generator) -> tuple[str, Answer]:
    quads = [word.quad for word in view.words]
    return "", {"quad_boxes": quads, "labels": [_text(word) for word in view.words]}


def _caption(view: _View, _: np.random.Generator) -> tuple[str, Answer]:
    return "", caption(view.things)


def _detailed(view: _View, _: np.random.Generator) -> tuple[str, Answer]:
    return "", detailed_caption(view.things, view.scene.background)


def _more_detailed(view: _View, _: np.random.Generator) -> tuple[str, Answer]:
    return "", more_detailed_caption(view.things, view.scene.background)


def _detection(view: _View, _: np.random.Generator) -> tuple[str, Answer]:
    return "", _boxes([(thing.category, thing) for thing in view.things])


def _dense_captions(view: _View, _: np.random.Generator) -> tuple[str, Answer]:
    return "", _boxes([(thing.description, thing) for thing in view.things])


def _proposals(view: _View, _: np.random.Generator) -> tuple[str, Answer]:
    return "", _boxes([("", thing) for thing in view.things])


def _grounding(view: _View, rng: np.random.Generator) -> tuple[str, Answer]:
    """The caption is the short one, the detailed one, or names some of the shapes in any order."""
    form = rng.integers(3)
    phrases: list[Phrase]
    if form == 0:
        phrases = sentence_case(short_phrases(view.things))
        text = caption(view.things)
    elif form == 1:
        phrases = detailed_phrases(view.things)
        text = detailed_caption(view.things, view.scene.background)
    else:
        groups = [group for _, group in short_phrases(view.things)]
        chosen = rng.permutation(len(groups))[: rng.integers(1, len(groups), endpoint=True)]
        # Named again in the new order; those of one name stay together.
        some = [thing for index in chosen for thing in groups[index]]
        phrases = sentence_case(short_phrases(some))
        text = caption(some)
    return text, _boxes([(phrase, thing) for phrase, group in phrases for thing in group])


def _referring(view: _View, rng: np.random.Generator) -> tuple[str, Answer]:
    """A shape by its properties or by a relation, evenly where it can be; now and then a word."""
    if view.words and rng.random() < _WORDS_REFERRED_TO:
        thing = _any_of(view.words, rng)
        return f"the {thing.description}", _polygons(thing)
    for index in rng.permutation(len(view.shapes)).tolist():
        thing = view.shapes[index]
        by_properties, by_relation = expressions(thing, view.things)
        related = by_relation and (not by_properties or rng.random() < 0.5)
        texts = by_relation if related else by_properties
        if texts:
            return texts[rng.integers(len(texts))], _polygons(thing)
    raise AssertionError("no two shapes have one description, so the fullest one is told apart")


def _segmentation(view: _View, rng: np.random.Generator) -> tuple[str, Answer]:
    thing = _any_of(view.things, rng)
    return _region(view, thing, rng), _polygons(thing)


def _open_vocabulary(view: _View, rng: np.random.Generator) -> tuple[str, Answer]:
    """One or two classes: a kind, or a colour or texture of any shape. One at least is there."""
    present = _classes(view)
    asked = [list(present)[rng.integers(len(present))]]
    if rng.random() < 0.5:
        others = [name for name in _ALL_CLASSES if name not in asked]
        likely = [name for name in present if name not in asked]
        pool = likely if likely and rng.random() < 0.6 else others
        asked.insert(rng.integers(2), pool[rng.integers(len(pool))])
    found = [(name, thing) for name in asked for thing in present.get(name, ())]
    answer = _boxes(found)
    answer = {"bboxes": answer["bboxes"], "bboxes_labels": answer["labels"]}
    return CLASS_SEPARATOR.join(asked), {**answer, "polygons": [], "polygons_labels": []}


def _category(view: _View, rng: np.random.Generator) -> tuple[str, Answer]:
    thing = _any_of(view.things, rng)
    region = _region(view, thing, rng)
    return region, region_text(thing.category, region, view.size)


def _description(view: _View, rng: np.random.Generator) -> tuple[str, Answer]:
    thing = _any_of(view.things, rng)
    region = _region(view, thing, rng)
    return region, region_text(thing.description, region, view.size)


def _region_ocr(view: _View, rng: np.random.Generator) -> tuple[str, Answer]:
    thing = _any_of(view.words, rng)
    region = _region(view, thing, rng)
    return region, region_text(_text(thing), region, view.size)


_ASK: dict[str, Callable[[_View, np.random.Generator], tuple[str, Answer]]] = {
    "<OCR>": _ocr,
    "<OCR_WITH_REGION>": _ocr_with_region,
    "<CAPTION>": _caption,
    "<DETAILED_CAPTION>": _detailed,
    "<MORE_DETAILED_CAPTION>": _more_detailed,
    "<OD>": _detection,
    "<DENSE_REGION_CAPTION>": _dense_captions,
    "<REGION_PROPOSAL>": _proposals,
    "<CAPTION_TO_PHRASE_GROUNDING>": _grounding,
    "<REFERRING_EXPRESSION_SEGMENTATION>": _referring,
    "<REGION_TO_SEGMENTATION>": _segmentation,
    "<OPEN_VOCABULARY_DETECTION>": _open_vocabulary,
    "<REGION_TO_CATEGORY>": _category,
    "<REGION_TO_DESCRIPTION>": _description,
    "<REGION_TO_OCR>": _region_ocr,
}

_WORDS_REFERRED_TO = 0.15
_ANY = "shape"
_ALL_CLASSES = (
    *KINDS,
    WORD,
    *(f"{colour} {_ANY}" for colour in COLOURS),
    *(f"{texture} {_ANY}" for texture in TEXTURES if texture != PLAIN),
)


def _classes(view: _View) -> dict[str, list[Thing]]:
    """What is there of `_ALL_CLASSES`."""
    present: dict[str, list[Thing]] = {}
    for thing in view.things:
        names = [thing.category]
        if isinstance(thing.source, Shape):
            names.append(f"{thing.source.colour} {_ANY}")
            if thing.source.texture != PLAIN:
                names.append(f"{thing.source.texture} {_ANY}")
        for name in names:
            present.setdefault(name, []).append(thing)
    return present


def _boxes(labelled: Sequence[tuple[str, Thing]]) -> dict[str, Any]:
    return {
        "bboxes": [list(thing.box) for _, thing in labelled],
        "labels": [label for label, _ in labelled],
    }


def _polygons(thing: Thing) -> dict[str, Any]:
    return {"polygons": [thing.polygons()], "labels": [""]}


def _any_of(things: Sequence[Thing], rng: np.random.Generator) -> Thing:
    return things[int(rng.integers(len(things)))]


def _region(view: _View, thing: Thing, rng: np.random.Generator) -> str:
    """The thing's box as a person might drag it: every edge off by a little."""
    x0, y0, x1, y1 = thing.box
    off = rng.uniform(-1, 1, 4) * view.scene.config.region_jitter
    edges = np.array(thing.box) + off * (x1 - x0, y1 - y0, x1 - x0, y1 - y0)
    return box_to_text(np.clip(edges, 0, view.scene.config.side), view.size)


def _text(thing: Thing) -> str:
    assert isinstance(thing.source, Word)
    return thing.source.text
