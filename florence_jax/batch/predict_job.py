"""The job of `florence-jax predict`: answer every item's queries with a pipeline.

Batches depend on the block alone, and every batch is padded to the one size that its program has:
timing, worker processes and restarts do not change the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from florence_jax.batch.job import DecodedItem, Row, pipeline_fingerprint
from florence_jax.generation import GenerationConfig
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.requests import DecodedImage, Query, Request
from florence_jax.processing import ImageConfig
from florence_jax.results.scores import drop_below
from florence_jax.runtime.error_text import row_error_text


class PredictJob:
    """Makes rows `{"width", "height", "answers": [{"prompt": ..., "result" or "error": ...}]}`.

    A row whose answers are all errors has an "error" too.
    """

    def __init__(
        self,
        pipeline: BasePipeline,
        generation: GenerationConfig | None = None,
        *,
        constrained: bool = False,
        min_score: float | None = None,
        batch_size: int = 8,
        free_prompt: bool = False,
        declared: Iterable[str] = (),
    ) -> None:
        """
        Args:
            pipeline: on one device, on all of this host's (`replicate_over_local_devices`), or on a
                mesh.
            generation: decoding settings; by default the checkpoint's.
            constrained: allow only answers that parse completely.
            min_score: leave out shapes with a lower score; answers without scores are errors then.
            batch_size: rows in one compiled call, on each device; exported programs have their own.
            free_prompt: allow prompts that look like a task and are none.
            declared: further tasks, beside those that the checkpoint declares.

        Raises:
            ValueError: settings that give no single, reproducible answer.
        """
        settings = generation or pipeline.generation
        if settings.do_sample or settings.num_return_sequences != 1:
            raise ValueError(
                "a run over many images needs one answer to each question, the same at every "
                "start: do_sample=False and num_return_sequences=1, got "
                f"{settings.do_sample} and {settings.num_return_sequences}"
            )
        self._pipeline, self._constrained, self._min_score = pipeline, constrained, min_score
        self._engine = pipeline.engine(
            settings,
            constrained=constrained,
            batch_size=batch_size,
            reorder=True,
            free_prompt=free_prompt,
            declared=declared,
        )

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        own = {
            "kind": "predict",
            "decoding": dataclasses.asdict(self._engine.generation),
            "constrained": self._constrained,
            "batch_rows": self._engine.rows_of_a_device,
        }
        scored = {} if self._min_score is None else {"min_score": self._min_score}
        return own | scored | pipeline_fingerprint(self._pipeline)

    @property
    def image_config(self) -> ImageConfig:
        return self._pipeline.image_config

    @property
    def activity(self) -> DeviceStats:
        return self._engine.stats

    def check(self, queries: Iterable[Query]) -> None:
        """Refuse queries that suit no image, before the run begins.

        Raises:
            ValueError: a prompt, text, region or label that does not go together with its task.
        """
        for query in queries:
            self._engine.check(Request(image=None, **vars(query)), labels=True)

    def __call__(self, loaded: Iterable[DecodedItem]) -> Sequence[Row]:
        rows: list[Row] = []
        entries: list[dict[str, Any]] = []

        def requests() -> Iterator[Request]:
            for item in loaded:
                width, height = item.size
                answers = [query.to_dict() for query in item.item.queries]
                rows.append({"width": width, "height": height, "answers": answers})
                entries.extend(answers)
                image = DecodedImage(size=item.size, pixels=item.pixels)
                for query in item.item.queries:
                    yield Request(image=image, **vars(query))

        for number, response in enumerate(self._engine.run(requests())):
            entries[number] |= self._answer(response)
        for row in rows:
            if all("error" in answer for answer in row["answers"]):
                row["error"] = next((one["error"] for one in row["answers"]), "nothing was asked")
        return rows

    def _answer(self, response: Any) -> dict[str, Any]:
        """The result or the error of one query."""
        if isinstance(response, Exception):
            return {"error": row_error_text(response)}
        try:
            return {"result": drop_below(response.result, self._min_score)}
        except Exception as error:
            return {"error": row_error_text(error)}
