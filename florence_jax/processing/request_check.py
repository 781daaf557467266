"""Validate a request before the model runs: its prompt, and the text or region it needs.

`check_request` refuses what `build_prompt`, which reproduces the reference, would turn into a
prompt that the model was never trained on: misspelt tasks, missing inputs, and regions that are not
in the image.
"""

from __future__ import annotations

import difflib
import html
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from florence_jax.processing.locations import check_image_size, text_to_bins
from florence_jax.processing.tasks import REGION_TEXT, TASKS, Task, build_prompt, task_of
from florence_jax.processing.vocabulary import FLORENCE_TOKENS

# Names that people write for a task, in the form that `_key` gives words.
_ALIASES = {
    "objects": "<OD>",
    "detect": "<OD>",
    "detection": "<OD>",
    "detect_objects": "<OD>",
    "object_detection": "<OD>",
    "bbox": "<OD>",
    "boxes": "<OD>",
    "bounding_boxes": "<OD>",
    "captions": "<CAPTION>",
    "captioning": "<CAPTION>",
    "image_caption": "<CAPTION>",
    "image_captioning": "<CAPTION>",
    "brief_caption": "<CAPTION>",
    "detailed": "<DETAILED_CAPTION>",
    "more_detailed": "<MORE_DETAILED_CAPTION>",
    "very_detailed_caption": "<MORE_DETAILED_CAPTION>",
    "text_recognition": "<OCR>",
    "read_text": "<OCR>",
    "ocr_with_box": "<OCR_WITH_REGION>",
    "ocr_with_boxes": "<OCR_WITH_REGION>",
    "ocr_with_regions": "<OCR_WITH_REGION>",
    "ocr_region": "<OCR_WITH_REGION>",
    "dense_caption": "<DENSE_REGION_CAPTION>",
    "dense_captions": "<DENSE_REGION_CAPTION>",
    "dense_captioning": "<DENSE_REGION_CAPTION>",
    "region_caption": "<DENSE_REGION_CAPTION>",
    "proposal": "<REGION_PROPOSAL>",
    "proposals": "<REGION_PROPOSAL>",
    "grounding": "<CAPTION_TO_PHRASE_GROUNDING>",
    "phrase_grounding": "<CAPTION_TO_PHRASE_GROUNDING>",
    "caption_grounding": "<CAPTION_TO_PHRASE_GROUNDING>",
    "segment": "<REFERRING_EXPRESSION_SEGMENTATION>",
    "segmentation": "<REFERRING_EXPRESSION_SEGMENTATION>",
    "referring_segmentation": "<REFERRING_EXPRESSION_SEGMENTATION>",
    "referring_expression": "<REFERRING_EXPRESSION_SEGMENTATION>",
    "region_segmentation": "<REGION_TO_SEGMENTATION>",
    "ovd": "<OPEN_VOCABULARY_DETECTION>",
    "open_vocabulary": "<OPEN_VOCABULARY_DETECTION>",
    "open_vocab_detection": "<OPEN_VOCABULARY_DETECTION>",
    "open_vocabulary_object_detection": "<OPEN_VOCABULARY_DETECTION>",
    "region_category": "<REGION_TO_CATEGORY>",
    "region_description": "<REGION_TO_DESCRIPTION>",
    "region_ocr": "<REGION_TO_OCR>",
}
_NAMES = {token.strip("<>").lower(): token for token in TASKS}
_KNOWN = _NAMES | _ALIASES

# A token at the start of a prompt, closed or not, however it is spaced; and one anywhere in it.
_LEADING_TOKEN = re.compile(r"\s*(<\s*[^<>\s][^<>]*?\s*(?:>|$))")
_INNER_TOKEN = re.compile(r"<[A-Za-z]\w*>")
_CONSTANT_NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
# Tokens that every Florence-2 has and that are no tasks. `<od>` and the like are left out: nobody
# means them.
_MARKUP = frozenset(t for t in FLORENCE_TOKENS if t.startswith("<loc_")) | {"<and>", "<sep>"}
# Words that are compared with the names of tasks; longer prompts are sentences.
_MOST_WORDS = 3
_SIMILAR = 0.8
# Edges of boxes are rounded now and then.
_ROUNDING_PIXELS = 0.5
# The same of shares of an image, whose edge is 1.
_ROUNDING_SHARES = 0.05
# Angle brackets as web pages, shells and JSON escape them.
_ESCAPED = re.compile(r"(?:%|\\u00|\\x)(3c|3e)", re.IGNORECASE)


