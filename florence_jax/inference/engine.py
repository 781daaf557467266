"""The engine: a stream of requests in, results out in order, through compiled batches.

A request is read, tokenized, put into a batch, answered by the device, trimmed and parsed; each of
these steps exists here once, and knows no model. The pipeline, runs over many images, annotation
and exported programs all answer through it.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from florence_jax.generation import GenerateOutput, GenerationConfig
from florence_jax.inference.answer_parser import AnswerParser
from florence_jax.inference.batching import DEFAULT_BATCH_SIZE, Batcher, pad_prompts, padded_rows
from florence_jax.inference.compiled_fns import CompiledFns
from florence_jax.inference.constraints import AnswerConstraints, batch_constraint
from florence_jax.inference.device_queue import DEPTH, DeviceQueue
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.image_encoder import (
    CachedImage,
    ChunkReader,
    EncodedImage,
    ImageEncoder,
    Normalizer,
    stack_features,
    stream_chunks,
)
from florence_jax.inference.overrides import OnError, check_on_error, sampling_key
from florence_jax.inference.pending import Pending, RequestPreparer
from florence_jax.inference.requests import Request, Response
from florence_jax.inference.scheduler import BatchScheduler, Clock
from florence_jax.processing import FlorenceTokenizer, ImageConfig
from florence_jax.processing.tasks import Compat
from florence_jax.runtime.error_text import is_of_one_input


class Engine:
    """Answers requests.

    `run` answers a stream with one set of decoding settings. `submit` takes single requests as they
    come, from any thread, and puts those that wait at the same time into one batch. Where one
    request of a batch is at fault, the others are answered without it.
    """

    def __init__(
        self,
        programs: CompiledFns,
        tokenizer: FlorenceTokenizer,
        image_config: ImageConfig,
        generation: GenerationConfig,
        *,
        constraints: AnswerConstraints | None = None,
        compat: Compat = None,
        declared_tasks: Collection[str] = (),
        free_prompt: bool = False,
        check_prompts: bool = True,
        batch_size: int = DEFAULT_BATCH_SIZE,
        reorder: bool = False,
        max_wait: float = 0.01,
        seed: int | None = None,
        label_scores: bool = False,
        queues: int = 1,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            programs: the compiled functions of the model.
            tokenizer: prompts to ids, and ids to text.
            image_config: how images become pixels.
            generation: decoding settings.
            constraints: confine answers to what can be parsed whole; None: answers are free.
            compat: as for `florence_jax.Florence2Pipeline`.
            declared_tasks: tasks beside the 15.
            free_prompt: allow prompts that look like a task and are none.
            check_prompts: refuse requests that the model would answer with nonsense. False for
                requests that a program makes.
            batch_size: requests in one compiled call, on each device.
            reorder: let a request of `run` wait until a batch of its prompt length and task is
                full, and pad every batch to one size. Results keep their order, but come when all
                requests were read. Otherwise consecutive requests make a batch.
            max_wait: seconds after which a request of `submit` no longer waits for a full batch.
            seed: for sampling.
            label_scores: add the confidence of each shape's label to results.
            queues: the queues that `submit` chooses among. Of the second and each further one, the
                device gets one batch at a time: a batch of the first waits for few of the others.
            clock: measures `max_wait`; tests bring their own.

        Raises:
            ValueError: settings that give several answers, or sampling without a seed.
        """
        _check_one_answer(generation)
        self.programs, self.generation, self.image_config = programs, generation, image_config
        self.stats = DeviceStats()
        self._tokenizer, self._constraints = tokenizer, constraints
        self._compat: Compat = compat
        self._preparer = RequestPreparer(
            tokenizer=tokenizer,
            pixel_size=image_config.size,
            compat=compat,
            declared=frozenset(declared_tasks),
            free_prompt=free_prompt,
            check_prompts=check_prompts,
        )
        self._parse = AnswerParser(tokenizer=tokenizer, compat=compat, label_scores=label_scores)
        self._key = sampling_key(generation, seed)
        buckets = programs.batch_buckets(batch_size)
        self.batch_rows = max(buckets)
        self._reorder, self._buckets = reorder, (self.batch_rows,) if reorder else buckets
        order = threading.Lock()
        self._queues = tuple(
            DeviceQueue(self.stats, 1 if queue else DEPTH, order) for queue in range(queues)
        )
        self._normalize = Normalizer(image_config)
        self._encoder = ImageEncoder(self._encode, image_config, self._buckets, programs.params)
        self._max_wait, self._clock = max_wait, clock
        self._schedulers: tuple[BatchScheduler[Pending], ...] = ()
        # Images of submitted requests that wait: requests about one image share it.
        self._waiting = weakref.WeakValueDictionary[Hashable, CachedImage]()
        self._batches = itertools.count()

    @property
    def rows_of_a_device(self) -> int:
        """The number of requests in a full batch that one device answers."""
        return self.batch_rows // self.programs.device_count

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes that batches are padded to."""
        return self._buckets

    def check(
        self, request: Request, image_size: tuple[int, int] | None = None, *, labels: bool = False
    ) -> None:
        """Refuse a request that the model would answer with nonsense.

        Args:
            image_size: (width, height) of the image; None where it is not known yet.
            labels: look at the labels that its answer is confined to, too.

        Raises:
            ValueError: see `florence_jax.processing.check_request`, or labels that an answer cannot
                hold.
        """
        self._preparer.check(request, image_size)
        if labels:
            batch_constraint(self._constraints, [request])

    def read_image(self, image: Any) -> CachedImage:
        """An image for requests of `submit`: several that share it have it encoded once.

        Raises:
            ImageError: it cannot be read.
        """
        return self._encoder.read(image)

    def encode_images(self, images: Iterable[Any]) -> Iterator[EncodedImage]:
        """The images encoded, in order, a batch at a time as they are taken.

        Raises:
            ImageError: an image cannot be read.
        """
        remaining = iter(images)
        while chunk := list(itertools.islice(remaining, self.batch_rows)):
            yield from self._encoder.encode([self._encoder.read(image) for image in chunk])

    def run(self, requests: Iterable[Request], *, on_error: OnError = "return") -> Iterator[Any]:
        """The `Response` to each request, in order.

        Requests are taken as they are needed: the next batch is read while the device answers the
        one before. How they are put into batches depends on the requests alone.

        Args:
            on_error: "return" puts the error of a request that cannot be answered in place of its
                response; "raise" stops at the first.

        Raises:
            RuntimeError: the device fails.
        """
        check_on_error(on_error)
        reader, batcher = ChunkReader(self._encoder), Batcher[Pending](self.batch_rows)
        numbers, unread = itertools.count(), deque[list[Future[Response]]]()
        for chunk in stream_chunks(requests, self.batch_rows, by_image=self._reorder):
            read = zip(chunk, reader.read(chunk), strict=True)
            pending = [self._preparer(*one, self.generation, self._constraints) for one in read]
            ready = [one for one in pending if one.image is not None]
            if on_error == "raise" and len(ready) < len(pending):
                unread.append([one.future for one in pending if one.image is None])
                break
            batches = [full for one in ready if (full := batcher.enqueue(one, *self._group(one)))]
            if self._reorder:
                # All images of the chunk in one call: a batch may hold requests about few of them.
                self._encoder.encode([one.image for one in ready if one.image is not None])
            else:
                batches += batcher.flush()
            for batch in batches:
                self._dispatch(batch, next(numbers))
            unread.append([one.future for one in pending])
            if not self._reorder and len(unread) > 1:
                yield from _results(unread.popleft(), on_error)
        for batch in batcher.flush():
            self._dispatch(batch, next(numbers))
        yield from _results(itertools.chain.from_iterable(unread), on_error)

    def submit(
        self,
        request: Request,
        *,
        generation: GenerationConfig | None = None,
        constraints: AnswerConstraints | None = None,
        queue: int = 0,
    ) -> Future[Response]:
        """The response to one request, when it is there; within `with engine:`, from any thread.

        The image is read on the calling thread, unless it comes from `read_image`. Requests that
        wait in one queue at the same time, with images of one size, prompts of one padded length
        and equal settings, make a batch. It leaves when it is full, or when its oldest request has
        waited `max_wait`.

        Args:
            generation, constraints: by default the engine's.
            queue: the number of its queue.

        Raises:
            RuntimeError: the engine was not entered, or was left.
            ValueError: settings that give several answers.
        """
        if not self._schedulers:
            raise RuntimeError("requests are submitted within `with engine:`")
        if generation is not None:
            _check_one_answer(generation)
        image = self._waiting.get(request.image_key) or self._encoder.read_or_error(request.image)
        pending = self._preparer(
            request, image, generation or self.generation, constraints or self._constraints
        )
        if pending.image is not None:
            self._waiting[request.image_key] = pending.image
            key = (*self._preparer.shape(pending), *pending.settings_key())
            self._schedulers[queue].submit(pending, key)
        return pending.future

    def __enter__(self) -> Engine:
        self._schedulers = tuple(
            BatchScheduler(
                functools.partial(self._dispatch_submitted, queue),
                self.batch_rows,
                self._max_wait,
                self._clock,
            )
            for queue in self._queues
        )
        return self

    def __exit__(self, *error: object) -> None:
        for scheduler in self._schedulers:
            scheduler.close()
        self._schedulers = ()

    def _group(self, pending: Pending) -> tuple[Any, str]:
        """The key and kind of a request of `run`, see `Batcher`."""
        image_size, padded = self._preparer.shape(pending)
        if not self._reorder:
            return image_size, ""
        # Answers to one task are about equally long: none waits for a longer one.
        return (image_size, padded), pending.request.task

    def _dispatch_submitted(self, queue: DeviceQueue, batch: list[Pending]) -> None:
        batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
        try:
            if batch:
                self._dispatch(batch, next(self._batches), queue)
        except Exception as error:
            _fail(batch, error)

    def _dispatch(
        self, batch: Sequence[Pending], number: int, queue: DeviceQueue | None = None
    ) -> None:
        """Send a batch to the device; its futures are done when the answers are there.

        Args:
            number: of the batch, for what sampling draws.
            queue: by default the first.
        """
        queue = queue or self._queues[0]
        rng = None if self._key is None else jax.random.fold_in(self._key, number)
        try:
            generate = self._generate(batch, rng)
            _, done = queue.launch(generate, functools.partial(self._collect, batch))
        except Exception as error:
            if not is_of_one_input(error):
                raise
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            # One of them is at fault, such as a text too long for the model; the others are not.
            for one in batch:
                self._dispatch([one], number, queue)
            return
        self.stats.add_batch(len(batch))
        for one in batch:
            one.image = None
        done.add_done_callback(lambda done: _fail(batch, done.exception()))

    def _generate(
        self, batch: Sequence[Pending], rng: jax.Array | None
    ) -> Callable[[], GenerateOutput]:
        """The call that answers a batch, padded to one of the compiled sizes."""
        rows = padded_rows(len(batch), self._buckets)
        constraint = batch_constraint(batch[0].constraints, [batch[row].request for row in rows])
        encoded = self._encoder.encode([one.image for one in batch if one.image is not None])
        features = tuple(encoded[row].features for row in rows)
        input_ids, mask = pad_prompts(
            [batch[row].input_ids for row in rows], self._tokenizer.pad_id
        )
        if self._compat == "original":
            mask = np.ones_like(mask)

        def generate() -> GenerateOutput:
            output = self.programs.generate(
                stack_features(features), input_ids, mask, batch[0].generation, constraint, rng
            )
            for array in output:
                if isinstance(array, jax.Array):
                    array.copy_to_host_async()
            return output

        return generate

    def _encode(self, pixels: np.ndarray) -> Sequence[jax.Array]:
        return self._queues[0].launch(lambda: self.programs.encode(self._normalize(pixels)))[0]

    def _collect(self, batch: Sequence[Pending], output: GenerateOutput) -> None:
        """Fetch the tokens of a batch, and parse each row."""
        host = output.trimmed()
        self.stats.add_tokens(int(host.lengths[: len(batch)].sum()))
        for row, one in enumerate(batch):
            try:
                response = self._parse(host, row, one.request.task, one.size)
            except Exception as error:
                one.future.set_exception(error)
            else:
                one.future.set_result(response)


def _results(futures: Iterable[Future[Response]], on_error: OnError) -> Iterator[Any]:
    for future in futures:
        error = future.exception()
        if error is None:
            yield future.result()
        elif on_error == "return" and isinstance(error, Exception) and is_of_one_input(error):
            yield error
        else:
            raise error


def _fail(batch: Sequence[Pending], error: BaseException | None) -> None:
    """Hand a failure, where there is one, to the requests of a batch that have no answer."""
    for one in batch:
        if error is not None and not one.future.done():
            one.future.set_exception(error)


def _check_one_answer(generation: GenerationConfig) -> None:
    if generation.num_return_sequences != 1:
        raise ValueError(
            f"num_return_sequences is {generation.num_return_sequences}, but a result holds one "
            "answer: use florence_jax.generate for several"
        )
