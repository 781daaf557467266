"""The job of `florence-jax predict`: every item's queries, answered by a pipeline.

How items are put into batches is a function of the block alone, and every batch is padded to the
one size that its program has: neither timing nor worker processes nor restarts reach the numbers.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from florence_jax.batch.fingerprint import pipeline_fingerprint
from florence_jax.batch.job import DecodedItem, Row
from florence_jax.generation import GenerateOutput, GenerationConfig
from florence_jax.generation.inputs import prompt_bucket
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.batching import padded_rows
from florence_jax.inference.device_normalize import Normalisation
from florence_jax.inference.device_queue import DeviceQueue
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.requests import Query, Request
from florence_jax.processing import ImageConfig, check_request, request_prompt, task_of
from florence_jax.results.scores import drop_below
from florence_jax.runtime.error_text import is_of_one_input, row_error_text

_NO_LIMIT = 1 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class _Question:
    """One query about one picture of the block, on its way to an answer.

    Attributes:
        entry: the answer's place in the row.
        prompt: the sentence that the tokenizer encodes; `tokens` of them.
        features: float[I, D] of the picture, on the device.
    """

    entry: dict[str, Any]
    query: Query
    size: tuple[int, int]
    prompt: str
    tokens: int
    features: jax.Array


class PredictJob:
    """Rows `{"width", "height", "answers": [{"prompt": ..., "result" or "error": ...}, ...]}`.

    A row none of whose questions could be asked has an "error" too.
    """

    def __init__(
        self,
        pipeline: BasePipeline,
        generation: GenerationConfig | None = None,
        *,
        constrained: bool = False,
        min_score: float | None = None,
        batch_size: int = 8,
        activity: DeviceStats | None = None,
        free_prompt: bool = False,
        declared: Collection[str] = (),
    ) -> None:
        """
        Args:
            pipeline: with the programs of one device, or of a mesh
                (`replicate_over_local_devices`).
            generation: decoding settings; by default the checkpoint's.
            constrained: allow only answers that can be read whole.
            min_score: leave out shapes with a lower score; answers without scores are errors then.
            batch_size: rows in one compiled call; exported programs have their own.
            activity: where tokens and the device's time are counted.
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
        self._pipeline, self._settings, self._constrained = pipeline, settings, constrained
        self._free_prompt = free_prompt
        self._declared = pipeline.declared_tasks | frozenset(declared)
        self._min_score = min_score
        self._rows = max(pipeline.programs.batch_buckets(batch_size))
        self._normalise = Normalisation(pipeline.image_config)
        self._activity = activity or DeviceStats()
        self._queue = DeviceQueue(self._activity)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        own = {
            "kind": "predict",
            "decoding": dataclasses.asdict(self._settings),
            "constrained": self._constrained,
            "batch_rows": self._rows_of_a_device,
        }
        scored = {} if self._min_score is None else {"min_score": self._min_score}
        return own | scored | pipeline_fingerprint(self._pipeline)

    @property
    def image_config(self) -> ImageConfig:
        return self._pipeline.image_config

    @property
    def activity(self) -> DeviceStats:
        return self._activity

    def check(self, queries: Iterable[Query]) -> None:
        """Refuse queries that suit no image, before a million rows say so.

        Raises:
            ValueError: a prompt, text, region or label that does not go together with its task.
        """
        queries = list(queries)
        for query in queries:
            check_request(
                query.prompt,
                text=query.text,
                region=query.region,
                declared=self._declared,
                free_prompt=self._free_prompt,
            )
            self._constraint([query])

    def __call__(self, loaded: Iterable[DecodedItem]) -> Sequence[Row]:
        rows: list[Row] = []
        pending: dict[Any, list[_Question]] = defaultdict(list)
        unfinished: list[Future[None]] = []
        for chunk in _chunks(loaded, self._rows):
            for item, features in self._encoded(chunk):
                row: Row = {"width": item.size[0], "height": item.size[1], "answers": []}
                rows.append(row)
                for key, question in self._questions(item, features, row["answers"]):
                    pending[key].append(question)
                    if len(pending[key]) == self._rows:
                        unfinished += self._ask(pending.pop(key))
        for batch in _merged(pending, self._rows):
            unfinished += self._ask(batch)
        pending.clear()
        for future in unfinished:
            future.result()
        for row in rows:
            if all("error" in answer for answer in row["answers"]):
                row["error"] = next((one["error"] for one in row["answers"]), "nothing was asked")
        return rows

    @property
    def _rows_of_a_device(self) -> int:
        return self._rows // getattr(self._pipeline.programs, "device_count", 1)

    def _encoded(self, chunk: Sequence[DecodedItem]) -> Iterator[tuple[DecodedItem, jax.Array]]:
        """Each item of at most a batch of pictures, with its picture's features."""
        places = {id(pixels): place for place, pixels in enumerate(_distinct(chunk))}
        pixels = np.stack(list(_distinct(chunk)))
        padded = pixels[padded_rows(len(pixels), (self._rows,))]
        features, _ = self._queue.launch(
            lambda: self._pipeline.programs.encode(self._normalise(padded)), lambda _: None
        )
        for item in chunk:
            yield item, features[places[id(item.pixels)]]

    def _questions(
        self, item: DecodedItem, features: jax.Array, answers: list[dict[str, Any]]
    ) -> Iterator[tuple[Any, _Question]]:
        """The item's questions, each with the key of the batch that it goes into."""
        for query in item.item.queries:
            entry = query.to_dict()
            answers.append(entry)
            try:
                prompt = request_prompt(
                    query.prompt,
                    text=query.text,
                    region=query.region,
                    image_size=item.size,
                    compat=self._pipeline.compat,
                    declared=self._declared,
                    free_prompt=self._free_prompt,
                )
                tokens = len(self._pipeline.tokenizer.encode([prompt])[0])
            except Exception as error:
                entry["error"] = row_error_text(error)
                continue
            question = _Question(
                entry=entry,
                query=query,
                size=item.size,
                prompt=prompt,
                tokens=tokens,
                features=features,
            )
            yield (self._length_key(tokens), task_of(query.prompt)), question

    def _length_key(self, tokens: int) -> int:
        """Prompts of one key go into one batch."""
        # The original code attends to the padding: only prompts of one length need none.
        original = self._pipeline.compat == "original"
        return tokens if original else prompt_bucket(tokens, _NO_LIMIT)

    def _ask(self, questions: Sequence[_Question]) -> list[Future[None]]:
        """Send a batch to the device; the futures are done when its answers are written down."""
        try:
            return [self._dispatch(questions)]
        except Exception as error:
            if not is_of_one_input(error):
                raise
            if len(questions) > 1:
                # One of them is to blame, and the others are not.
                return [future for question in questions for future in self._ask([question])]
            questions[0].entry["error"] = row_error_text(error)
            return []

    def _dispatch(self, questions: Sequence[_Question]) -> Future[None]:
        pipeline = self._pipeline
        input_ids, mask = pipeline.tokenizer.encode_batch([one.prompt for one in questions])
        if pipeline.compat == "original":
            mask = np.ones_like(mask)
        rows = padded_rows(len(questions), (self._rows,))
        constraint = self._constraint([questions[row].query for row in rows])

        def compute() -> GenerateOutput:
            output = pipeline.programs.generate(
                tuple(questions[row].features for row in rows),
                input_ids[rows],
                mask[rows],
                self._settings,
                constraint,
            )
            for array in output:
                if isinstance(array, jax.Array):
                    array.copy_to_host_async()
            return output

        # Without the features, which the device may then let go of.
        asked = [(question.query.prompt, question.size) for question in questions]
        entries = [question.entry for question in questions]

        def write_down(output: GenerateOutput) -> None:
            host = output.trimmed()
            self._activity.add_tokens(int(host.lengths[: len(entries)].sum()))
            for number, entry in enumerate(entries):
                try:
                    result = _answer(pipeline, host, number, asked)
                    entry["result"] = drop_below(result, self._min_score)
                except Exception as error:
                    entry["error"] = row_error_text(error)

        return self._queue.launch(compute, write_down)[1]

    def _constraint(self, queries: Sequence[Query]) -> Any:
        requests = [Request(image=None, **vars(query)) for query in queries]
        return self._pipeline.constraint_of(requests, self._constrained)