def check_request(
    prompt: str,
    *,
    text: str | Sequence[str] | None = None,
    region: Any = None,
    image_size: Sequence[float] | None = None,
    declared: Collection[str] = (),
    free_prompt: bool = False,
) -> None:
    """Refuse a request that the model would answer with nonsense.

    Args:
        prompt, text, region: as for `build_prompt`.
        image_size: ``(width, height)`` in pixels; None where it is not known yet, and then a region
            in pixels is not compared with it.
        declared: further tasks that the checkpoint declares, such as ``"<DocVQA>"``.
        free_prompt: allow a prompt that looks like a task and is none.

    Raises:
        ValueError: a misspelt task, a prompt that looks like a task and is none, a task without the
            text or region that it takes or with one that it does not take, or a region that is not
            in the image.
    """
    check_task(prompt, declared=declared, free_prompt=free_prompt)
    if text is not None and not isinstance(text, str):
        _check_texts(text)
    task = TASKS.get(task_of(prompt))
    if task is not None:
        _check_input(task, prompt.replace(task.token, ""), text, region)
    if region is not None:
        _check_region(region, image_size)
    # The rest of what does not go together: two inputs, input for a task that takes none.
    size = image_size if image_size is not None else (1e9, 1e9)
    build_prompt(prompt, text=text, region=region, image_size=size)


