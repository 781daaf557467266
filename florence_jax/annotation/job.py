"""The job of `florence-jax annotate`: a block of pictures becomes a block of annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from florence_jax.annotation.engine_adapter import AnnotationEngine
from florence_jax.annotation.noun_phrases import NounPhraseExtractor
from florence_jax.annotation.schema import SCHEMA, to_row
from florence_jax.annotation.settings import AnnotateSettings
from florence_jax.annotation.stages import ImageAnnotator
from florence_jax.batch.fingerprint import pipeline_fingerprint
from florence_jax.batch.job import DecodedItem, Row
from florence_jax.generation import GenerationConfig
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.processing import ImageConfig
from florence_jax.runtime.error_text import row_error_text


class AnnotateJob:
    """Rows of `florence_jax.annotation.schema`.

    Each picture of a block is encoded once. Each stage of the cascade asks about all pictures of
    the block together, so that the device has full batches.
    """

    def __init__(
        self,
        pipeline: BasePipeline,
        settings: AnnotateSettings,
        analyser: NounPhraseExtractor,
        *,
        generation: GenerationConfig | None = None,
        constrained: bool = True,
        batch_size: int = 8,
    ) -> None:
        """
        Args:
            settings: what is asked and what stays.
            analyser: finds the noun phrases of captions.
            generation: decoding settings; by default the checkpoint's.
            constrained: allow only answers that can be read whole. By default they are: a box that
                a token limit cuts in half would be lost.
            batch_size: rows in one compiled call.

        Raises:
            ValueError: decoding settings or a pipeline that give no single answer or no scores.
        """
        self._settings, self._analyser = settings, analyser
        self._asker = AnnotationEngine(
            pipeline,
            generation or pipeline.generation,
            constrained=constrained,
            batch_size=batch_size,
        )

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        own = {
            "kind": "annotate",
            "schema": SCHEMA,
            "settings": self._settings.record(),
            "analyser": self._analyser.name,
            "decoding": dataclasses.asdict(self._asker.engine.generation),
            "constrained": self._asker.constrained,
            "batch_rows": self._asker.engine.rows_of_a_device,
        }
        return own | pipeline_fingerprint(self._asker.pipeline)

    @property
    def image_config(self) -> ImageConfig:
        return self._asker.pipeline.image_config

    @property
    def activity(self) -> DeviceStats:
        return self._asker.engine.stats

    def __call__(self, loaded: Iterable[DecodedItem]) -> Sequence[Row]:
        pictures = [
            ImageAnnotator(
                id=item.item.id,
                image=getattr(item.item.image, "name", item.item.id),
                encoded=encoded,
                size=item.size,
                settings=self._settings,
                analyser=self._analyser,
            )
            for item, encoded in self._asker.encode(loaded)
        ]
        problems: dict[int, Row] = {}

        def attempt(number: int, action: Callable[..., Any], *arguments: Any) -> Any:
            """What the action gives; None once the picture has failed: the others go on."""
            if number not in problems:
                try:
                    return action(*arguments)
                except Exception as error:
                    problems[number] = {"error": row_error_text(error)}
            return None

        for stage in zip(*(picture.stages() for picture in pictures), strict=True):
            asked = [
                (number, *one)
                for number, questions in enumerate(stage)
                for one in attempt(number, questions) or ()
            ]
            answers = self._asker.ask([question for _, question, _ in asked])
            for (number, _, read), answer in zip(asked, answers, strict=True):
                attempt(number, read, answer)
        rows = [
            attempt(number, lambda picture=picture: to_row(picture.annotation()))
            for number, picture in enumerate(pictures)
        ]
        return [problems.get(number) or row or {} for number, row in enumerate(rows)]
