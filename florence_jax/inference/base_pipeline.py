"""Answering requests with compiled programs, wherever those come from.

The pipeline's programs are traced from the model, an artefact's were exported before; everything
around them is here and knows no model.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np

from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig
from florence_jax.inference.batching import padded_rows
from florence_jax.inference.constraints import AnswerConstraints
from florence_jax.inference.image_encoder import EncodedImage, ImageEncoder
from florence_jax.inference.overrides import with_overrides
from florence_jax.inference.requests import Request, broadcast_requests, grouped_by_image
from florence_jax.processing import (
    FlorenceTokenizer,
    ImageConfig,
    check_request,
    parse,
    parse_tokens,
    request_prompt,
    task_of,
)
from florence_jax.processing.tasks import Compat

Result = dict[str, Any]
OnError = Literal["raise", "return"]

# Keywords of a call beside the decoding settings.
_CALL = (
    *("images", "prompts", "text", "region", "labels", "constrained", "generation"),
    *("batch_size", "seed", "free_prompt", "on_error"),
)

DEFAULT_BATCH_SIZE = 8
# jax keeps 32 bits: a larger seed would draw what a smaller one draws.
_SEEDS = 1 << 32


class CompiledFns(Protocol):
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
        rng: jax.Array | None = None,
    ) -> GenerateOutput:
        """Features of B images and int[B, L] prompts with their mask -> B answers; `rng` is a key,
        needed where tokens are drawn."""
        ...


@dataclass(frozen=True, kw_only=True)
class BasePipeline(abc.ABC):
    """Images and task prompts in, parsed results out.

    Attributes:
        tokenizer: ids to text and back.
        image_config: how pictures become pixel values.
        generation: decoding settings of the checkpoint, used where a call gives none.
        compat: None for this library's conventions, "original" or "native" for exactly those of the
            original code or of transformers (see `florence_jax.parse`). "original" also lets the
            encoder attend to the padding of shorter prompts in a batch, as that code does.
        tasks: the checkpoint's own tasks beside the 15 and beside those that its tokenizer has a
            token for, such as "<DocVQA>"; asked without `free_prompt`.
    """

    tokenizer: FlorenceTokenizer
    image_config: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)
    compat: Compat = None
    tasks: frozenset[str] = frozenset()

    @functools.cached_property
    def declared_tasks(self) -> frozenset[str]:
        """Tasks beside the 15 that the checkpoint declares, see `tasks`."""
        return self.tasks | self.tokenizer.declared_tasks()

    @property
    @abc.abstractmethod
    def programs(self) -> CompiledFns:
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
        seed: int | None = None,
        free_prompt: bool = False,
        on_error: OnError = "raise",
        **overrides: Any,
    ) -> Any:
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
            seed: of what sampling draws (`do_sample=True` needs one): the same call with the same
                seed gives the same answers. Nothing else is random.
            free_prompt: allow prompts that look like a task and are none that the library or the
                checkpoint knows, as a fine-tune's "<DocVQA>What is the total?".
            on_error: "raise" stops at the first request that cannot be answered; "return" puts its
                error, an `ImageError` or `ValueError`, in place of its result.
            overrides: fields of `GenerationConfig`, such as `max_new_tokens=64`.

        Returns:
            `{task: answer}`; a list of them when a list was asked for. Boxes, quads and polygons
            are in pixels of the upright (EXIF-transposed) image.

        Raises:
            ImageError: an image cannot be read.
            TypeError: a keyword that does not exist.
            ValueError: prompts, texts, regions or settings that do not fit.
        """
        settings = with_overrides(generation or self.generation, overrides, _CALL)
        requests, several = broadcast_requests(images, prompts, text, region, labels)
        _check_on_error(on_error)
        if on_error == "raise":
            # Before the first image is encoded, whichever request it is.
            for request in requests:
                self.check(request, free_prompt=free_prompt)
        order = grouped_by_image(requests)
        answers = self.answer(
            [requests[row] for row in order],
            settings,
            constrained=constrained,
            batch_size=batch_size,
            seed=seed,
            free_prompt=free_prompt,
            on_error=on_error,
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
        seed: int | None = None,
        free_prompt: bool = False,
        on_error: OnError = "raise",
    ) -> Iterator[Any]:
        """Results of `requests` in order, taken from the iterable as they are needed.

        The next batch is prepared while the device decodes the one before. Requests about one image
        should follow each other: an image of this batch or of the one before is not encoded again.

        With `constrained` an answer is always whole, also where the token limit ends it: boxes of
        four locations with x0 <= x1 and y0 <= y1, quads of eight, polygons of pairs, text without
        markup, and labels that can be read back or are among those that were given (the classes of
        open-vocabulary detection are).

        `seed`, `free_prompt` and `on_error` are those of a call.
        """
        settings = generation or self.generation
        _check_on_error(on_error)
        key = _sampling_key(settings, seed)
        if settings.num_return_sequences != 1:
            raise ValueError(
                f"num_return_sequences is {settings.num_return_sequences}, but a result holds one "
                "answer: use florence_jax.generate for several"
            )
        buckets = self.programs.batch_buckets(batch_size)
        encoder = self._encoder(buckets)
        pending: _Batch | None = None
        for number, chunk in enumerate(self._chunks(requests, max(buckets))):
            rng = None if key is None else jax.random.fold_in(key, number)
            launch = functools.partial(
                self._dispatch,
                encoder=encoder,
                settings=settings,
                buckets=buckets,
                constrained=constrained,
                rng=rng,
            )
            try:
                asked, errors = self._asked(chunk, encoder, free_prompt, on_error)
                batch = _launched(launch, asked, errors, on_error)
            finally:
                # Also before an error: what was asked before it has its answers.
                if pending is not None:
                    yield from self._collect(pending)
            pending = batch
        if pending is not None:
            yield from self._collect(pending)

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

    def check(self, request: Request, *, free_prompt: bool = False) -> None:
        """Refuse a request that suits no image.

        Raises:
            ValueError: see `florence_jax.processing.check_request`.
        """
        size = request.image.size if isinstance(request.image, EncodedImage) else None
        check_request(
            request.prompt,
            text=request.text,
            region=request.region,
            image_size=size,
            declared=self.declared_tasks,
            free_prompt=free_prompt,
        )

    def _asked(
        self,
        requests: Sequence[Request],
        encoder: ImageEncoder,
        free_prompt: bool,
        on_error: OnError,
    ) -> tuple[list[_Asked], dict[int, Exception]]:
        """The requests of a batch that can be asked, and the others' errors by their place."""
        pictures = encoder.read(
            [request.image for request in requests], keep_errors=on_error == "return"
        )
        asked: list[_Asked] = []
        errors: dict[int, Exception] = {}
        for place, (request, picture) in enumerate(zip(requests, pictures, strict=True)):
            if isinstance(picture, Exception):
                errors[place] = picture
                continue
            try:
                prompt = request_prompt(
                    request.prompt,
                    text=request.text,
                    region=request.region,
                    image_size=picture.size,
                    compat=self.compat,
                    declared=self.declared_tasks,
                    free_prompt=free_prompt,
                )
            except ValueError as error:
                if on_error == "raise":
                    raise
                errors[place] = error
                continue
            asked.append(_Asked(place=place, request=request, picture=picture, prompt=prompt))
        return asked, errors

    def _dispatch(
        self,
        asked: Sequence[_Asked],
        *,
        encoder: ImageEncoder,
        settings: GenerationConfig,
        buckets: Sequence[int],
        constrained: bool,
        rng: jax.Array | None,
    ) -> GenerateOutput:
        """Tokenize and send one batch; returns before the device has answered."""
        input_ids, attention_mask = self.tokenizer.encode_batch([one.prompt for one in asked])
        if self.compat == "original":
            attention_mask = np.ones_like(attention_mask)
        requests = [one.request for one in asked]
        rows = padded_rows(len(requests), buckets)
        constraint = self.constraint_of([requests[row] for row in rows], constrained)
        encoded = encoder.encode([one.picture for one in asked])
        features = tuple(encoded[row].features for row in rows)
        ids, mask = input_ids[rows], attention_mask[rows]
        if rng is None:
            return self.programs.generate(features, ids, mask, settings, constraint)
        return self.programs.generate(features, ids, mask, settings, constraint, rng=rng)

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

    def _collect(self, batch: _Batch) -> Iterator[Any]:
        found: dict[int, Any] = dict(batch.errors)
        for asked, output in batch.sent:
            prompts = [(one.request.prompt, one.picture.size) for one in asked]
            answers = self.postprocess_outputs(output.trimmed(), prompts)
            found |= zip([one.place for one in asked], answers, strict=True)
        yield from (found[place] for place in sorted(found))

    def postprocess_outputs(
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
class _Asked:
    """A request on its way into a batch: its place in it, its picture, its checked prompt."""

    place: int
    request: Request
    picture: Any
    prompt: str


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """What is under way on the device, usually at once, and the errors of the rest by place."""

    sent: list[tuple[Sequence[_Asked], GenerateOutput]]
    errors: dict[int, Exception]


def _launched(
    launch: Callable[[Sequence[_Asked]], GenerateOutput],
    asked: Sequence[_Asked],
    errors: dict[int, Exception],
    on_error: OnError,
) -> _Batch:
    """`asked` sent to the device: together or, where one of them cannot be asked, one by one."""
    batch = _Batch(sent=[], errors=dict(errors))
    split_into_buckets = [asked] if asked else []
    for piece in split_into_buckets:
        try:
            batch.sent.append((piece, launch(piece)))
        except ValueError as error:
            if on_error == "raise":
                raise
            if len(piece) == 1:
                batch.errors[piece[0].place] = error
            else:
                split_into_buckets += [[one] for one in piece]
    return batch


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "return"):
        raise ValueError(f'on_error must be "raise" or "return", got {on_error!r}')


def _sampling_key(settings: GenerationConfig, seed: int | None) -> jax.Array | None:
    """The key of what a call draws; None where it draws nothing."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    if seed is not None and not 0 <= seed < _SEEDS:
        raise ValueError(f"seed is {seed}, expected an integer from 0 to {_SEEDS - 1}")
    if not settings.do_sample:
        return None
    if seed is None:
        raise ValueError(
            "do_sample=True draws tokens at random and needs a seed: pass seed=0 (--seed 0), or "
            "do_sample=False for the most likely answer"
        )
    return jax.random.key(int(seed))
