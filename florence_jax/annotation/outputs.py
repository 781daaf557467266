"""What is made of finished annotations: statistics, plots, exports, and the gallery."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from florence_jax.annotation.exports import write_coco, write_rows
from florence_jax.annotation.gallery import write_gallery
from florence_jax.annotation.noun_phrases import NounPhraseExtractor
from florence_jax.annotation.plots import save_plots
from florence_jax.annotation.schema import read_annotations
from florence_jax.annotation.statistics import Statistics, statistics
from florence_jax.annotation.throughput import saved_throughput
from florence_jax.runtime.atomic_file import atomic_write, remove_leftovers

Export = Literal["coco", "rows"]
STATISTICS, PLOTS, GALLERY = "statistics.json", "plots", "gallery"
ROWS, INSTANCES, CAPTIONS = "rows.jsonl", "instances.coco.json", "captions.coco.json"


@dataclass(frozen=True, kw_only=True)
class Products:
    """What to make beside the statistics.

    Attributes:
        exports: of "coco" (instances and captions) and "rows" (`image, prefix, suffix`).
        gallery: pictures on the page; 0 for none.
    """

    exports: Sequence[Export] = ()
    gallery: int = 0


def make_products(
    annotations: Path,
    directory: Path,
    root: Path,
    analyser: NounPhraseExtractor,
    products: Products,
) -> Statistics:
    """Write what is asked for into `directory`, in place of what an earlier call wrote.

    Args:
        annotations: a file or directory of them.
        root: the directory that image names start from.
    """
    remove_leftovers(directory)
    counted = statistics(read_annotations(annotations), analyser)
    record = counted.record() | {"throughput": list(saved_throughput(directory))}
    content = json.dumps(record, indent=1, ensure_ascii=False)
    save_plots(counted.distributions, directory / PLOTS)
    if "coco" in products.exports:
        write_coco(read_annotations(annotations), directory / INSTANCES, directory / CAPTIONS)
    if "rows" in products.exports:
        write_rows(read_annotations(annotations), directory / ROWS)
    if products.gallery:
        write_gallery(read_annotations(annotations), root, directory / GALLERY, products.gallery)
    # Last: whoever waits for the products (`--refine`) takes these for all of them.
    atomic_write(directory / STATISTICS, content + "\n")
    return counted
