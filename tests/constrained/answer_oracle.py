"""Is an answer whole? By regular expressions over its text, and by reading it back.

Written without a look at the automata: what they allow must be exactly what is whole here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from florence_jax.processing import TASKS, parse
from florence_jax.processing.compat import UNGROUNDED_PHRASES
from florence_jax.processing.vocabulary import FLORENCE_TOKENS, SPECIAL_TOKENS

# Bins are pixels here, so that coordinates can be written back as tokens.
SIZE = (1000, 1000)

# Put before every token that is markup, because ordinary tokens can spell the same characters.
MARK = "\U0010ffff"
MARKUP = {token.encode() for token in (*FLORENCE_TOKENS, *SPECIAL_TOKENS, "<mask>")}

LOC = rf"(?:{MARK}<loc_\d+>)"
TEXT = f"(?:(?!<s>|</s>|<pad>|<loc_)[^{MARK}])"
BOX_LABEL = rf"(?!\s)[^<\n{MARK}]+(?<!\s)"
OCR_LABEL = rf"(?!\s)(?:(?!\n){TEXT})+(?<!\s)"
POLYGON = f"(?:{LOC}{LOC}){{3,}}"
INSTANCE = f"{POLYGON}(?:{MARK}<sep>{POLYGON})*"
ENCLOSED = f"(?:{MARK}<poly>{INSTANCE}{MARK}</poly>)"
FLORENCE = f"{MARK}(?:{'|'.join(FLORENCE_TOKENS)})"

BODIES = {
    "pure_text": f"{TEXT}*",
    "description_with_bboxes": f"(?:{BOX_LABEL}(?:{LOC}{{4}})+)*",
    "phrase_grounding": f"(?:{BOX_LABEL}(?:{LOC}{{4}})+)*",
    "bboxes": f"(?:{LOC}{{4}})*",
    "ocr": f"(?:{OCR_LABEL}{LOC}{{8}})*",
    "polygons": f"(?:{INSTANCE}|{ENCLOSED}*)",
    "description_with_bboxes_or_polygons": (
        f"(?:(?:{BOX_LABEL}(?:{LOC}{{4}})+)*|(?:{BOX_LABEL}{ENCLOSED}+)*)"
    ),
    "about a region": f"{TEXT}*(?:{LOC}{{4}})?",
    "of a fine-tune": f"(?:{TEXT}*{FLORENCE})*{TEXT}*",
}
WITH_BOXES = (
    "description_with_bboxes",
    "phrase_grounding",
    "bboxes",
    "description_with_bboxes_or_polygons",
    "about a region",
)


def kind_of(task: str) -> str:
    if task not in TASKS:
        return "of a fine-tune"
    entry = TASKS[task]
    about_a_region = entry.answer == "pure_text" and entry.takes == "region"
    return "about a region" if about_a_region else entry.answer


def follows_grammar(tokenizer, ids: Sequence[int], task: str) -> bool:
    """Whether `ids`, from behind the decoder start token to `</s>`, are what `task` may answer."""
    tokens = [tokenizer.token_bytes(index) for index in ids]
    written = b"".join(MARK.encode() * (token in MARKUP) + token for token in tokens)
    try:
        text = written.decode("utf-8")
    except UnicodeDecodeError:
        return False
    kind = kind_of(task)
    if not re.fullmatch(f"(?:{MARK}<s>)*{BODIES[kind]}{MARK}</s>", text):
        return False
    if kind not in WITH_BOXES or f"{MARK}<poly>" in text:
        return True
    bins = [int(number) for number in re.findall(rf"{MARK}<loc_(\d+)>", text)]
    corners = [bins[index : index + 4] for index in range(0, len(bins), 4)]
    return all(x0 <= x1 and y0 <= y1 for x0, y0, x1, y1 in corners)


def reads_back(text: str, task: str) -> bool:
    """Whether the parser's result, written down again, is the whole of `text`.

    A label with several shapes is written down once for each. What phrase grounding leaves out on
    purpose ("it", "the image") may be missing.
    """
    result = parse(text, task, SIZE)[task]
    body = re.sub(r"^(?:</s>)?(?:<s>)*|</s>(?:<pad>)*$", "", text)
    if isinstance(result, str):
        return result == body.strip()
    shape = "<loc_[0-9]+>"
    if "bboxes" in result and not result.get("polygons"):
        labels = result.get("labels", result.get("bboxes_labels"))
        written = [
            label + locations(box) for label, box in zip(labels, result["bboxes"], strict=True)
        ]
        expected = one_by_one(body, f"(?:{shape}){{4}}")
    elif "quad_boxes" in result:
        pairs = zip(result["labels"], result["quad_boxes"], strict=True)
        written = [label + locations(quad) for label, quad in pairs]
        expected = one_by_one(body, f"(?:{shape}){{8}}")
    else:
        labels = result.get("labels", result.get("polygons_labels"))
        opened, closed = ("<poly>", "</poly>") if "<poly>" in body else ("", "")
        written = [
            label + opened + "<sep>".join(map(locations, instance)) + closed
            for label, instance in zip(labels, result["polygons"], strict=True)
        ]
        expected = one_by_one(body, f"{opened}(?:{shape}|<sep>)+{closed}")
    if task == "<CAPTION_TO_PHRASE_GROUNDING>":
        expected = [item for item in expected if item.split("<loc_")[0] not in UNGROUNDED_PHRASES]
    return written == expected


def one_by_one(body: str, shape: str) -> list[str]:
    """`body` cut into a label and a shape each; what is neither is left over as an item."""
    items, position = [], 0
    for phrase in re.finditer(f"(.*?)((?:{shape})+)", body, re.DOTALL):
        items += [phrase[1] + one for one in re.findall(shape, phrase[2])]
        position = phrase.end()
    return items + [body[position:]] * (position < len(body))


def locations(coordinates: Sequence[float]) -> str:
    return "".join(f"<loc_{int(number)}>" for number in coordinates)
