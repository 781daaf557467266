"""Florence-2 as an autodistill base model: label folders of images for a smaller detector.

from autodistill.detection import CaptionOntology
from florence_jax.integrations.autodistill_model import Florence2Detector

Florence2Detector(CaptionOntology({"a red car": "car"})).label("photos/", "labelled/")
"""

from __future__ import annotations

from typing import Any

import numpy as np
import supervision as sv  # pyright: ignore[reportMissingImports]
from autodistill.detection import (  # pyright: ignore[reportMissingImports]
    DetectionBaseModel,
    DetectionOntology,
)
from autodistill.helpers import load_image  # pyright: ignore[reportMissingImports]

from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.results.supervision import to_supervision

_MODEL = "microsoft/Florence-2-base-ft"


class Florence2Detector(DetectionBaseModel):
    """Open-vocabulary detection of each prompt of an ontology.

    Attributes:
        ontology: from prompts to classes.
        pipeline: answers.
        min_score: boxes with a lower score are left out.
    """

    def __init__(
        self,
        ontology: DetectionOntology,
        model: str | BasePipeline = _MODEL,
        min_score: float = 0.0,
    ) -> None:
        """
        Args:
            ontology: as above.
            model: a pipeline, or what `Florence2Pipeline.from_pretrained` loads.
            min_score: as above.
        """
        super().__init__(ontology)
        self.ontology, self.min_score = ontology, min_score
        loaded = model if isinstance(model, BasePipeline) else None
        self.pipeline = loaded or Florence2Pipeline.from_pretrained(str(model))

    def predict(self, input: Any) -> sv.Detections:
        """The boxes of every prompt in an image, with class ids by their order.

        Args:
            input: whatever autodistill loads: a path, a PIL image, or an array in OpenCV's order
                of colours.
        """
        # A copy in memory: autodistill leaves the file open.
        image = load_image(input, return_format="PIL").convert("RGB")
        prompts = self.ontology.prompts()
        results = self.pipeline(
            [image] * len(prompts), "<OPEN_VOCABULARY_DETECTION>", text=[[one] for one in prompts]
        )
        found = []
        for number, result in enumerate(results):
            detections = to_supervision(result, image.size)
            detections.mask = None
            detections.class_id = np.full(len(detections), number)
            if detections.confidence is None:
                detections.confidence = np.ones(len(detections), np.float32)
            found.append(detections[detections.confidence >= self.min_score])
        return sv.Detections.merge(found)
