"""Answering requests with compiled programs, wherever those come from.

The pipeline's programs are traced from the model, an artefact's were exported before; everything
around them is here and knows no model.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig
from florence_jax.inference.buckets import padded_rows
from florence_jax.inference.constrained import AnswerConstraints
from florence_jax.inference.encoding import EncodedImage, ImageEncoder
from florence_jax.inference.requests import Request, grouped_by_image, requests_of
from florence_jax.processing import (
    FlorenceTokenizer,
    ImageConfig,
    build_prompt,
    parse,
    parse_tokens,
    task_of,
)
from florence_jax.processing.tasks import Compat

Result = dict[str, Any]

DEFAULT_BATCH_SIZE = 8


class Programs(Protocol):
    """What a device can be asked to run; calls return before it has."""

    @property
    def params(self) -> Any:
        """The weights that the programs run with."""
        ...

    def batch_buckets(self, batch_size: int) -> tuple[int, ...]:
        """The batch sizes, up to `batch_size`, that there are programs for."""
        ...

    def encode(self, pixel_values: np.ndarray | jax.Array) -> tuple[jax.Array, ...]:
        """Pixels float32[N, H, W, 3] -> the features of each image, N arrays float[I, D]."""
        ...

    def generate(
        self,
        features: tuple[jax.Array, ...],
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
    ) -> GenerateOutput:
        """Features of B images and int[B, L] prompts with their mask -> B answers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Answering(abc.ABC):
    """Images and task prompts in, parsed results out.

    Attributes:
        tokenizer: ids to text and back.
        image_config: how pictures become pixel values.
        generation: decoding settings of the checkpoint, used where a call gives none.
        compat: None for this library's conventions, "original" or "native" for exactly those of the
            original code or of transformers (see `florence_jax.parse`). "original" also lets the
            encoder attend to the padding of shorter prompts in a batch, as that code does.
    """

    tokenizer: FlorenceTokenizer
    image_config: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)
    compat: Compat = None

    @property
    @abc.abstractmethod
    def programs(self) -> Programs:
        """What runs on the device."""

    @property
    @abc.abstractmethod
    def constraints(self) -> AnswerConstraints:
        """What the answers to requests may be."""

    def __call__(
        self,
        images: Any,
        prompts: str | Sequence[str],
        *,
        text: Any = None,
        region: Any = None,
        labels: Any = None,
        constrained: bool = False,
        generation: GenerationConfig | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **overrides: Any,
    ) -> Result | list[Result]:
        """Answer one request, or a list of them in compiled batches.

        Each image runs through the image encoder once, however many prompts, texts or regions it is
        asked about.

        Args:
            images: one image (path, bytes, PIL, array, or what `encode` returned) or a list.
            prompts: one prompt or a list of them. One image with several prompts, or one prompt
                with several images, is repeated to fit.
            text: the task's text, or a list with one entry per request (None where there is none).
                A list of classes is one entry, a list of such lists one per request.
            region: (x0, y0, x1, y1) in pixels, or a list with one entry per request.
            labels: with `constrained`, the labels that an answer is confined to, see `Request`; a
                list of such lists is one per request.
            constrained: allow only answers that can be read whole, see `answer`.
            generation: decoding settings; by default the checkpoint's.
            batch_size: requests in one compiled call.
            overrides: fields of `GenerationConfig`, such as `max_new_tokens=64`.

        Returns:
            `{task: answer}`; a list of them when a list was asked for. Boxes, quads and polygons
            are in pixels of the upright (EXIF-transposed) image.

        Raises:
            ImageError: an image cannot be read.
            ValueError: prompts, texts or settings that do not fit.
        """
        requests, several = requests_of(images, prompts, text, region, labels)
        settings = dataclasses.replace(generation or self.generation, **overrides)
        order = grouped_by_image(requests)
        answers = self.answer(
            [requests[row] for row in order],
            settings,
            constrained=constrained,
            batch_size=batch_size,
        )
        by_row = dict(zip(order, answers, strict=True))
        results = [by_row[row] for row in range(len(requests))]
        return results if several else results[0]

    def encode(
        self,
        images: Any,
        *,
        image_size: tuple[int, int] | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Any:
        """Run the image encoder now, to ask about the images later.

        Args:
            images: one image or a list of them, as for a call.
            image_size: (height, width) in pixels to encode at; by default the checkpoint's.
            batch_size: images in one compiled call.

        Returns:
            An `EncodedImage`, or a list of them, to pass where a call takes an image.
        """
        several = isinstance(images, list | tuple)
        buckets = self.programs.batch_buckets(batch_size)
        encoder = self._encoder(buckets, image_size)
        remaining = iter(images if several else [images])
        encoded: list[EncodedImage] = []
        while chunk := list(itertools.islice(remaining, max(buckets))):
            encoded += encoder.encode(encoder.read(chunk))
        return encoded if several else encoded[0]

    def answer(
        self,
        requests: Iterable[Request],
        generation: GenerationConfig | None = None,
        *,
        constrained: bool = False,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[Result]:
        """Results of `requests` in order, taken from the iterable as they are needed.

        The next batch is prepared while the device decodes the one before. Requests about one image
        should follow each other: an image of this batch or of the one before is not encoded again.

        With `constrained` an answer is always whole, also where the token limit ends it: boxes of
        four locations with x0 <= x1 and y0 <= y1, quads of eight, polygons of pairs, text without
        markup, and labels that can be read back or are among those that were given (the classes of
        open-vocabulary detection are).
        """
        settings = generation or self.generation
        if settings.num_return_sequences != 1:
            raise ValueError(
                f"num_return_sequences is {settings.num_return_sequences}, but a result holds one "
                "answer: use florence_jax.generate for several"
            )
        buckets = self.programs.batch_buckets(batch_size)
        encoder = self._encoder(buckets)
        pending: _Batch | None = None
        for chunk in self._chunks(requests, max(buckets)):
            try:
                batch = self._launch(chunk, encoder, settings, buckets, constrained)
            finally:
                # Also before an error: what was asked before it has its answers.
                if pending is not None:
                    yield from self._finish(pending)
            pending = batch
        if pending is not None:
            yield from self._finish(pending)

    def _encoder(
        self, buckets: Sequence[int], image_size: tuple[int, int] | None = None
    ) -> ImageEncoder:
        config, programs = self.image_config, self.programs
        if image_size is not None:
            config = dataclasses.replace(config, size=tuple(image_size))
        return ImageEncoder(programs.encode, config, buckets, programs.params)

    def _chunks(self, requests: Iterable[Request], batch_size: int) -> Iterator[list[Request]]:
        """Batches whose images have one number of tokens; a new size begins a new batch."""

        def pixel_size(request: Request) -> tuple[int, int]:
            image = request.image
            return image.pixel_size if isinstance(image, EncodedImage) else self.image_config.size

        for _, group in itertools.groupby(requests, key=pixel_size):
            while chunk := list(itertools.islice(group, batch_size)):
                yield chunk

    def _launch(
        self,
        requests: Sequence[Request],
        encoder: ImageEncoder,
        settings: GenerationConfig,
        buckets: Sequence[int],
        constrained: bool,
    ) -> _Batch:
        """Read, tokenize and send one batch; returns before the device has answered."""
        pictures = encoder.read([request.image for request in requests])
        prompts = [
            build_prompt(
                request.prompt,
                text=request.text,
                region=request.region,
                image_size=picture.size,
                compat=self.compat,
            )
            for request, picture in zip(requests, pictures, strict=True)
        ]
        input_ids, attention_mask = self.tokenizer.encode_batch(prompts)
        if self.compat == "original":
            attention_mask = np.ones_like(attention_mask)
        rows = padded_rows(len(requests), buckets)
        constraint = self.constraint_of([requests[row] for row in rows], constrained)
        encoded = encoder.encode(pictures)
        output = self.programs.generate(
            tuple(encoded[row].features for row in rows),
            input_ids[rows],
            attention_mask[rows],
            settings,
            constraint,
        )
        return _Batch(
            requests=requests, sizes=[picture.size for picture in pictures], output=output
        )

    def constraint_of(self, requests: Sequence[Request], constrained: bool) -> Constraint | None:
        """What a batch with one row for each of `requests` may answer; None: anything.

        Raises:
            ValueError: labels that an answer cannot hold, or labels without `constrained`.
        """
        if constrained:
            return self.constraints(requests)
        labels = next((request.labels for request in requests if request.labels is not None), None)
        if labels is not None:
            raise ValueError(
                f"labels={labels!r} confine only constrained answers: pass constrained=True "
                "(--constrained) too"
            )
        return None

    def _finish(self, batch: _Batch) -> Iterator[Result]:
        asked = zip([request.prompt for request in batch.requests], batch.sizes, strict=True)
        yield from self.read_answers(batch.output.trimmed(), asked)

    def read_answers(
        self, output: GenerateOutput, asked: Iterable[tuple[str, tuple[int, int]]]
    ) -> Iterator[Result]:
        """Results of the first rows of a trimmed output, one for each (prompt, picture's size)."""
        for row, (prompt, size) in enumerate(asked):
            # Without the padding up to the batch's longest answer, a row is its own whatever
            # its neighbours are.
            length = int(output.lengths[row])
            ids = output.sequences[row, : length + 1].tolist()
            task = task_of(prompt)
            if self.compat is None:
                # The first id, the decoder's start, was given and not chosen: it has no score.
                scores = [0.0, *output.token_scores[row, :length].tolist()]
                yield parse_tokens(ids, scores, self.tokenizer, task, size)
            else:
                yield parse(self.tokenizer.decode(ids), task, size, compat=self.compat)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Requests under way on the device."""

    requests: Sequence[Request]
    sizes: list[tuple[int, int]]
    output: GenerateOutput
