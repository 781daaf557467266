"""One's own data: the JSON lines that training reads, or a file in COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from florence_jax.batch.images import FileBelow
from florence_jax.batch.job import Item
from florence_jax.evaluation.layouts.detection import detection_file
from florence_jax.evaluation.layouts.files import Dataset, LayoutError


def own_file(path: Path, image_root: Path | None = None) -> Dataset:
    """A `.jsonl` of `image`, `prefix`, `suffix`, or a `.json` in COCO's detection layout.

    `suffix` is the true answer in Florence-2's own text ("car<loc_1>..."), or a list of texts that
    are equally right. Pictures are relative to `image_root`, by default the file's folder.

    Raises:
        LayoutError: the file is missing, or a row lacks what it needs.
    """
    if not path.is_file():
        raise LayoutError(
            f"{path} is no file: --data names a .jsonl of image, prefix, suffix, or a .json in "
            "COCO's layout"
        )
    root = image_root or path.parent
    return detection_file(path, root) if path.suffix == ".json" else _lines(path, root)


def _lines(path: Path, root: Path) -> Dataset:
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        row = _row(line, f"{path}, line {number}")
        truths = row["suffix"] if isinstance(row["suffix"], list) else [row["suffix"]]
        items.append(
            Item(
                id=str(row.get("id", number)),
                image=FileBelow(str(root), row["image"]),
                extra={"input": row["prefix"], "truth": truths},
            )
        )
    if not items:
        raise LayoutError(f"{path} has no row: expected lines of image, prefix, suffix")
    return Dataset(items=items, files=[path])


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise LayoutError(f"{where} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise LayoutError(f"{where} is not an object of image, prefix and suffix")
    for name in ("image", "prefix", "suffix"):
        value = row.get(name)
        # Several texts may be right.
        texts = value if name == "suffix" and isinstance(value, list) and value else [value]
        if not all(isinstance(text, str) for text in texts):
            raise LayoutError(f"{where}: `{name}` is {value!r}, expected a text")
    return row
