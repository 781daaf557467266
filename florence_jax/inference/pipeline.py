"""`Florence2Pipeline`: images and task prompts in, parsed results out."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.checkpoint import CheckpointError, load_checkpoint, read_config, resolve
from florence_jax.generation import GenerateOutput, GenerationConfig
from florence_jax.generation.generate import generate_padded
from florence_jax.model import Model, Params
from florence_jax.processing import (
    FlorenceTokenizer,
    ImageConfig,
    build_prompt,
    load_image,
    load_tokenizer,
    parse,
    parse_tokens,
    preprocess_image,
    task_of,
)
from florence_jax.processing.tasks import Compat

Result = dict[str, Any]

# Where the tokenizer of checkpoints that ship none comes from; all Florence-2s share it.
BASE_PROCESSOR = "microsoft/Florence-2-base"
DEFAULT_BATCH_SIZE = 8


def load(
    source: str | Path,
    dtype: str = "float32",
    *,
    revision: str | None = None,
    verify: bool = True,
) -> tuple[Model, Params]:
    """Weights alone: the model handle and its parameters. Needs no tokenizer or processor files.

    Args:
        source: a directory or a hub id, as for `Florence2Pipeline.from_pretrained`.
        dtype: "float32", "bfloat16" or "float16", for weights and activations.
        revision: branch, tag or commit of a hub id.
        verify: compare a checkpoint in this library's own format with its manifest first.

    Raises:
        CheckpointError, ConfigError: what is missing or wrong, and what to do.
    """
    config, params, _ = load_checkpoint(source, dtype=dtype, revision=revision, verify=verify)
    return Model(config=config, dtype=dtype), params


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image and what to ask of it.

    Attributes:
        image: anything `load_image` reads.
        prompt: a task such as "<OD>", a task with its text ("<OPEN_VOCABULARY_DETECTION>a cat"), or
            a free prompt of a fine-tune ("<DocVQA>What is the total?").
        text: the task's text; for open-vocabulary detection also a list of classes.
        region: (x0, y0, x1, y1) in pixels of the upright image, for the `<REGION_TO_...>` tasks.
    """

    image: Any
    prompt: str
    text: str | Sequence[str] | None = None
    region: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Florence2Pipeline:
    """A checkpoint, ready to answer.

    Attributes:
        model, params: what `florence_jax.load` returns.
        tokenizer: ids to text and back.
        image_config: how pictures become pixel values.
        generation: decoding settings of the checkpoint, used where a call gives none.
        compat: None for this library's conventions, "original" or "native" for exactly those of the
            original code or of transformers (see `florence_jax.parse`). "original" also lets the
            encoder attend to the padding of shorter prompts in a batch, as that code does.
    """

    model: Model
    params: Params
    tokenizer: FlorenceTokenizer
    image_config: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)
    compat: Compat = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: str = "float32",
        revision: str | None = None,
        processor: str | Path | None = None,
        compat: Compat = None,
        verify: bool = True,
        progress: bool = False,
    ) -> Florence2Pipeline:
        """Load a published or fine-tuned checkpoint.

        Args:
            source: a directory or a hub id such as "microsoft/Florence-2-base-ft", in the original
                or in transformers' native naming, or a directory in this library's own format.
            dtype: "float32", "bfloat16" or "float16", for weights and activations.
            revision: branch, tag or commit of a hub id.
            processor: directory or hub id to take the tokenizer from. By default `source` itself
                or, where it has none, `microsoft/Florence-2-base`, with a warning that says so.
            verify: compare a checkpoint in this library's own format with its manifest first.
            progress: show a bar while weights are read.

        Raises:
            CheckpointError, ValueError: what is missing or wrong, and what to do.
        """
        directory = resolve(source, revision=revision)
        config, params, _ = load_checkpoint(
            directory, dtype=dtype, verify=verify, progress=progress
        )
        files = read_config(directory)
        return cls(
            model=Model(config=config, dtype=dtype),
            params=params,
            tokenizer=_find_tokenizer(directory, files.has_tokenizer, processor),
            image_config=ImageConfig.from_hf(files.preprocessor or {}),
            generation=GenerationConfig.from_hf(files.config, files.generation),
            compat=compat,
        )

    def __call__(
        self,
        images: Any,
        prompts: str | Sequence[str],
        *,
        text: Any = None,
        region: Any = None,
        generation: GenerationConfig | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **overrides: Any,
    ) -> Result | list[Result]:
        """Answer one request, or a list of them in compiled batches.

        Args:
            images: one image (path, bytes, PIL, array) or a list of them.
            prompts: one prompt or a list of them. One image with several prompts, or one prompt
                with several images, is repeated to fit.
            text: the task's text, or a list with one entry per request (None where there is none).
            region: (x0, y0, x1, y1) in pixels, or a list with one entry per request.
            generation: decoding settings; by default the checkpoint's.
            batch_size: requests in one compiled call.
            overrides: fields of `GenerationConfig`, such as `max_new_tokens=64`.

        Returns:
            `{task: answer}`; a list of them when `images` or `prompts` is a list. Boxes, quads and
            polygons are in pixels of the upright (EXIF-transposed) image.

        Raises:
            ImageError: an image cannot be read.
            ValueError: prompts, texts or settings that do not fit.
        """
        requests = _requests(images, prompts, text, region)
        settings = dataclasses.replace(generation or self.generation, **overrides)
        results = list(self.answer(requests, settings, batch_size=batch_size))
        several = isinstance(images, list | tuple) or isinstance(prompts, list | tuple)
        return results if several else results[0]

    def answer(
        self,
        requests: Iterable[Request],
        generation: GenerationConfig | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Iterator[Result]:
        """Results of `requests` in order, taken from the iterable as they are needed.

        The next batch is prepared while the device decodes the one before.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        settings = generation or self.generation
        if settings.num_return_sequences != 1:
            raise ValueError(
                f"num_return_sequences is {settings.num_return_sequences}, but a result holds one "
                "answer: use florence_jax.generate for several"
            )
        pending: _Batch | None = None
        remaining = iter(requests)
        while chunk := list(itertools.islice(remaining, batch_size)):
            batch = self._launch(chunk, settings, batch_size)
            if pending is not None:
                yield from self._finish(pending)
            pending = batch
        if pending is not None:
            yield from self._finish(pending)

    def _launch(
        self, requests: Sequence[Request], settings: GenerationConfig, batch_size: int
    ) -> _Batch:
        """Read, tokenize and send one batch; returns before the device has answered."""
        images = [load_image(request.image) for request in requests]
        prompts = [
            build_prompt(
                request.prompt,
                text=request.text,
                region=request.region,
                image_size=image.size,
                compat=self.compat,
            )
            for request, image in zip(requests, images, strict=True)
        ]
        layout = dataclasses.asdict(self.image_config)
        pixels = np.stack([preprocess_image(image, **layout) for image in images])
        input_ids, attention_mask = self.tokenizer.encode_batch(prompts)
        if self.compat == "original":
            attention_mask = np.ones_like(attention_mask)
        rows = _padded_rows(len(requests), batch_size)
        output = generate_padded(
            self.model,
            self.params,
            pixel_values=pixels[rows],
            input_ids=input_ids[rows],
            attention_mask=attention_mask[rows],
            config=settings,
        )
        return _Batch(requests=requests, sizes=[image.size for image in images], output=output)

    def _finish(self, batch: _Batch) -> Iterator[Result]:
        output = batch.output.trimmed()
        for row, (request, size) in enumerate(zip(batch.requests, batch.sizes, strict=True)):
            # Without the padding up to the batch's longest answer, a row is its own whatever
            # its neighbours are.
            length = int(output.lengths[row])
            ids = output.sequences[row, : length + 1].tolist()
            task = task_of(request.prompt)
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


def _padded_rows(count: int, batch_size: int) -> np.ndarray:
    """Row numbers of a batch, the last one repeated up to a power of two or the batch size.

    A last, smaller batch would otherwise be a new shape, and compile anew, for every length.
    """
    target = min(1 << (count - 1).bit_length(), batch_size)
    return np.minimum(np.arange(target), count - 1)


def _requests(images: Any, prompts: Any, text: Any, region: Any) -> list[Request]:
    def as_list(value: Any) -> list[Any]:
        return list(value) if isinstance(value, list | tuple) else [value]

    images, prompts = as_list(images), as_list(prompts)
    count = max(len(images), len(prompts)) if images and prompts else 0
    if not count:
        return []

    def repeat(name: str, values: list[Any]) -> list[Any]:
        if len(values) not in (1, count):
            raise ValueError(
                f"{len(values)} {name} were given for {count} requests: expected 1 or {count}"
            )
        return values * count if len(values) == 1 else values

    # A single request's list of classes, and a region's four numbers, are one value each.
    texts = text if count > 1 and isinstance(text, list | tuple) else [text]
    regions = [region] if _is_one_region(region) else region
    return [
        Request(image=image, prompt=prompt, text=one_text, region=one_region)
        for image, prompt, one_text, one_region in zip(
            repeat("images", images),
            repeat("prompts", prompts),
            repeat("texts", list(texts)),
            repeat("regions", list(regions)),
            strict=True,
        )
    ]


def _is_one_region(region: Any) -> bool:
    if region is None or isinstance(region, str):
        return True
    return len(region) == 4 and all(np.isscalar(number) for number in region)


def _find_tokenizer(
    directory: Path, has_tokenizer: bool, processor: str | Path | None
) -> FlorenceTokenizer:
    if processor is not None:
        return load_tokenizer(resolve(processor, weights=False))
    if has_tokenizer:
        return load_tokenizer(directory)
    warnings.warn(
        f"{directory} has no tokenizer files; taking those of {BASE_PROCESSOR}, which all "
        "published Florence-2 models share (pass processor= to choose another)",
        stacklevel=3,
    )
    try:
        return load_tokenizer(resolve(BASE_PROCESSOR, weights=False))
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory} has no tokenizer files and {BASE_PROCESSOR} cannot be reached ({error}); "
            "pass processor=DIRECTORY, a folder with a Florence-2 tokenizer.json"
        ) from error
