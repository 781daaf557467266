"""Merge annotations of several models or rounds into one.

Boxes: those of one label (case aside; lines of one wording; one phrase of one text) are fused
where they share enough. "nms", the default, keeps the most certain box as it is, with its outline;
"average" is weighted boxes fusion (Solovyev et al., arXiv 1910.13302): the mean of the boxes by
score, with the mean score times the share of the annotators that found it. The default is what a
model really said, its polygons fit it, and merging what was merged changes nothing for either; the
average suits equally good models whose errors are independent.

Captions: "best" keeps, of each level, the one with the highest score, "all" keeps every different
one. Scores of captions compare likelihoods under the annotators, so of models of very different
sizes, where one is surer without being better, keep all. Phrases stay with their text.

The result depends on neither the order of the inputs nor of the parts in them. Merging a result
once more, alone or with what it was made of (nms), gives it again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from florence_jax.annotation.boxes import overlaps, suppress
from florence_jax.annotation.filters import box_of, named
from florence_jax.annotation.schema import (
    LEVELS,
    Annotation,
    AnnotationError,
    OCRLine,
    Phrase,
    Region,
    Text,
    from_row,
    to_row,
)

Fusion = Literal["nms", "average"]
Captions = Literal["best", "all"]
Part = TypeVar("Part", Region, OCRLine, Phrase)


def merge_sets(
    sets: Sequence[Iterable[Annotation]],
    *,
    fusion: Fusion = "nms",
    captions: Captions = "best",
    overlap: float = 0.7,
) -> list[Annotation]:
    """One annotation for every image of any set, ordered by id.

    Raises:
        AnnotationError: an image has different sizes, or occurs twice in one set.
    """
    by_id: dict[str, list[Annotation]] = {}
    for one_set in sets:
        seen: set[str] = set()
        for annotation in one_set:
            if annotation.id in seen:
                raise AnnotationError(f"{annotation.id} is annotated twice in one of the inputs")
            seen.add(annotation.id)
            by_id.setdefault(annotation.id, []).append(annotation)
    return [
        merge(by_id[name], fusion=fusion, captions=captions, overlap=overlap, of=len(sets))
        for name in sorted(by_id)
    ]


def merge(
    annotations: Sequence[Annotation],
    *,
    fusion: Fusion = "nms",
    captions: Captions = "best",
    overlap: float = 0.7,
    of: int | None = None,
) -> Annotation:
    """Merge several annotations of one image.

    Args:
        annotations: one or more.
        fusion, captions: see the module.
        overlap: boxes of one label are one thing where they share at least this much.
        of: number of annotators, for the share that found a box; by default one for each
            annotation.

    Raises:
        AnnotationError: they are of images of different names or sizes.
    """
    frames = {(one.id, one.image, one.width, one.height) for one in annotations}
    if len(frames) > 1:
        first, second = sorted(frames)[:2]
        raise AnnotationError(
            f"{first!s:.200} and {second!s:.200} (id, image, width, height) are not one image: "
            "annotate the same images, from the same directory (--image-root)"
        )
    annotators = of or len(annotations)

    def fused(parts: Iterable[tuple[int, Part]], group: Callable[[Part], Hashable]) -> list[Part]:
        return _fused(parts, group, fusion, overlap, annotators)

    texts = _texts(annotations, captions)
    numbers = {(text.level, text.text): number for number, text in enumerate(texts)}
    phrases: list[tuple[int, Phrase]] = []
    for source, one in enumerate(annotations):
        for phrase in one.phrases:
            text = one.texts[phrase.text]
            number = numbers.get((text.level, text.text))
            if number is not None:
                phrases.append((source, dataclasses.replace(phrase, text=number)))
    lost = annotations[0].lost
    least_lost = {kind: min(one.lost.get(kind, 0) for one in annotations) for kind in lost}
    merged = dataclasses.replace(
        annotations[0],
        texts=tuple(texts),
        regions=tuple(fused(_numbered(annotations, "regions"), _region_key)),
        ocr=tuple(fused(_numbered(annotations, "ocr"), lambda line: line.text.casefold())),
        phrases=tuple(fused(phrases, lambda phrase: (phrase.text, phrase.start, phrase.end))),
        rejected={},
        # What one annotator could not name, another may have found.
        lost={kind: least for kind, least in least_lost.items() if least},
    )
    # Rounded as a file has it, so that merging what was read back gives the same again.
    return from_row(to_row(merged))


def _texts(annotations: Sequence[Annotation], captions: Captions) -> list[Text]:
    # Equal texts are one, with the better score.
    best: dict[tuple[str, str], Text] = {}
    for annotation in annotations:
        for text in annotation.texts:
            key = (text.level, text.text)
            if key not in best or text.score > best[key].score:
                best[key] = text
    ordered = sorted(best.values(), key=lambda t: (LEVELS.index(t.level), -t.score, t.text))
    if captions == "all":
        return ordered
    firsts = {text.level: text for text in reversed(ordered)}
    return [firsts[level] for level in LEVELS if level in firsts]


def _numbered(annotations: Sequence[Annotation], name: str) -> list[tuple[int, Part]]:
    return [(number, part) for number, one in enumerate(annotations) for part in getattr(one, name)]


def _region_key(region: Region) -> Hashable:
    return region.label is None, (named(region)[0] or "").casefold()


def _fused(
    parts: Iterable[tuple[int, Part]],
    group: Callable[[Part], Hashable],
    fusion: Fusion,
    overlap: float,
    annotators: int,
) -> list[Part]:
    groups: dict[Hashable, list[tuple[int, Part]]] = {}
    for source, part in parts:
        groups.setdefault(group(part), []).append((source, part))
    fused: list[Part] = []
    for members in groups.values():
        # By what they are and not by where they came from.
        members.sort(key=lambda member: (*_rank(member[1]), member[0]))
        if fusion == "nms":
            fused += _kept([part for _, part in members], overlap)
        else:
            fused += _averaged(members, overlap, annotators)
    return sorted(fused, key=_place)


def _kept(ranked: Sequence[Part], overlap: float) -> list[Part]:
    boxes = [box_of(part) for part in ranked]
    kept = suppress(boxes, [part.score for part in ranked], overlap)
    shared = overlaps(boxes, boxes)
    return [
        _completed(
            ranked[number],
            [ranked[other] for other in range(len(ranked)) if shared[number, other] >= overlap],
        )
        for number in kept
    ]


def _completed(part: Part, others: Sequence[Part]) -> Part:
    """The part with the best description of the same thing, if it has none of its own."""
    if not isinstance(part, Region) or part.description is not None:
        return part
    told = [one for one in others if isinstance(one, Region) and one.description is not None]
    if not told:
        return part
    best = min(told, key=lambda one: (-(one.description_score or 0.0), one.description or ""))
    return dataclasses.replace(
        part, description=best.description, description_score=best.description_score
    )


def _averaged(members: Sequence[tuple[int, Part]], overlap: float, annotators: int) -> list[Part]:
    """Weighted boxes fusion, repeated until no two results overlap enough to be one thing."""
    clusters: list[list[tuple[int, Part]]] = []
    for member in members:
        boxes = [box_of(_mean(cluster)) for cluster in clusters]
        shared = overlaps([box_of(member[1])], boxes)[0] if boxes else np.zeros(0)
        if len(shared) and shared.max() >= overlap:
            clusters[int(shared.argmax())].append(member)
        else:
            clusters.append([member])
    while (pair := _one_thing(clusters, overlap)) is not None:
        clusters[pair[0]] += clusters.pop(pair[1])
    fused = []
    for cluster in clusters:
        found = len({source for source, _ in cluster})
        mean = _mean(cluster)
        fused.append(dataclasses.replace(mean, score=mean.score * found / annotators))
    return fused


def _one_thing(
    clusters: Sequence[Sequence[tuple[int, Part]]], overlap: float
) -> tuple[int, int] | None:
    boxes = [box_of(_mean(cluster)) for cluster in clusters]
    shared = np.triu(overlaps(boxes, boxes), 1)
    if not shared.size or shared.max() < overlap:
        return None
    first, second = np.unravel_index(shared.argmax(), shared.shape)
    return int(first), int(second)


def _mean(cluster: Sequence[tuple[int, Part]]) -> Part:
    """The best member, with the mean coordinates and the mean score of all."""
    parts = [part for _, part in cluster]
    best = min(parts, key=_rank)
    if len(parts) == 1:
        return best
    weights = np.array([max(part.score, 1e-9) for part in parts])
    shapes = np.array([part.quad if isinstance(part, OCRLine) else part.box for part in parts])
    mean = tuple((weights @ shapes / weights.sum()).tolist())
    placed: Mapping[str, object] = (
        {"quad": mean} if isinstance(best, OCRLine) else {"box": mean, "polygons": ()}
    )
    score = float(np.mean([part.score for part in parts]))
    return dataclasses.replace(_completed(best, parts), score=score, **placed)


def _rank(part: Region | OCRLine | Phrase) -> tuple:
    """A sort key, the most certain first; equal only for equal parts."""
    return -part.score, repr(part)


def _place(part: Region | OCRLine | Phrase) -> tuple:
    first = (part.text, part.start) if isinstance(part, Phrase) else ()
    box = box_of(part)
    return *first, box[1], box[0], *_rank(part)
