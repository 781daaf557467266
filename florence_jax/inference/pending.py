"""Requests on their way to a batch: checked, their image read and their prompt tokenized."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass

from florence_jax.generation import GenerationConfig
from florence_jax.generation.inputs import prompt_bucket
from florence_jax.inference.constraints import AnswerConstraints
from florence_jax.inference.image_encoder import CachedImage, EncodedImage
from florence_jax.inference.requests import Request, Response
from florence_jax.processing import FlorenceTokenizer, build_prompt, check_request
from florence_jax.processing.tasks import Compat
from florence_jax.runtime.error_text import is_of_one_input

_NO_LIMIT = 1 << 30


@dataclass(kw_only=True, eq=False)
class Pending:
    """A request on its way: its image read, its prompt tokenized, then waiting for its batch.

    Attributes:
        generation, constraints: equal throughout a batch.
        image: None where the request has an error, and again when its batch is on its way.
    """

    request: Request
    future: Future[Response]
    generation: GenerationConfig
    constraints: AnswerConstraints | None
    image: CachedImage | None = None
    size: tuple[int, int] = (0, 0)
    input_ids: list[int] = dataclasses.field(default_factory=list)

    def settings_key(self) -> tuple[bool, str]:
        """Equal for requests whose settings let them share a batch; keys can be sorted."""
        return self.constraints is not None, repr(self.generation)


@dataclass(frozen=True, kw_only=True)
class RequestPreparer:
    """Makes a `Pending` of a request.

    Attributes:
        tokenizer: prompts to ids.
        pixel_size: (height, width) in pixels at which images are encoded.
        compat: as for `florence_jax.Florence2Pipeline`.
        declared: tasks beside the 15.
        free_prompt: allow prompts that look like a task and are none.
        check_prompts: refuse requests that the model would answer with nonsense.
    """

    tokenizer: FlorenceTokenizer
    pixel_size: tuple[int, int]
    compat: Compat
    declared: Collection[str]
    free_prompt: bool
    check_prompts: bool

    def check(self, request: Request, image_size: tuple[int, int] | None) -> None:
        """See `florence_jax.processing.check_request`.

        Args:
            image_size: (width, height) of the image; None where it is not known yet.

        Raises:
            ValueError: the model would answer with nonsense.
        """
        if isinstance(request.image, EncodedImage):
            image_size = request.image.size
        check_request(
            request.prompt,
            text=request.text,
            region=request.region,
            image_size=image_size,
            declared=self.declared,
            free_prompt=self.free_prompt,
        )

    def __call__(
        self,
        request: Request,
        image: CachedImage | Exception,
        generation: GenerationConfig,
        constraints: AnswerConstraints | None,
    ) -> Pending:
        """A request with its tokens; with an error instead of an image if it cannot be answered."""
        pending = Pending(
            request=request, future=Future(), generation=generation, constraints=constraints
        )
        try:
            if isinstance(image, Exception):
                raise image
            if self.check_prompts:
                self.check(request, image.size)
            prompt = build_prompt(
                request.prompt,
                text=request.text,
                region=request.region,
                image_size=image.size,
                compat=self.compat,
            )
            (pending.input_ids,) = self.tokenizer.encode([prompt])
            pending.image, pending.size = image, image.size
        except Exception as error:
            if not is_of_one_input(error):
                raise
            pending.future.set_exception(error)
        return pending

    def shape(self, pending: Pending) -> tuple[tuple[int, int], int]:
        """The image size and padded prompt length, which are equal throughout a batch."""
        encoded = pending.image.encoded if pending.image else None
        length = len(pending.input_ids)
        # The original code attends to padding: only prompts of equal length need none.
        padded = length if self.compat == "original" else prompt_bucket(length, _NO_LIMIT)
        return self.pixel_size if encoded is None else encoded.pixel_size, padded
