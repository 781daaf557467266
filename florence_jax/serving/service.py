"""`Service`: requests of many callers through one engine, within the server's limits."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from florence_jax.generation_config import GenerationConfig
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.constraints import batch_constraint
from florence_jax.inference.requests import Request, Response
from florence_jax.serving.admission import Admission
from florence_jax.serving.answer_lengths import AnswerLengths
from florence_jax.serving.errors import ServingError, refusal
from florence_jax.serving.image_cache import ImageCache, ReadImage
from florence_jax.serving.settings import ServerSettings

State = Literal["warming up", "ready", "draining"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a caller may choose beside the request itself; None is the server's.

    Attributes:
        constrained: allow only answers that can be read whole.
        num_beams, max_new_tokens: at most the server's.
        timeout: seconds, at most the server's.
    """

    constrained: bool = False
    num_beams: int | None = None
    max_new_tokens: int | None = None
    timeout: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The response to one request.

    Attributes:
        notes: the assumptions that the image was read on.
    """

    response: Response
    notes: tuple[str, ...]


class Service:
    """Answers requests whose images are encoded files.

    Attributes:
        pipeline, settings, generation: the model, the server's limits, the decoding settings.
        state: requests are answered while it is "ready", and those under way while "draining".
    """

    def __init__(
        self,
        pipeline: BasePipeline,
        settings: ServerSettings,
        generation: GenerationConfig | None = None,
    ) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.generation = generation or pipeline.generation
        if self.generation.do_sample:
            raise ValueError(
                "the server gives the most likely answers, and the settings have do_sample=True: "
                "leave --sample out"
            )
        self.state: State = "warming up"
        self.engine = pipeline.engine(
            self.generation,
            batch_size=settings.batch_size,
            max_wait=settings.max_delay,
            free_prompt=settings.free_prompt,
            queues=2,
        )
        self.images = ImageCache(self.engine, settings.cache_bytes, settings.max_pixels)
        self.admission = Admission(settings.max_queue)
        self.lengths = AnswerLengths()
        self._readers: ThreadPoolExecutor | None = None

    def __enter__(self) -> Service:
        self._readers = ThreadPoolExecutor(self.settings.reader_threads, "read")
        self.engine.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._readers is not None:
            self._readers.shutdown()
            self._readers = None
        self.engine.__exit__()

    async def answer(self, requests: Sequence[Request], options: Options) -> list[Answer]:
        """The answers to the requests of one call.

        Args:
            requests: each with an encoded file, as bytes, for its image.
            options: of all of them.

        Raises:
            ServingError: the call is refused as a whole, with the reason and its status.
            asyncio.CancelledError: the caller's task was cancelled. Requests whose batch has not
                left yet are not answered.
        """
        if self.state != "ready" or self._readers is None:
            raise ServingError(503, f"the server is {self.state}: try again later", retry_after=1)
        limits = self.settings
        if len(requests) > limits.max_count:
            raise ServingError(
                422, f"{len(requests)} requests in one call, and the most is {limits.max_count}: "
                "send them in several calls",
            )  # fmt: skip
        try:
            generation = self._generation(options)
            constraints = self.pipeline.constraints if options.constrained else None
            for request in requests:
                # Before the image is read.
                self.engine.check(request)
                batch_constraint(constraints, [request])
        except Exception as error:
            raise refusal(error) from error
        submit = functools.partial(
            self.engine.submit, generation=generation, constraints=constraints
        )
        self.admission.take(len(requests))
        several = len(requests) > 1
        jobs = [
            _Job(self, self._readers, request, submit, f"request {number}: " if several else "")
            for number, request in enumerate(requests, start=1)
        ]
        tasks = [asyncio.create_task(job.answer()) for job in jobs]
        seconds = min(options.timeout or limits.timeout, limits.timeout)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.gather(*tasks)
        except TimeoutError:
            raise ServingError(
                504, f"no answer within {seconds:g} s: ask for less, or when there is less to do"
            ) from None
        finally:
            for task in tasks:
                task.cancel()

    def _generation(self, options: Options) -> GenerationConfig:
        """The decoding settings of a call.

        Raises:
            ValueError: beyond the server's.
        """
        chosen = {
            name: value
            for name in ("num_beams", "max_new_tokens")
            if (value := getattr(options, name)) is not None
        }
        for name, value in chosen.items():
            most = getattr(self.generation, name)
            if most is not None and value > most:
                raise ValueError(f"{name} is {value}, and the server allows {most} at most")
        return dataclasses.replace(self.generation, **chosen) if chosen else self.generation


class _Job:
    """One request: read on a thread, then answered by the engine.

    It holds its place in the queue until both have ended, whether or not anybody still waits.
    """

    def __init__(
        self,
        service: Service,
        readers: ThreadPoolExecutor,
        request: Request,
        submit: Callable[..., Any],
        where: str,
    ) -> None:
        self._service, self._request, self._submit = service, request, submit
        self._where = where
        self._gone = threading.Event()
        # Here, and not when the task first runs: one that is cancelled before would never end.
        self._reading = readers.submit(self._read_and_submit)
        self._reading.add_done_callback(self._was_read)

    async def answer(self) -> Answer:
        reading = self._reading
        try:
            image, answering = await asyncio.wrap_future(reading)
            response = await asyncio.wrap_future(answering)
        except asyncio.CancelledError:
            self._gone.set()
            if reading.done():
                self._was_read_for_nobody(reading)
            raise
        except Exception as error:
            raise refusal(error, self._where) from error
        self._service.lengths.add(self._request.task, len(response.ids))
        self._service.images.keep(image)
        return Answer(response=response, notes=image.notes)

    def _read_and_submit(self) -> tuple[ReadImage, Future[Response]]:
        if self._gone.is_set():
            raise CancelledError
        image = self._service.images.read(self._request.image)
        if self._gone.is_set():
            raise CancelledError
        request = dataclasses.replace(self._request, image=image.cached)
        queue = self._service.lengths.queue_of(request.task)
        return image, self._submit(request, queue=queue)

    def _was_read(self, reading: Future[tuple[ReadImage, Future[Response]]]) -> None:
        if reading.cancelled() or reading.exception() is not None:
            self._service.admission.free()
            return
        _, answering = reading.result()
        answering.add_done_callback(lambda _: self._service.admission.free())
        if self._gone.is_set():
            self._was_read_for_nobody(reading)

    def _was_read_for_nobody(self, reading: Future[tuple[ReadImage, Future[Response]]]) -> None:
        """Take a request back that was submitted just when its caller left."""
        if not reading.cancelled() and reading.exception() is None:
            reading.result()[1].cancel()
