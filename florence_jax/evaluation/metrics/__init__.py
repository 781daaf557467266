"""The metrics of the published tables; each agrees with its reference implementation.

They are plain functions of plain values, without the model, jax or data sets.

| metric | function | reference |
| --- | --- | --- |
| CIDEr-D (COCO's tables: CIDEr), CIDEr | `cider_d`, `cider` | pycocoevalcap, vrama91/cider |
| BLEU-1..4, ROUGE-L | `bleu`, `rouge_l` | pycocoevalcap |
| METEOR | `meteor` | METEOR 1.5 itself, in Java |
| the tokens of captions | `tokenize` | Stanford's PTBTokenizer as pycocoevalcap runs it |
| COCO AP and AR | `coco_average_precision` | pycocotools |
| AP at one overlap, matches | `mean_average_precision`, `matched` | pycocotools |
| R@1, accuracy@0.5 | `recall_at_1`, `box_iou` | MDETR's Flickr30k evaluation |
| mIoU, oIoU | `mean_and_overall_iou` | LAVT's and PolyFormer's evaluation |
| VQA accuracy | `vqa_accuracy` | the VQA challenge's vqaEval |
| TextVQA accuracy | `textvqa_accuracy` | mmf's TextVQAAccuracyEvaluator |
| VizWiz accuracy | `vizwiz_accuracy` | the VizWiz API's vqaEval |
| ANLS, edit distance, exact | `anls`, `edit_distance`, `exact_match` | arXiv:1907.00490 |
"""

from florence_jax.evaluation.metrics.answers import (
    anls,
    edit_distance,
    exact_match,
    normalized_answer,
    similarity,
    textvqa_accuracy,
    vizwiz_accuracy,
    vqa_accuracy,
)
from florence_jax.evaluation.metrics.boxes import (
    Detection,
    MaskOverlap,
    box_iou,
    coco_average_precision,
    coco_mask,
    mask_iou,
    mask_overlap,
    matched,
    mean_and_overall_iou,
    mean_average_precision,
    recall_at_1,
)
from florence_jax.evaluation.metrics.captions import Scores, bleu, cider, cider_d, meteor, rouge_l
from florence_jax.evaluation.metrics.treebank import tokenize

__all__ = [
    "Detection",
    "MaskOverlap",
    "Scores",
    "anls",
    "bleu",
    "box_iou",
    "cider",
    "cider_d",
    "coco_average_precision",
    "coco_mask",
    "edit_distance",
    "exact_match",
    "mask_iou",
    "mask_overlap",
    "matched",
    "mean_and_overall_iou",
    "mean_average_precision",
    "meteor",
    "normalized_answer",
    "recall_at_1",
    "rouge_l",
    "similarity",
    "textvqa_accuracy",
    "tokenize",
    "vizwiz_accuracy",
    "vqa_accuracy",
]
