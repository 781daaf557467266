"""Registry of the published data sets: reader, prompt, score and published columns of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from florence_jax.evaluation import scoring
from florence_jax.evaluation.datasets import captions, detection, flickr30k, refcoco, vqa
from florence_jax.evaluation.datasets.dataset import Dataset
from florence_jax.evaluation.image_classes import CLASS_BENCHMARKS
from florence_jax.evaluation.image_masks import MASK_BENCHMARKS
from florence_jax.evaluation.metrics import textvqa_accuracy, vizwiz_accuracy

# The prompts of VQA and of expressions' boxes are not published. VQA uses the prompt of this
# project's training, expressions that of phrase grounding.
_UNPUBLISHED = "not published; --prompt changes it"
_CARD = "a task of the model card"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published data set, and how it is evaluated.

    The paper does not say how the answers of its tables were decoded. Decoding settings are those
    published with the checkpoints (3 beams, no repeated trigram), except for `max_new_tokens`.

    Attributes:
        title: display name.
        read: function of (folder, split) that reads the data set.
        score: function of the rows and the truth that returns the scores.
        splits: the first is the default; those in `columns` have a published score.
        columns: split -> column of `paper_results.TABLES`.
        prompt: prompt of each image; `{input}` stands for the question, sentence or expression.
        prompt_source: where the prompt is published.
        files: content of the folder.
        max_new_tokens: the longest answer. This limit is ours: the model card has 1024 for every
            task. Answers that end before it are the same under any limit.
    """

    title: str
    read: Callable[[Path, str], Dataset]
    score: scoring.Scoring
    splits: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    prompt: str
    prompt_source: str = _CARD
    files: str
    max_new_tokens: int = 128


def _expressions(name: str, title: str, splits: tuple[str, ...]) -> Benchmark:
    return Benchmark(
        title=f"{title}, boxes",
        read=partial(refcoco.expressions, name),
        score=scoring.score_expressions,
        splits=splits,
        columns={split: f"{title} {split} accuracy" for split in splits},
        prompt="<CAPTION_TO_PHRASE_GROUNDING>{input}",
        prompt_source=_UNPUBLISHED,
        files=f"{name}/refs(...).p, {name}/instances.json, train2014/",
    )


def _masks(name: str, title: str, splits: tuple[str, ...]) -> Benchmark:
    return Benchmark(
        title=f"{title}, masks",
        read=partial(refcoco.expressions, name, with_masks=True),
        score=scoring.score_masks,
        splits=splits,
        columns={"val": "RefCOCO segmentation val mIoU"} if name == "refcoco" else {},
        prompt="<REFERRING_EXPRESSION_SEGMENTATION>{input}",
        files=f"{name}/refs(...).p, {name}/instances.json, train2014/",
        max_new_tokens=1024,
    )


_THREE = ("val", "testA", "testB")
_TWO = ("val", "test")

BENCHMARKS: Mapping[str, Benchmark] = {
    "coco-captions": Benchmark(
        title="COCO captions, Karpathy's split",
        read=captions.coco_karpathy,
        score=scoring.score_captions,
        splits=("test", "val"),
        columns={"test": "COCO captions Karpathy test CIDEr"},
        prompt="<CAPTION>",
        files="dataset_coco.json, val2014/, train2014/",
    ),
    "nocaps": Benchmark(
        title="NoCaps",
        read=captions.nocaps,
        score=scoring.score_captions,
        splits=("val",),
        columns={"val": "NoCaps val CIDEr"},
        prompt="<CAPTION>",
        files="nocaps_val_4500_captions.json, images/",
    ),
    "textcaps": Benchmark(
        title="TextCaps",
        read=captions.textcaps,
        score=scoring.score_captions,
        splits=("val",),
        columns={"val": "TextCaps val CIDEr"},
        prompt="<CAPTION>",
        files="TextCaps_0.1_val.json, train_images/",
    ),
    "coco-detection": Benchmark(
        title="COCO detection",
        read=detection.coco_detection,
        score=scoring.score_detection,
        splits=("val2017",),
        columns={"val2017": "COCO detection val2017 mAP"},
        prompt="<OD>",
        files="annotations/instances_val2017.json, val2017/",
        max_new_tokens=1024,
    ),
    "flickr30k": Benchmark(
        title="Flickr30k Entities",
        read=flickr30k.flickr30k_entities,
        score=scoring.score_phrases,
        splits=("test", "val"),
        columns={"test": "Flickr30k test R@1"},
        prompt="<CAPTION_TO_PHRASE_GROUNDING>{input}",
        files="test.txt, Annotations/, Sentences/, flickr30k-images/",
        max_new_tokens=512,
    ),
    "refcoco": _expressions("refcoco", "RefCOCO", _THREE),
    "refcoco+": _expressions("refcoco+", "RefCOCO+", _THREE),
    "refcocog": _expressions("refcocog", "RefCOCOg", _TWO),
    "refcoco-masks": _masks("refcoco", "RefCOCO", _THREE),
    "refcoco+-masks": _masks("refcoco+", "RefCOCO+", _THREE),
    "refcocog-masks": _masks("refcocog", "RefCOCOg", _TWO),
    "vqav2": Benchmark(
        title="VQAv2",
        read=vqa.vqav2,
        score=scoring.score_vqa,
        splits=("val", "test-dev", "test"),
        columns={"test-dev": "VQAv2 test-dev accuracy"},
        prompt="<VQA>{input}",
        prompt_source=_UNPUBLISHED,
        files="v2_OpenEnded_mscoco_val2014_questions.json, "
        "v2_mscoco_val2014_annotations.json, val2014/",
    ),
    "textvqa": Benchmark(
        title="TextVQA",
        read=vqa.textvqa,
        score=partial(scoring.score_vqa, accuracy=textvqa_accuracy),
        splits=("val", "test"),
        columns={"test": "TextVQA test-dev accuracy"},
        prompt="<VQA>{input}",
        prompt_source=_UNPUBLISHED,
        files="TextVQA_0.5.1_val.json, train_images/",
    ),
    "vizwiz": Benchmark(
        title="VizWiz VQA",
        read=vqa.vizwiz,
        score=partial(scoring.score_vqa, accuracy=vizwiz_accuracy),
        splits=("val", "test"),
        columns={"test": "VizWiz test-dev accuracy"},
        prompt="<VQA>{input}",
        prompt_source=_UNPUBLISHED,
        files="Annotations/val.json, val/",
    ),
    "docvqa": Benchmark(
        title="DocVQA",
        read=vqa.docvqa,
        score=scoring.score_documents,
        splits=("val", "test"),
        prompt="<DocVQA>{input}",
        prompt_source=_UNPUBLISHED,
        files="val_v1.0.json or val_v1.0_withQT.json, documents/",
    ),
}


def benchmark_named(name: str) -> Benchmark:
    """The benchmark `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in BENCHMARKS:
        known = ", ".join(["own", *BENCHMARKS, *CLASS_BENCHMARKS, *MASK_BENCHMARKS])
        raise ValueError(f"{name!r} is no data set; there are {known}")
    return BENCHMARKS[name]
