"""Published scores of Florence-2 (every number of its paper's tables) and of DaViT classifiers.

Source: "Florence-2: Advancing a Unified Representation for a Variety of Vision Tasks"
(https://arxiv.org/abs/2311.06242), by table; the model cards on the hub repeat tables 4, 5 and 6.
Numbers are as printed. The paper contradicts itself: section 6.3 gives the large model
TextVQA 81.5 and COCO captions 140.0, for table 5 has 73.5 and 143.3 (140.0 is the base model's);
and RefCOCOg test of the fine-tuned base model, 82.2, is the number of RefCOCO+ testB in the same
row and far from its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "arXiv:2311.06242"
DAVIT_PAPER = "arXiv:2204.03645"


@dataclass(frozen=True)
class PublishedScore:
    """One number of a table.

    Attributes:
        model: a checkpoint's name on the hub ("Florence-2-base-ft"), or the paper's name of a model
            that is not released.
        column: data set, split and metric, as in `Table.columns`.
        value: as printed.
        source: the paper's table, or the page.
    """

    model: str
    column: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of Florence-2 in a table of the paper.

    Attributes:
        title: content of the table.
        source: number of the table.
        columns: data set, split and metric of each number.
        rows: (model, numbers); None where nothing is printed.
    """

    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


_CAPTIONS = ("COCO captions Karpathy test CIDEr", "NoCaps val CIDEr", "TextCaps val CIDEr")
_REGIONS = (
    "COCO detection val2017 mAP",
    "Flickr30k test R@1",
    "RefCOCO val accuracy",
    "RefCOCO testA accuracy",
    "RefCOCO testB accuracy",
    "RefCOCO+ val accuracy",
    "RefCOCO+ testA accuracy",
    "RefCOCO+ testB accuracy",
    "RefCOCOg val accuracy",
    "RefCOCOg test accuracy",
    "RefCOCO segmentation val mIoU",
)
_ABLATIONS = (
    "COCO captions CIDEr",
    "COCO detection AP",
    "Flickr30k R@1",
    "RefCOCO segmentation mIoU",
    "RefCOCO segmentation oIoU",
)
_MASK_RCNN = ("Mask R-CNN AP box", "Mask R-CNN AP mask", "DINO AP")

TABLES: tuple[Table, ...] = (
    Table(
        title="Zero-shot: captions",
        source=f"{PAPER}, table 4",
        columns=_CAPTIONS,
        rows=(
            ("Florence-2-base", (133.0, 118.7, 70.1)),
            ("Florence-2-large", (135.6, 120.8, 72.8)),
        ),
    ),
    Table(
        title="Zero-shot: regions",
        source=f"{PAPER}, table 4",
        columns=_REGIONS,
        rows=(
            (
                "Florence-2-base",
                (34.7, 83.6, 53.9, 58.4, 49.7, 51.5, 56.4, 47.9, 66.3, 65.1, 34.6),
            ),
            (
                "Florence-2-large",
                (37.5, 84.4, 56.3, 61.6, 51.4, 53.6, 57.9, 49.9, 68.0, 67.0, 35.8),
            ),
        ),
    ),
    Table(
        title="Fine-tuned generalists: captions and questions",
        source=f"{PAPER}, table 5",
        columns=(
            *_CAPTIONS,
            "VQAv2 test-dev accuracy",
            "TextVQA test-dev accuracy",
            "VizWiz test-dev accuracy",
        ),
        rows=(
            ("Florence-2-base-ft", (140.0, 116.7, 143.9, 79.7, 63.6, 63.6)),
            ("Florence-2-large-ft", (143.3, 124.9, 151.1, 81.7, 73.5, 72.6)),
        ),
    ),
    Table(
        title="Fine-tuned generalists: regions",
        source=f"{PAPER}, table 6",
        columns=_REGIONS,
        rows=(
            (
                "Florence-2-base-ft",
                (41.4, 84.0, 92.6, 94.8, 91.5, 86.8, 91.7, 82.2, 89.8, 82.2, 78.0),
            ),
            (
                "Florence-2-large-ft",
                (43.4, 85.2, 93.4, 95.3, 92.0, 88.3, 92.9, 83.6, 91.2, 91.7, 80.5),
            ),
        ),
    ),
    Table(
        title="The checkpoint of 4k context that Florence-2-large on the hub became",
        source="model card of microsoft/Florence-2-large",
        columns=("COCO detection val2017 mAP",),
        rows=(("Florence-2-large, 4k context", (39.8,)),),
    ),
    Table(
        title="The image encoder alone (DaViT-B), fine-tuned on COCO and ADE20K",
        source=f"{PAPER}, tables 7 and 9",
        columns=(*_MASK_RCNN, "UperNet mIoU", "UperNet mIoU, multi-scale"),
        rows=(("DaViT-B of Florence-2", (53.6, 46.4, 59.2, 54.9, 55.5)),),
    ),
    Table(
        title="The image encoder with frozen stages",
        source=f"{PAPER}, table 8",
        columns=(*_MASK_RCNN, "UperNet mIoU"),
        rows=(
            ("DaViT-B, nothing frozen", (53.6, 46.4, 59.2, 54.9)),
            ("DaViT-B, stage 1 frozen", (53.6, 46.3, 59.2, 54.1)),
            ("DaViT-B, stages 1-2 frozen", (53.3, 46.1, 59.0, 54.4)),
            ("DaViT-B, stages 1-3 frozen", (49.5, 42.9, 56.7, 49.6)),
            ("DaViT-B, stages 1-4 frozen", (48.3, 44.5, 56.1, 45.9)),
        ),
    ),
    Table(
        title="Size of the model, zero-shot, a subset of FLD-5B",
        source=f"{PAPER}, table 10",
        columns=_ABLATIONS,
        rows=(
            ("base", (118.7, 19.7, 76.3, 18.6, 17.8)),
            ("large", (124.4, 22.6, 78.2, 21.5, 19.1)),
        ),
    ),
    Table(
        title="Size of the data, zero-shot, base",
        source=f"{PAPER}, table 11",
        columns=_ABLATIONS,
        rows=(
            ("0.12M images", (102.8, 16.1, 74.0, 15.9, 16.6)),
            ("0.36M images", (114.3, 18.7, 75.8, 16.6, 16.4)),
            ("1.2M images", (118.1, 18.9, 76.3, 19.3, 18.4)),
            ("12M images", (118.7, 19.7, 76.3, 18.6, 17.8)),
        ),
    ),
    Table(
        title="What training begins with, zero-shot, base, a subset of FLD-5B",
        source=f"{PAPER}, table 12",
        columns=_ABLATIONS,
        rows=(
            ("vision (frozen) and language", (120.0, 6.9, 66.3, 9.9, 13.6)),
            ("language alone", (81.3, 4.9, 69.0, 15.3, 15.6)),
            ("vision alone", (117.4, 19.6, 75.2, 21.5, 19.3)),
            ("vision and language", (118.7, 19.7, 76.3, 18.6, 17.8)),
        ),
    ),
)