def _answer(
    pipeline: BasePipeline,
    output: GenerateOutput,
    number: int,
    asked: Sequence[tuple[str, tuple[int, int]]],
) -> Any:
    """What row `number` of a trimmed output says: read by itself, so that it fails by itself."""
    row = GenerateOutput(*(value[number : number + 1] for value in output))
    (result,) = pipeline.postprocess_outputs(row, asked[number : number + 1])
    return result


def _chunks(loaded: Iterable[DecodedItem], pictures: int) -> Iterator[list[DecodedItem]]:
    """The items in stretches of `pictures` different pictures."""
    chunk: list[DecodedItem] = []
    count = 0
    for item in loaded:
        is_new = not chunk or chunk[-1].pixels is not item.pixels
        if is_new and count == pictures:
            yield chunk
            chunk, count = [], 0
        chunk.append(item)
        count += is_new
    if chunk:
        yield chunk


def _distinct(chunk: Sequence[DecodedItem]) -> Iterator[np.ndarray]:
    for before, item in zip((None, *chunk), chunk, strict=False):
        if before is None or before.pixels is not item.pixels:
            yield item.pixels


def _merged(
    pending: Mapping[tuple[int, str], Sequence[_Question]], rows: int
) -> Iterator[list[_Question]]:
    """What filled no batch of its task, with other tasks' prompts of the same length."""
    by_length: dict[int, list[_Question]] = defaultdict(list)
    for length, task in sorted(pending):
        by_length[length] += pending[length, task]
    for questions in by_length.values():
        for start in range(0, len(questions), rows):
            yield questions[start : start + rows]
