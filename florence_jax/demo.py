"""The offline demonstration: the bundled model and its held-out scenes.

The library carries both, with their card: `florence_jax/assets/shapes`. The model knows a synthetic
world of coloured shapes and drawn words, made by `train/shapes`, and nothing of photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import florence_jax
from florence_jax.evaluation.metrics.boxes import Detection, box_iou, mask_iou, matched
from florence_jax.generation import GenerationConfig
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.inference.requests import Request
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.processing import parse, task_of
from florence_jax.processing.locations import without_locations
from florence_jax.quantization import Quantization
from florence_jax.runtime.text_file import json_lines

SHAPES = Path(florence_jax.__file__).parent / "assets" / "shapes"
_SCENES = SHAPES / "scenes" / "test"
_LEAST_OVERLAP = 0.5
SCORES_NOTE = (
    "Scores are the geometric mean of the probabilities of a shape's location tokens. With 1000 "
    "locations along each side, neighbours share the probability: 0.1 to 0.3 is usual for a box "
    "that fits. Compare scores with each other; they are not the chance of being right."
)
_COLUMNS = (
    ("bboxes", "labels"),
    ("bboxes", "bboxes_labels"),
    ("quad_boxes", "labels"),
    ("polygons", "labels"),
    ("polygons", "polygons_labels"),
)


@dataclass(frozen=True)
class Shown:
    """A prompt about a held-out scene, with the true and the model's answer in the form of `parse`.

    Attributes:
        scene: file name of the image, without its ending.
        picture: the scene.
        task: "<OD>" and so on.
        prompt: the task with its input.
        truth, answer: text, or coordinates in the image's pixels.
    """

    scene: str
    picture: Image.Image
    task: str
    prompt: str
    truth: Any
    answer: Any

    @property
    def right(self) -> bool:
        """Whether the answer is right: equal text, or every shape and no other, with an IoU of at
        least 0.5 with the true shape of its label; polygons as one area.
        """
        if isinstance(self.truth, str):
            return without_locations(self.truth) == without_locations(self.answer)
        if "labels" in self.truth and "polygons" in self.truth:
            areas = (_parts(self.truth), _parts(self.answer))
            return mask_iou(*areas, self.picture.size) >= _LEAST_OVERLAP
        truth, answer = _found(self.truth), _found(self.answer)
        overlap = self._quads_overlap if "quad_boxes" in self.truth else box_iou
        matches = matched(truth, answer, overlap, _LEAST_OVERLAP)
        return len(truth) == len(answer) and all(matches)

    def _quads_overlap(self, a: Sequence[float], b: Sequence[float]) -> float:
        return mask_iou([a], [b], self.picture.size)


def shapes_pipeline(
    dtype: str = "float32",
    *,
    matmul_precision: MatmulPrecision = "highest",
    quantize: Quantization | None = None,
) -> Florence2Pipeline:
    """Load the bundled model."""
    return Florence2Pipeline.from_pretrained(
        "shapes", dtype=dtype, matmul_precision=matmul_precision, quantize=quantize
    )


def held_out_scenes() -> list[dict[str, str]]:
    """The rows `image, prefix, suffix` of the bundled scenes: every task for each of them."""
    return [row for _, row in json_lines(_SCENES / "annotations.jsonl")]


def show(pipeline: Florence2Pipeline, generation: GenerationConfig) -> Iterator[Shown]:
    """Answer every task on every bundled scene, beside the truth."""
    rows = held_out_scenes()
    pictures = {name: Image.open(_SCENES / name) for name in {row["image"] for row in rows}}
    requests = [Request(image=pictures[row["image"]], prompt=row["prefix"]) for row in rows]
    for row, result in zip(rows, pipeline.answer(requests, generation), strict=True):
        task, picture = task_of(row["prefix"]), pictures[row["image"]]
        yield Shown(
            scene=Path(row["image"]).stem,
            picture=picture,
            task=task,
            prompt=row["prefix"],
            truth=parse(row["suffix"], task, picture.size)[task],
            answer=result[task],
        )


def brief(answer: Any) -> str:
    """One line about an answer: labels with whole pixels, polygons as their number of corners, text
    without its region.
    """
    if isinstance(answer, str):
        return " / ".join(without_locations(answer).splitlines())
    parts = []
    for shapes, labels in _COLUMNS:
        if labels not in answer or shapes not in answer:
            continue
        for shape, label in zip(answer[shapes], answer[labels], strict=True):
            if shapes == "polygons":
                where = " + ".join(f"{len(part) // 2} corners" for part in shape)
            else:
                where = ",".join(f"{number:.0f}" for number in shape)
            parts.append(f"{label} {where}".strip())
    return "; ".join(parts) or "nothing"


def enlarged_answer(answer: Any, factor: float) -> Any:
    """Scale an answer's coordinates by `factor`."""
    if isinstance(answer, str):
        return answer
    columns = {shapes for shapes, _ in _COLUMNS}
    return {
        name: _multiplied(value, factor) if name in columns else value
        for name, value in answer.items()
    }


def _parts(answer: Mapping[str, Any]) -> list[Sequence[float]]:
    return [part for outline in answer["polygons"] for part in outline]


def _found(answer: Mapping[str, Any]) -> list[Detection]:
    """Boxes or quads with their labels."""
    for shapes, labels in _COLUMNS:
        if shapes in answer and labels in answer:
            rows = zip(answer[shapes], answer[labels], strict=True)
            return [Detection(label=label, shape=shape) for shape, label in rows]
    raise ValueError(f"an answer of {sorted(answer)} holds no labelled shapes")


def _multiplied(value: Any, factor: float) -> Any:
    if isinstance(value, list | tuple):
        return [_multiplied(one, factor) for one in value]
    return value * factor
