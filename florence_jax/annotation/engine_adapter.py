"""Answers about encoded images, with the confidences that the filters need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from florence_jax.batch.job import DecodedItem
from florence_jax.generation import GenerationConfig
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.image_encoder import EncodedImage
from florence_jax.inference.requests import DecodedImage, Request, Response
from florence_jax.processing.confidence import text_confidence
from florence_jax.runtime.error_text import row_error_text


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's answer to one prompt.

    Attributes:
        value: what `florence_jax.parse` gives for the task, with scores and label_scores.
        score: exp of the mean log-probability of the words.
        error: why the model could not be asked; there is no value then.
    """

    value: Any = None
    score: float = 0.0
    error: str | None = None


class AnnotationEngine:
    """Encodes images and answers prompts; batches depend on the prompts of one call alone."""

    def __init__(
        self,
        pipeline: BasePipeline,
        generation: GenerationConfig,
        *,
        constrained: bool,
        batch_size: int,
    ) -> None:
        """
        Raises:
            ValueError: settings that give no single, reproducible answer, or no confidences.
        """
        if generation.do_sample or generation.num_return_sequences != 1:
            raise ValueError(
                "annotations need one answer to each question, the same at every start: "
                "do_sample=False and num_return_sequences=1"
            )
        if pipeline.compat is not None:
            raise ValueError(
                f"compat={pipeline.compat!r} has no confidence for every answer, which the filters "
                "need: leave compat (--compat) out"
            )
        self.pipeline, self.constrained = pipeline, constrained
        self.engine = pipeline.engine(
            generation,
            constrained=constrained,
            batch_size=batch_size,
            reorder=True,
            check_prompts=False,
            label_scores=True,
        )

    def encode(self, loaded: Iterable[DecodedItem]) -> Iterator[tuple[DecodedItem, EncodedImage]]:
        """Each item with its encoded image."""
        taken: list[DecodedItem] = []

        def images() -> Iterator[DecodedImage]:
            for item in loaded:
                taken.append(item)
                yield DecodedImage(size=item.size, pixels=item.pixels)

        for number, encoded in enumerate(self.engine.encode_images(images())):
            yield taken[number], encoded

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in order; all batches are under way before the first is waited for."""
        responses = self.engine.run(requests)
        return [self._answer(*one) for one in zip(requests, responses, strict=True)]

    def _answer(self, request: Request, response: Response | Exception) -> Answer:
        if isinstance(response, Exception):
            return Answer(error=row_error_text(response))
        words = self.pipeline.tokenizer.decode_with_spans(response.ids)
        return Answer(
            value=response.result[request.task],
            score=text_confidence(*words, response.token_scores),
        )
