"""Questions about pictures that the device already knows, in full batches, with confidences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import numpy as np

from florence_jax.batch.job import DecodedItem
from florence_jax.generation import GenerateOutput, GenerationConfig
from florence_jax.generation.inputs import prompt_bucket
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.batching import padded_rows
from florence_jax.inference.device_normalize import Normalisation
from florence_jax.inference.device_queue import DeviceQueue
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.requests import Query, Request
from florence_jax.processing import TASKS, build_prompt, parse_tokens, task_of
from florence_jax.processing.confidence import text_confidence
from florence_jax.runtime.error_text import is_of_one_input, row_error_text

_NO_LIMIT = 1 << 30
_PLACES = {task: place for place, task in enumerate(TASKS)}


@dataclass(frozen=True, kw_only=True, eq=False)
class PendingQuery:
    """A question: `features` float[I, D] of a picture of `size` (width, height), and what of it."""

    features: jax.Array
    size: tuple[int, int]
    query: Query


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of it.

    Attributes:
        value: what `florence_jax.parse` gives for the task, with scores and label_scores.
        score: exp of the mean log-probability of the words.
        error: why the model could not be asked; there is no value then.
    """

    value: Any = None
    score: float = 0.0
    error: str | None = None


class AnnotationEngine:
    """Encodes pictures and asks about them.

    Every batch has the one size that its program has, and its rows are a function of what is asked
    in one call: answers depend on neither time nor threads.
    """

    def __init__(
        self,
        pipeline: BasePipeline,
        settings: GenerationConfig,
        *,
        constrained: bool,
        batch_size: int,
        activity: DeviceStats,
    ) -> None:
        """
        Raises:
            ValueError: settings that give no single, reproducible answer, or no confidences.
        """
        if settings.do_sample or settings.num_return_sequences != 1:
            raise ValueError(
                "annotations need one answer to each question, the same at every start: "
                "do_sample=False and num_return_sequences=1"
            )
        if pipeline.compat is not None:
            raise ValueError(
                f"compat={pipeline.compat!r} has no confidence for every answer, which the filters "
                "need: leave compat (--compat) out"
            )
        self.pipeline, self.settings, self.constrained = pipeline, settings, constrained
        self.rows = max(pipeline.programs.batch_buckets(batch_size))
        self.rows_of_a_device = self.rows // getattr(pipeline.programs, "device_count", 1)
        self._activity = activity
        self._queue = DeviceQueue(activity)
        self._normalise = Normalisation(pipeline.image_config)

    def encode(self, loaded: Iterable[DecodedItem]) -> Iterator[tuple[DecodedItem, jax.Array]]:
        """Each item with the features of its picture, float[I, D] on the device."""
        remaining = iter(loaded)
        while chunk := list(islice(remaining, self.rows)):
            pixels = np.stack([item.pixels for item in chunk])
            pixels = pixels[padded_rows(len(chunk), (self.rows,))]
            features, _ = self._queue.launch(
                lambda pixels=pixels: self.pipeline.programs.encode(self._normalise(pixels)),
                lambda _: None,
            )
            yield from zip(chunk, features, strict=False)

    def ask(self, asked: Sequence[PendingQuery]) -> list[Answer]:
        """The answers, in order; all batches are under way before the first is waited for."""
        answers: list[Answer] = [Answer()] * len(asked)
        groups: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for number, one in enumerate(asked):
            try:
                prompt = build_prompt(
                    one.query.prompt,
                    text=one.query.text,
                    region=one.query.region,
                    image_size=one.size,
                )
                tokens = len(self.pipeline.tokenizer.encode([prompt])[0])
            except Exception as error:
                answers[number] = Answer(error=row_error_text(error))
                continue
            groups[prompt_bucket(tokens, _NO_LIMIT)].append((number, prompt))
        finishing: list[Callable[[], None]] = []
        for length in sorted(groups):
            # Answers of one task are about as long as each other: no batch waits for one of them.
            group = sorted(groups[length], key=lambda entry: self._place(asked[entry[0]]))
            for start in range(0, len(group), self.rows):
                finishing.append(self._send(asked, group[start : start + self.rows], answers))
        for finish in finishing:
            finish()
        return answers

    def _place(self, one: PendingQuery) -> int:
        return _PLACES.get(task_of(one.query.prompt), len(_PLACES))

    def _send(
        self, asked: Sequence[PendingQuery], batch: Sequence[tuple[int, str]], answers: list[Answer]
    ) -> Callable[[], None]:
        """Start a batch; what is returned writes its answers into `answers`."""
        try:
            future = self._dispatch([asked[number] for number, _ in batch], [p for _, p in batch])
        except Exception as error:
            if not is_of_one_input(error):
                raise
            if len(batch) == 1:
                answers[batch[0][0]] = Answer(error=row_error_text(error))
                return lambda: None
            # One of them is to blame, such as a text too long for the model; the others are not.
            parts = [self._send(asked, [entry], answers) for entry in batch]

            def finish_each() -> None:
                for part in parts:
                    part()

            return finish_each

        def finish() -> None:
            output = future.result()
            for row, (number, _) in enumerate(batch):
                try:
                    answers[number] = self._read(output, row, asked[number])
                except Exception as error:
                    answers[number] = Answer(error=row_error_text(error))

        return finish

    def _dispatch(
        self, asked: Sequence[PendingQuery], prompts: Sequence[str]
    ) -> Future[GenerateOutput]:
        pipeline = self.pipeline
        input_ids, mask = pipeline.tokenizer.encode_batch(list(prompts))
        rows = padded_rows(len(asked), (self.rows,))
        requests = [Request(image=None, **vars(asked[row].query)) for row in rows]
        constraint = pipeline.constraint_of(requests, self.constrained)

        def compute() -> GenerateOutput:
            return pipeline.programs.generate(
                tuple(asked[row].features for row in rows),
                input_ids[rows],
                mask[rows],
                self.settings,
                constraint,
            )

        def fetch(output: GenerateOutput) -> GenerateOutput:
            host = output.trimmed()
            self._activity.add_tokens(int(host.lengths[: len(asked)].sum()))
            return host

        return self._queue.launch(compute, fetch)[1]

    def _read(self, output: GenerateOutput, row: int, one: PendingQuery) -> Answer:
        length, tokenizer = int(output.lengths[row]), self.pipeline.tokenizer
        ids = output.sequences[row, : length + 1].tolist()
        # The first id, the decoder's start, was given and not chosen: it has no score.
        scores = [0.0, *output.token_scores[row, :length].tolist()]
        task = task_of(one.query.prompt)
        value = parse_tokens(ids, scores, tokenizer, task, one.size, label_scores=True)[task]
        return Answer(value=value, score=text_confidence(*tokenizer.decode_with_spans(ids), scores))