def check_task(prompt: str, *, declared: Collection[str] = (), free_prompt: bool = False) -> None:
    """Refuse a prompt that looks like a task token and is no known task.

    Raises:
        ValueError: with the task that was probably meant.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be a string such as '<OD>', got {type(prompt).__name__}")
    if free_prompt or task_of(prompt) in TASKS:
        return
    if not prompt.strip():
        raise ValueError("the prompt is empty: name a task such as '<OD>'")
    found = _suspect(prompt, declared)
    if found is None:
        return
    meant = _meant(found)
    hint = f": did you mean {meant!r}?" if meant else f" (they are {', '.join(TASKS)})."
    raise ValueError(
        f"{prompt!r} looks like a task, but {found!r} is none of the 15{hint} A prompt of a "
        "fine-tune's own is asked with free_prompt=True (--free-prompt), or without it where the "
        'checkpoint declares its token, in the tokenizer or in the list "tasks" of '
        "processor_config.json"
    )


def check_task_of_data(prompt: str, *, declared: Collection[str] = ()) -> None:
    """Refuse a prompt of training data that is nearly one of the 15 tasks, which would not train
    that task. Other tokens and sentences are the data's own tasks.

    Raises:
        ValueError: with the task that was probably meant.
    """
    if task_of(prompt) in TASKS or not prompt.strip():
        return
    found = _suspect(prompt, tasks_of_data([prompt]).union(declared))
    meant = None if found is None else _meant(found, _SIMILAR)
    if meant is not None:
        raise ValueError(
            f"the prompt {prompt!r:.200} looks like a task and is none: did you mean {meant!r}? A "
            f'task of your own that is called so, {found!r}, belongs into the list "tasks" of the '
            "model's processor_config.json"
        )


def may_be_declared(prompt: str) -> bool:
    """Whether `check_task` allows `prompt` only if a checkpoint declares it: it begins with a token
    that is none of the 15 tasks, in any case.
    """
    if task_of(prompt) in TASKS:
        return False
    token = _suspect(prompt, ())
    return token is not None and token.startswith("<") and _key(token) not in _NAMES


def tasks_of_data(prompts: Iterable[str]) -> frozenset[str]:
    """The data's own tasks: leading tokens of its prompts, except those nearly equal to one of the
    15.
    """
    tokens = {task_of(prompt) for prompt in prompts} - TASKS.keys() - {"text"}
    return frozenset(
        token
        for token in tokens
        if not difflib.get_close_matches(_key(token), _KNOWN, n=1, cutoff=_SIMILAR)
    )


def _suspect(prompt: str, declared: Collection[str]) -> str | None:
    """The part of a prompt that looks like a task and is not declared."""
    plain = _plain(prompt)
    leading = _LEADING_TOKEN.match(plain)
    tokens = [*([leading[1].strip()] if leading else []), *_INNER_TOKEN.findall(plain)]
    for token in tokens:
        if token not in declared and token not in _MARKUP:
            return token
    if tokens:
        # Locations and separators alone ask nothing.
        is_markup = _MARKUP.issuperset(tokens) and not _INNER_TOKEN.sub("", plain).strip()
        return tokens[0] if is_markup else None
    words = plain.split()
    if plain.strip() in declared:
        return None
    key = _key(plain)
    if key in _KNOWN or (
        len(words) <= _MOST_WORDS
        and "?" not in plain
        and difflib.get_close_matches(key, _KNOWN, n=1, cutoff=_SIMILAR)
    ):
        return plain.strip()
    first = words[0].strip(":,;.=") if words else ""
    is_name = first.isupper() and first.lower() in _NAMES
    return first if is_name or _CONSTANT_NAME.fullmatch(first) else None


def _plain(prompt: str) -> str:
    """The prompt as displayed: unescaped, and without characters of no width."""
    text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), html.unescape(prompt))
    text = unicodedata.normalize("NFKC", text)
    return "".join(letter for letter in text if unicodedata.category(letter) != "Cf")


def _meant(name: str, cutoff: float = 0.6) -> str | None:
    """The task whose name is closest to `name`; None if none is close."""
    key = _key(name)
    if key in _KNOWN:
        return _KNOWN[key]
    close = difflib.get_close_matches(key, _KNOWN, n=1, cutoff=cutoff)
    return _KNOWN[close[0]] if close else None


def _key(words: str) -> str:
    return re.sub(r"[\W_]+", "_", words.casefold()).strip("_")


def _check_texts(text: Any) -> None:
    if not isinstance(text, list | tuple) or not all(isinstance(one, str) for one in text):
        raise ValueError(f"text must be a string or a list of strings, got {text!r:.200}")


def _check_input(task: Task, given: str, text: Any, region: Any) -> None:
    """Check that the prompt or the arguments hold the input that the task takes, and no other."""
    if task.takes == "text":
        content = given if text is None else text
        if region is None and not (content if isinstance(content, list) else str(content).strip()):
            raise ValueError(
                f"{task.token} needs a text and got none: pass text= (--text), "
                f"{'a caption' if 'CAPTION' in task.token else 'a name'} of what to look for"
            )
    if task.takes == "region" and region is None:
        content = given if text is None else text
        if not isinstance(content, str) or not content.strip():
            raise ValueError(
                f"{task.token} needs a region and got none: pass region=(x0, y0, x1, y1) in "
                "pixels (--region X0,Y0,X1,Y1)"
            )
        _check_location_text(content)


def _check_region(region: Any, image_size: Sequence[float] | None) -> None:
    if isinstance(region, str):
        _check_location_text(region)
        return
    expected = "expected (x0, y0, x1, y1) in pixels of the upright image"
    if isinstance(region, bytes | Mapping | Set) or not hasattr(region, "__len__"):
        raise ValueError(f"the region is {region!r:.200}: {expected}")
    try:
        numbers = np.array([float(number) for number in region])
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"the region is {region!r:.200}: {expected}") from None
    shown = tuple(numbers.tolist())
    if numbers.shape != (4,) or not np.isfinite(numbers).all():
        raise ValueError(f"the region is {shown!r:.200}: {expected}, four finite numbers")
    x0, y0, x1, y1 = shown
    if max(map(abs, shown)) <= 1 + _ROUNDING_SHARES:
        whole = "" if image_size is None else f"; the whole image is (0, 0, {_size(image_size)})"
        raise ValueError(
            f"the region {shown} looks like shares of the image: {expected}, so multiply by its "
            f"width and height{whole}"
        )
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"the region {shown} has its corners in the wrong order: {expected} with x0 < x1 and "
            "y0 < y1 (x, y, width, height becomes x, y, x + width, y + height)"
        )
    least = -_ROUNDING_PIXELS
    if min(x0, y0) < least:
        raise ValueError(f"the region {shown} is outside the image: {expected}, from 0 on")
    if image_size is None:
        return
    width, height = check_image_size(image_size, "a region in pixels")
    if x1 > width + _ROUNDING_PIXELS or y1 > height + _ROUNDING_PIXELS:
        raise ValueError(
            f"the region {shown} is outside the image of {width:g} x {height:g} pixels: "
            f"{expected}, at most (0, 0, {_size(image_size)})"
        )


def _check_location_text(text: str) -> None:
    bins = text_to_bins(text)
    if not REGION_TEXT.fullmatch(text.strip()) or len(bins) % 2:
        raise ValueError(
            f"the region is {text!r:.200}: expected (x0, y0, x1, y1) in pixels, or text of four "
            "tokens <loc_0>..<loc_999>"
        )
    if len(bins) == 4 and (bins[0] > bins[2] or bins[1] > bins[3]):
        raise ValueError(
            f"the region {text.strip()!r} has its corners in the wrong order: expected x0 <= x1 "
            "and y0 <= y1"
        )


def _size(image_size: Sequence[float]) -> str:
    return ", ".join(f"{extent:g}" for extent in image_size)