_IMAGENET = Table(
    title="DaViT on ImageNet-1K, 224 px",
    source=f"{DAVIT_PAPER}, abstract",
    columns=("ImageNet val top-1",),
    rows=(("davit_tiny", (82.8,)), ("davit_small", (84.2,)), ("davit_base", (84.6,))),
)
_DAVIT_README = "README of github.com/dingmyu/davit, commit 644f911"
_IMAGENET_TOP_5 = Table(
    title="DaViT on ImageNet-1K, 224 px, of the released weights",
    source=_DAVIT_README,
    columns=("ImageNet val top-5",),
    rows=(("davit_tiny", (96.2,)), ("davit_small", (96.9,)), ("davit_base", (96.9,))),
)
_ADE20K = Table(
    title="DaViT with UperNet on ADE20K, 512 px",
    source=_DAVIT_README,
    columns=("ADE20K val mIoU",),
    rows=(("DaViT-T", (46.3,)), ("DaViT-S", (48.8,)), ("DaViT-B", (49.4,))),
)
TABLES += (_IMAGENET, _IMAGENET_TOP_5, _ADE20K)

# Suffixes of copies on the hub; they hold the published weights, and the same scores apply.
_SUFFIXES = ("-hf", "-no-flash-attn", ".msft_in1k")


def figures() -> list[PublishedScore]:
    """Every number of `TABLES`."""
    return [
        PublishedScore(model, column, value, table.source)
        for table in TABLES
        for model, values in table.rows
        for column, value in zip(table.columns, values, strict=True)
        if value is not None
    ]


def published_score(model: str, column: str) -> PublishedScore | None:
    """The published score of a model in a column; None if there is none.

    Args:
        model: hub id or path, of which the last part decides: "microsoft/Florence-2-base-ft".
        column: as in `Table.columns`.
    """
    name = _name(model)
    for figure in figures():
        if figure.column == column and figure.model.lower() == name:
            return figure
    return None


def published_variants(model: str, column: str) -> list[PublishedScore]:
    """Published scores of other weights under the model's name; arguments as `published_score`.

    The weights of a checkpoint on the hub, for example, were replaced after the paper.
    """
    return [
        figure
        for figure in figures()
        if figure.column == column and figure.model.lower().startswith(f"{_name(model)}, ")
    ]


def _name(model: str) -> str:
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def format_tables() -> str:
    """The tables as text: one line per column of the paper's table, models side by side."""
    blocks = []
    for table in TABLES:
        names = [model for model, _ in table.rows]
        width = max(len(column) for column in table.columns)
        sizes = [max(len(name), 6) for name in names]
        lines = [f"{table.title} ({table.source})"]
        heads = "  ".join(name.rjust(size) for name, size in zip(names, sizes, strict=True))
        lines.append(f"{'':<{width}}  {heads}")
        for number, column in enumerate(table.columns):
            values = [row[number] for _, row in table.rows]
            cells = "  ".join(
                ("-" if value is None else f"{value:.1f}").rjust(size)
                for value, size in zip(values, sizes, strict=True)
            )
            lines.append(f"{column:<{width}}  {cells}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
