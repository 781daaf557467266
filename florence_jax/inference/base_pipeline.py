"""`BasePipeline`: a call with images and prompts, whichever compiled functions answer it.

A pipeline's functions are compiled from the model, an artefact's were exported before; the engine
does the rest.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from florence_jax.generation import GenerationConfig
from florence_jax.inference.batching import DEFAULT_BATCH_SIZE
from florence_jax.inference.compiled_fns import CompiledFns
from florence_jax.inference.constraints import AnswerConstraints
from florence_jax.inference.engine import Engine
from florence_jax.inference.overrides import OnError, with_overrides
from florence_jax.inference.requests import (
    Request,
    Response,
    Result,
    broadcast_requests,
    grouped_by_image,
)
from florence_jax.processing import FlorenceTokenizer, ImageConfig
from florence_jax.processing.tasks import Compat

# Keywords of a call beside the decoding settings.
_CALL = (
    *("images", "prompts", "text", "region", "labels", "constrained", "generation"),
    *("batch_size", "seed", "free_prompt", "on_error"),
)


@dataclass(frozen=True, kw_only=True)
class BasePipeline(abc.ABC):
    """Images and task prompts in, parsed results out.

    Attributes:
        tokenizer: ids to text and back.
        image_config: how images become pixel values.
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
        """The compiled functions that run on the device."""

    @property
    @abc.abstractmethod
    def constraints(self) -> AnswerConstraints:
        """The constraints for `constrained=True`."""

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
            constrained: allow only answers that can be read whole, see `engine`.
            generation: decoding settings; by default the checkpoint's.
            batch_size: requests in one compiled call.
            seed: of what sampling draws (`do_sample=True` needs one): the same call with the same
                seed gives the same answers. Nothing else is random.
            free_prompt: allow prompts that look like a task and are none that the library or the
                checkpoint knows, as a fine-tune's "<DocVQA>What is the total?".
            on_error: "raise" stops at the first request that cannot be answered; "return" puts its
                error, mostly an `ImageError` or `ValueError`, in place of its result.
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
        order = grouped_by_image(requests)
        engine = self.engine(
            settings,
            constrained=constrained,
            batch_size=batch_size,
            seed=seed,
            free_prompt=free_prompt,
        )
        if on_error == "raise":
            # Before the first image is read, whichever request it is.
            for request in requests:
                engine.check(request)
        responses = engine.run((requests[row] for row in order), on_error=on_error)
        results = dict(zip(order, map(_result, responses), strict=True))
        return [results[row] for row in sorted(order)] if several else results[0]

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
        size = self.image_config.size if image_size is None else tuple(image_size)
        config = dataclasses.replace(self.image_config, size=size)
        engine = self.engine(GenerationConfig(), batch_size=batch_size, image_config=config)
        encoded = list(engine.encode_images(images if several else [images]))
        return encoded if several else encoded[0]

    def answer(
        self,
        requests: Iterable[Request],
        generation: GenerationConfig | None = None,
        *,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Iterator[Any]:
        """Results of `requests` in order, taken from the iterable as they are needed.

        The next batch is prepared while the device decodes the one before. Requests about one image
        should follow each other: an image of this batch or of the one before is not encoded again.

        Args:
            requests: images with their prompts.
            generation: decoding settings; by default the checkpoint's.
            on_error: as for a call.
            options: `constrained`, `batch_size`, `seed` and `free_prompt`, as for a call.
        """
        engine = self.engine(generation, **options)
        yield from map(_result, engine.run(requests, on_error=on_error))

    def engine(
        self,
        generation: GenerationConfig | None = None,
        *,
        constrained: bool = False,
        declared: Iterable[str] = (),
        image_config: ImageConfig | None = None,
        **options: Any,
    ) -> Engine:
        """An engine that answers streams of requests, or requests as they come.

        With `constrained` an answer is always whole, also where the token limit ends it: boxes of
        four locations with x0 <= x1 and y0 <= y1, quads of eight, polygons of pairs, text without
        markup, and labels that can be read back or are among those that were given (the classes of
        open-vocabulary detection are).

        Args:
            generation: decoding settings; by default the checkpoint's.
            constrained: as above.
            declared: further tasks, beside those that the checkpoint declares.
            image_config: how images become pixels; by default as for the checkpoint.
            options: those of `Engine`.
        """
        return Engine(
            self.programs,
            self.tokenizer,
            image_config or self.image_config,
            generation or self.generation,
            constraints=self.constraints if constrained else None,
            compat=self.compat,
            declared_tasks=self.declared_tasks | frozenset(declared),
            **options,
        )


def _result(response: Response | Exception) -> Result | Exception:
    return response.result if isinstance(response, Response) else response
