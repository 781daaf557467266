"""A page of drawn samples with the report, as one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import io
import random
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from florence_jax.processing import load_image
from florence_jax.results.draw import draw_result
from florence_jax.runtime.error_text import row_error_text
from florence_jax.training.data.augment import in_frame_of
from florence_jax.training.data.example import Example, Source
from florence_jax.training.data.storage import readable_image
from florence_jax.training.data_check.report import figures_of
from florence_jax.training.data_check.rows import answer_of, examples_of
from florence_jax.training.data_check.split import KINDS, MENDED, Split

_SIDE = 480
_MOST_FAULTS = 200
_MOST_CLASSES = 60
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; color: #18181b }
h2 { border-top: 1px solid #d4d4d8; padding-top: 1rem } td, th { text-align: left;
padding: .1rem .8rem .1rem 0; vertical-align: top } .bar { background: #0072b2; height: .7rem }
.wrong { color: #a1340a } figure { display: inline-block; vertical-align: top;
margin: 0 1rem 1rem 0; max-width: 340px } img { max-width: 100% }
figcaption { color: #52525b; overflow-wrap: anywhere }
"""


def page(splits: Sequence[Split], samples: int, seed: int) -> str:
    """The page.

    Args:
        samples: rows drawn of each split.
        seed: which rows these are.
    """
    title = "Data check"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
    ]
    for split in splits:
        parts += _section(split, samples, seed)
    return "\n".join(parts) + "\n"


def _section(split: Split, samples: int, seed: int) -> Iterator[str]:
    yield f"<h2>{_text(split.name)}: {_text(split.layout)}, {_text(split.path)}</h2>"
    yield "<p>" + "<br>".join(map(_text, figures_of(split))) + "</p>"
    if split.faults:
        wrong = len(split.wrong)
        yield f"<details{' open' if wrong else ''}><summary>{wrong} wrong, "
        yield f"{len(split.faults) - wrong} mended</summary><table>"
        for fault in split.faults[:_MOST_FAULTS]:
            mark = "" if fault.kind in MENDED else " class=wrong"
            kind = KINDS.get(fault.kind, fault.kind)
            yield f"<tr{mark}><td>{_text(kind)}<td>{_text(fault.where)}<td>{_text(fault.text)}"
        yield "</table>"
        if len(split.faults) > _MOST_FAULTS:
            yield f"<p>and {len(split.faults) - _MOST_FAULTS} more</p>"
        yield "</details>"
    if split.notes:
        yield "<ul>" + "".join(f"<li>{_text(note)}" for note in split.notes) + "</ul>"
    named = [(label, count) for label, count in split.classes.most_common() if label]
    if named:
        most = named[0][1]
        yield "<table>"
        for label, count in named[:_MOST_CLASSES]:
            bar = f"<div class=bar style='width:{max(1, round(300 * count / most))}px'></div>"
            yield f"<tr><td>{_text(label)}<td>{count:,}<td>{bar}"
        yield "</table>"
    for source, index in _chosen(split, samples, seed):
        yield _figure(source, index)


def _chosen(split: Split, samples: int, seed: int) -> list[tuple[Source, int]]:
    """Rows drawn by chance, in the order of the data set."""
    rows = [
        (number, index) for number, one in enumerate(split.sources) for index in range(len(one))
    ]
    chosen = sorted(random.Random(seed).sample(rows, min(samples, len(rows))))
    return [(split.sources[number], index) for number, index in chosen]


def _figure(source: Source, index: int) -> str:
    where = f"row {index}"
    try:
        example, *others = examples_of(source, index)
        where = example.id
        image = load_image(readable_image(example.image))
        example = in_frame_of(image.size, example)
        drawn = draw_result(image, {example.task or "labels": _drawable(example, image)})
        words = [f"{one.prefix} → {_words(one.labels)}" for one in (example, *others)]
    # The page has the other rows, and the report says what is wrong with this one.
    except Exception as error:
        return (
            f"<figure><figcaption class=wrong>{_text(where)}: {_text(row_error_text(error))}"
            "</figcaption></figure>"
        )
    caption = "<br>".join(_text(line) for line in (where, *words))
    return (
        f'<figure><img src="{_embedded(drawn)}" alt=""><figcaption>{caption}</figcaption></figure>'
    )


def _drawable(example: Example, image: Image.Image) -> Any:
    return answer_of(example, image.size)


def _words(labels: Any) -> str:
    if isinstance(labels, str):
        return labels[:300]
    names = next((labels[name] for name in ("labels", "bboxes_labels") if name in labels), [])
    return ", ".join(map(str, names))[:300] or "nothing"


def _embedded(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_SIDE, 2 * _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(value: str) -> str:
    return html.escape(value)
