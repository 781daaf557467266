"""Florence-2 as a CVAT auto-annotation function, for `cvat-cli task auto-annotate`.

    cvat-cli task auto-annotate 42 \\
        --function-module florence_jax.integrations.cvat_function \\
        -p 'labels=str:car,person'
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import cvat_sdk.auto_annotation as cvataa  # pyright: ignore[reportMissingImports]
from PIL import Image

from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.results.instances import exportable_instances

_TASK = "<OPEN_VOCABULARY_DETECTION>"


class Florence2Function:
    """Open-vocabulary detection of given labels, as rectangles."""

    def __init__(
        self, labels: str, model: str | BasePipeline = "microsoft/Florence-2-base-ft"
    ) -> None:
        """
        Args:
            labels: the labels, with commas between them; they are what the model looks for.
            model: a pipeline, or what `Florence2Pipeline.from_pretrained` loads.

        Raises:
            ValueError: no label, or one twice.
        """
        self._labels = [label.strip() for label in labels.split(",") if label.strip()]
        if not self._labels or len(set(self._labels)) < len(self._labels):
            raise ValueError(f"labels is {labels!r}, expected distinct names with commas between")
        loaded = model if isinstance(model, BasePipeline) else None
        self._pipeline = loaded or Florence2Pipeline.from_pretrained(str(model))

    @cached_property
    def spec(self) -> Any:
        """What CVAT matches with the labels of a task."""
        return cvataa.DetectionFunctionSpec(
            labels=[
                cvataa.label_spec(label, number, type="rectangle")
                for number, label in enumerate(self._labels)
            ]
        )

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The rectangles in an image, with a score of at least the context's threshold."""
        least = context.conf_threshold or 0.0
        count = len(self._labels)
        results = self._pipeline([image] * count, _TASK, text=[[label] for label in self._labels])
        return [
            cvataa.rectangle(number, list(found.bounds()))
            for number, result in enumerate(results)
            for found in exportable_instances(result, image.size, where="result")
            if found.score is None or found.score >= least
        ]


create = Florence2Function
