"""Parse generated text, or generated tokens with log-probabilities, to the task's result.

Every function here is total over text: whatever the model wrote gives a result. Only wrong
arguments raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from florence_jax.processing.answer_regex import (
    Run,
    boxes,
    labelled_phrases,
    location_runs,
    polygon_instances,
    polygon_runs,
    quad_lines,
    unlabelled_phrases,
)
from florence_jax.processing.compat import (
    ALL_MARKERS,
    COMPAT_RULES,
    UNGROUNDED_PHRASES,
    CompatRules,
    Size,
)
from florence_jax.processing.confidence import Span, TokenScores, remove_markers
from florence_jax.processing.locations import check_image_size
from florence_jax.processing.tasks import TASKS, AnswerType, Compat, check_compat


class SpanDecoder(Protocol):
    """The part of a tokenizer that `parse_tokens` uses; `FlorenceTokenizer` implements it."""

    bos_id: int

    def decode_with_spans(
        self, ids: Iterable[int], *, per_token: bool = False
    ) -> tuple[str, list[Span]]: ...


def parse(
    text: str, task: str, image_size: Sequence[float] | None = None, *, compat: Compat = None
) -> dict[str, Any]:
    """Parse generated text to ``{task: result}``.

    Args:
        text: what the tokenizer decoded, special tokens kept.
        task: ``"<OD>"`` and so on; any other string is a task of a fine-tune, whose answer is text.
        image_size: ``(width, height)`` in pixels of the image as shown; needed where the answer
            holds coordinates.
        compat: None for this library's convention, ``"native"`` or ``"original"`` for exactly what
            the references' ``post_process_generation(text=...)`` returns. Where they raise (a
            number past int64), the largest coordinate they can express is used.

    Returns:
        The reference's shapes, by answer type: a string; ``{"bboxes", "labels"}``;
        ``{"quad_boxes", "labels"}``; ``{"polygons", "labels"}``, a list of polygons per label; or
        for open-vocabulary detection ``{"bboxes", "bboxes_labels", "polygons",
        "polygons_labels"}``. Coordinates are pixels, x and y alternating.

    Raises:
        ValueError: a wrong argument; never the text's content.
    """
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {type(text).__name__}; decode tokens first")
    answer, size = _checked(task, image_size, compat)
    return {task: _result(answer, _read(text, answer, COMPAT_RULES[compat]), size, compat, None)}


def parse_tokens(
    ids: Sequence[int],
    token_scores: Sequence[float] | None,
    tokenizer: SpanDecoder,
    task: str,
    image_size: Sequence[float] | None = None,
    *,
    compat: Compat = None,
    label_scores: bool = False,
) -> dict[str, Any]:
    """Parse generated tokens to ``{task: result}``, with the confidence of every shape.

    Args:
        ids: int[T] generated ids from the decoder start token on; padding may follow.
        token_scores: float[T] log-probability of each id given those before it (the first is
            ignored), or None for a result without confidences.
        tokenizer: decodes ``ids`` with spans.
        task, image_size: as for `parse`.
        compat: ``"native"`` and ``"original"`` are the references' ``sequence=`` path, which
            decodes token by token (so a character of several tokens becomes U+FFFD; decode and use
            `parse` for their ``text=`` path). ``"original"`` scores what it scores, the boxes of
            ``<OD>`` and ``<DENSE_REGION_CAPTION>`` when there are any; ``"native"`` scores nothing.
        label_scores: with ``token_scores`` and this library's convention, also the confidence of
            the words: ``"label_scores"``, beside ``"scores"`` and for every shape, is exp of the
            mean log-probability of the tokens of its label (1.0 where it has none).

    Returns:
        As `parse`. With ``token_scores``, ``"scores"`` holds one float per box, quad or polygon
        instance (open-vocabulary detection: ``"bboxes_scores"`` and ``"polygons_scores"``): exp of
        the mean log-probability of its location tokens.

    Raises:
        ValueError: a wrong argument, such as scores that do not match the ids.
    """
    answer, size = _checked(task, image_size, compat)
    ids = [int(index) for index in ids]
    scores = None if token_scores is None else [float(score) for score in token_scores]
    if scores is not None and len(scores) != len(ids):
        raise ValueError(
            f"token_scores must have one value per id, got {len(scores)} for {len(ids)} ids; "
            "put a 0 before the scores for the decoder start token"
        )
    if compat == "original" or (compat == "native" and ids[:1] == [tokenizer.bos_id]):
        # The original drops its decoder start token, the native code a leading <s>.
        ids, scores = ids[1:], None if scores is None else scores[1:]
    text, spans = tokenizer.decode_with_spans(ids, per_token=compat is not None)
    found = _read(text, answer, COMPAT_RULES[compat])

    confidences = None
    if scores is not None and answer != "pure_text":
        lookup = TokenScores(spans, scores)
        if compat is None:
            confidences = _confidences(found, text, answer, lookup, labels=False)
        elif compat == "original" and answer == "description_with_bboxes" and found:
            confidences = _original_confidences(found, text, lookup)
    result = _result(answer, found, size, compat, confidences)
    if label_scores and confidences is not None and compat is None:
        result["label_scores"] = _confidences(found, text, answer, lookup, labels=True)
    return {task: result}


@dataclass(frozen=True, slots=True)
class Found:
    """One labelled shape: a box or quad is one part, a polygon instance one part per polygon.

    ``drift`` is the distance of the original code's running position from the phrase's place in the
    text, and ``named`` is the span of the label there.
    """

    label: str
    parts: list[Run]
    polygon: bool = False
    drift: int = 0
    named: Span = (0, 0)


def _checked(
    task: str, image_size: Sequence[float] | None, compat: str | None
) -> tuple[AnswerType, Size]:
    check_compat(compat)
    if not isinstance(task, str):
        raise ValueError(f"task must be a string such as '<OD>', got {task!r}")
    answer = TASKS[task].answer if task in TASKS else "pure_text"
    if answer == "pure_text":
        return answer, (1.0, 1.0)
    return answer, check_image_size(image_size, f"parsing {task}")


def _read(text: str, answer: AnswerType, rules: CompatRules) -> list[Found] | str:
    if answer == "pure_text":
        text = _without(text, rules.text_markers)
        return text.strip() if rules.strip else text
    if answer == "ocr":
        return _read_ocr(_without(text, rules.ocr_markers), rules)
    clean = _without(text, ALL_MARKERS)
    if answer == "polygons" or (
        answer == "description_with_bboxes_or_polygons" and "<poly>" in text
    ):
        return _read_polygons(clean, rules, labelled=answer != "polygons")
    return _read_boxes(clean, answer, rules)


def _read_ocr(text: str, rules: CompatRules) -> list[Found]:
    found = []
    for phrase in quad_lines(text, location_runs(text)):
        label = rules.ocr_label(text, phrase)
        if label is not None:
            found.append(Found(label, [phrase.units], named=(phrase.start, phrase.label_end)))
    return found


def _read_boxes(text: str, answer: AnswerType, rules: CompatRules) -> list[Found]:
    runs = location_runs(text)
    if answer == "bboxes":
        phrases = unlabelled_phrases(runs)
    else:
        phrases = labelled_phrases(text, runs, inside_units=not rules.clean)
    found, consumed = [], 0
    for phrase in phrases:
        label = rules.box_label(text, phrase)
        drift, consumed = consumed - phrase.start, consumed + phrase.end - phrase.start
        if label is None or (answer == "phrase_grounding" and label in UNGROUNDED_PHRASES):
            continue
        if rules.ascii_labels:
            label = label.encode("ascii", "ignore").decode("ascii")
        named = (phrase.start, phrase.label_end)
        found.extend(Found(label, [box], drift=drift, named=named) for box in boxes(phrase.units))
    return found


def _read_polygons(text: str, rules: CompatRules, *, labelled: bool) -> list[Found]:
    runs = polygon_runs(text)
    if labelled:
        phrases = labelled_phrases(text, runs, inside_units=not rules.clean)
    else:
        phrases = unlabelled_phrases(runs)
    found = []
    for phrase in phrases:
        label = rules.polygon_label(text, phrase)
        if label is None:
            continue
        for parts in polygon_instances(phrase.units):
            kept = [part for part in parts if part] if rules.clean else parts
            if kept:
                named = (phrase.start, phrase.label_end)
                found.append(Found(label, kept, polygon=True, named=named))
    return found


def _result(
    answer: AnswerType,
    found: list[Found] | str,
    size: Size,
    compat: Compat,
    confidences: list[float] | None,
) -> Any:
    if isinstance(found, str):
        return found
    pixels = [
        [
            COMPAT_RULES[compat].coordinates([unit.bin for unit in part], size)
            for part in shape.parts
        ]
        for shape in found
    ]
    if answer != "description_with_bboxes_or_polygons":
        name = {"ocr": "quad_boxes", "polygons": "polygons"}.get(answer, "bboxes")
        values = [
            parts if shape.polygon else parts[0] for shape, parts in zip(found, pixels, strict=True)
        ]
        result = {name: values, "labels": [shape.label for shape in found]}
        return result if confidences is None else {**result, "scores": confidences}

    result = {"bboxes": [], "bboxes_labels": [], "polygons": [], "polygons_labels": []}
    for shape, parts in zip(found, pixels, strict=True):
        name = "polygons" if shape.polygon else "bboxes"
        result[name].append(parts if shape.polygon else parts[0])
        result[f"{name}_labels"].append(shape.label)
    if confidences is not None:
        # Answers hold either boxes or polygons, never both.
        polygons = bool(found) and found[0].polygon
        result["bboxes_scores"] = [] if polygons else confidences
        result["polygons_scores"] = confidences if polygons else []
    return result


def _confidences(
    found: list[Found] | str, text: str, answer: AnswerType, lookup: TokenScores, *, labels: bool
) -> list[float]:
    """The confidence of each shape's location tokens or of its label, 1.0 for an empty one."""
    assert not isinstance(found, str)
    markers = COMPAT_RULES[None].ocr_markers if answer == "ocr" else ALL_MARKERS
    _, origins = remove_markers(text, markers)

    def confidence(shape: Found) -> float:
        places = [(run.start, run.end) for part in shape.parts for run in part]
        spans = [span for span in ([shape.named] if labels else places) if span[0] < span[1]]
        found_at = [(int(origins[start]), int(origins[end - 1]) + 1) for start, end in spans]
        return lookup.confidence(found_at) if found_at else 1.0

    return [confidence(shape) for shape in found]


def _original_confidences(found: list[Found] | str, text: str, lookup: TokenScores) -> list[float]:
    """Confidences placed as the original code does: by the lengths of earlier phrases, plus a first
    ``<s>``.

    Text between phrases is not counted, so after any the scores belong to earlier tokens. That is
    what the original returns.
    """
    assert not isinstance(found, str)
    offset = 3 if text.startswith("<s>") else 0
    scores = []
    for shape in found:
        shift = offset + shape.drift
        first, last = shape.parts[0][0], shape.parts[0][-1]
        scores.append(lookup.confidence([(first.start + shift, last.end + shift)]))
    return scores


def _without(text: str, markers: Sequence[str]) -> str:
    for marker in markers:
        text = text.replace(marker, "")
    return text
