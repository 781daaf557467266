"""Turn examples into token ids and pixels, and these into padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from florence_jax.processing import FlorenceTokenizer, load_image
from florence_jax.processing.image.pixels import resize_image
from florence_jax.training.cached_features.store import FeatureStore
from florence_jax.training.config import DataConfig
from florence_jax.training.data.augment import AugmentConfig, augment, in_frame_of
from florence_jax.training.data.example import Example, Source, checked_texts
from florence_jax.training.data.storage import readable_image
from florence_jax.training.distributed import longest_of_first
from florence_jax.training.losses import IGNORE
from florence_jax.training.metrics.logger import say
from florence_jax.training.pretrained import PretrainedFiles
from florence_jax.training.state import Batch

# Reading so many takes a second or more, and is told.
_MANY_ROWS = 2_000


@dataclass(frozen=True)
class Features:
    """One example as arrays.

    Attributes:
        id: the example's.
        image: uint8[H, W, 3], or its cached features float[h, w, C].
        prompt: token ids, `<s>` and `</s>` included.
        labels: token ids, `<s>` and `</s>` included; empty for a row without weight.
        problem: why the row has no weight, or None.
        same_image: rows about the same image.
    """

    id: str
    image: np.ndarray
    prompt: list[int]
    labels: list[int]
    problem: str | None = None
    same_image: tuple[Features, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """Opens, augments, resizes and tokenizes; an unusable example becomes a row without weight.

    Attributes:
        tokenizer: the tokenizer of the model that trains.
        image_size: (height, width) in pixels that every image is resized to.
        max_prompt, max_labels: tokens; a longer one is a problem, nothing is cut.
        min_prompt_bucket, min_labels_bucket: tokens that batches are padded to, doubled until all
            fit, and never more than the longest that is allowed.
        min_questions: rows of every image at least.
        augmentation: Image augmentation, drawn anew in each epoch.
        resample: PIL's resampling filter; 3 is bicubic, the published processor's.
        features: Cached features in place of pixels; no image is then opened or changed.
        tasks: tasks that the model declares beside the 15, see `checked_texts`.
    """

    tokenizer: FlorenceTokenizer
    image_size: tuple[int, int]
    max_prompt: int = 256
    max_labels: int = 1024
    min_prompt_bucket: int = 16
    min_labels_bucket: int = 32
    min_questions: int = 1
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    resample: int = int(Image.Resampling.BICUBIC)
    features: FeatureStore | None = None
    tasks: frozenset[str] = frozenset()

    def __call__(self, ref: ExampleRef, rng: np.random.Generator) -> Features:
        """The features of an example; equal arguments give equal features."""
        where = f"{ref.name}:{ref.index}"
        try:
            example = ref.source[ref.index]
            where = example.id
            return self.of_example(example, rng)
        # Grain drops what follows a transform that raises, and one bad file must not end a run of
        # days: whatever went wrong is written down with the row's id.
        except Exception as error:
            blank = np.zeros((*self.image_size, 3), np.uint8)
            if self.features is not None:
                blank = self.features.blank()
            return Features(where, blank, [], [], f"{type(error).__name__}: {error}")

    def of_example(self, example: Example, rng: np.random.Generator) -> Features:
        """The features of an example, with those of the same image.

        Raises:
            ValueError: an image that cannot be read, or a text that does not fit.
        """
        source = readable_image(example.image)
        if self.features is not None:
            size, pixels = self.features.look_up(source)
            example = in_frame_of(size, example)
        else:
            image = load_image(source)
            example = in_frame_of(image.size, example)
            image, example = augment(image, example, self.augmentation, rng)
            size, pixels = image.size, self.pixels(image)
        first = self._tokenized(example, size, pixels, rng)
        same_image = tuple(self._usable(one, size, pixels, rng) for one in example.same_image)
        return replace(first, same_image=same_image)

    def _usable(
        self, example: Example, size: tuple[int, int], pixels: np.ndarray, rng: np.random.Generator
    ) -> Features:
        # The image is good, and its other examples may be.
        try:
            return self._tokenized(example, size, pixels, rng)
        except ValueError as error:
            return Features(example.id, pixels, [], [], f"{type(error).__name__}: {error}")

    def _tokenized(
        self, example: Example, size: tuple[int, int], pixels: np.ndarray, rng: np.random.Generator
    ) -> Features:
        """The features of an example whose image is open, `size` = (width, height)."""
        declared = self.tasks | self.tokenizer.declared_tasks()
        prompt, labels = self.tokenizer.encode(checked_texts(example, size, rng, declared))
        for name, ids, limit in (
            ("prompt", prompt, self.max_prompt),
            ("labels", labels, self.max_labels),
        ):
            if len(ids) > limit:
                raise ValueError(f"{len(ids)} tokens of {name}, more than max_{name}={limit}")
        return Features(example.id, pixels, prompt, labels)

    def collate(self, rows: Sequence[Features], micro: int = 1) -> Batch:
        """Rows as one padded batch of `micro` micro-batches."""
        return collate(rows, preprocessor=self, micro=micro)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The image resized, uint8[H, W, 3]."""
        height, width = self.image_size
        return np.asarray(resize_image(image, (width, height), self.resample))


@dataclass(frozen=True)
class ExampleRef:
    """Example `index` of a source, not read yet."""

    name: str
    source: Source
    index: int


def collate(rows: Sequence[Features], *, preprocessor: Preprocessor, micro: int = 1) -> Batch:
    """Rows as one padded batch of `micro` micro-batches."""
    height = len(rows) // micro
    images = np.stack([row.image for row in rows])
    most = max(preprocessor.min_questions, *(1 + len(row.same_image) for row in rows))
    blank = Features("", images[0], [], [])
    rows = [
        one
        for row in rows
        for one in (row, *row.same_image, *[blank] * (most - 1 - len(row.same_image)))
    ]

    def padded(sequences: list[list[int]], least: int, limit: int, filler: int) -> np.ndarray:
        length = padded_length(max(map(len, sequences)), least, limit)
        array = np.full((len(rows), length), filler, np.int32)
        for row, ids in enumerate(sequences):
            array[row, : len(ids)] = ids
        return array.reshape(micro, height * most, length)

    return Batch(
        images=images.reshape(micro, height, *images.shape[1:]),
        input_ids=padded(
            [row.prompt for row in rows],
            preprocessor.min_prompt_bucket,
            preprocessor.max_prompt,
            preprocessor.tokenizer.pad_id,
        ),
        labels=padded(
            [row.labels for row in rows],
            preprocessor.min_labels_bucket,
            preprocessor.max_labels,
            IGNORE,
        ),
        ids=tuple(row.id for row in rows),
        problems=tuple((row.id, row.problem) for row in rows if row.problem is not None),
    )


def padded_length(longest: int, least: int, most: int) -> int:
    """Tokens that texts are padded to: `least`, doubled until the longest fits, at most `most`."""
    length = least
    while length < longest:
        length *= 2
    return min(length, most)


def make_preprocessor(config: DataConfig, pretrained: PretrainedFiles) -> Preprocessor:
    """Examples to arrays as a run's evaluation has them: nothing is augmented.

    Lengths that the settings leave out are the most that the model's position table has room for.

    Raises:
        ValueError: an image's tokens and a text do not fit the position table.
    """
    positions = pretrained.config.text.max_position_embeddings
    image_tokens = pretrained.image_tokens
    if image_tokens > positions - 2:
        height, width = pretrained.image.size
        raise ValueError(
            f"an image of {height} x {width} pixels is {image_tokens} tokens, which leaves no "
            f"room for a prompt in the model's {positions} positions: lower data.image_size"
        )
    for name, taken in (("max_prompt", image_tokens), ("max_labels", 0)):
        length = getattr(config, name)
        if length is not None and taken + length > positions:
            raise ValueError(
                f"data.{name}={length} tokens, with {taken} of the image, are more than the "
                f"model's {positions} positions: set it to {positions - taken} at most, or leave "
                "it out"
            )
    return Preprocessor(
        tokenizer=pretrained.tokenizer,
        image_size=pretrained.image.size,
        max_prompt=config.max_prompt or positions - image_tokens,
        max_labels=config.max_labels or positions,
        min_prompt_bucket=config.min_prompt_bucket,
        min_labels_bucket=config.min_labels_bucket,
        resample=pretrained.image.resample,
        tasks=pretrained.tasks,
    )


def padded_to_longest(
    preprocessor: Preprocessor, config: DataConfig, sources: Sequence[Source]
) -> Preprocessor:
    """The preprocessor of `data.one_length` and of several processes: one shape for every batch.

    A process's longest row says nothing of the others'. The first process measures the lengths that
    the settings leave out, and pads them as a batch would be. Each image has as many questions as
    the source that asks most.
    """
    most = preprocessor.max_prompt, preprocessor.max_labels
    lengths = most
    if None in (config.max_prompt, config.max_labels):

        def measure() -> tuple[int, int]:
            rows = sum(len(source) for source in sources)
            if rows >= _MANY_ROWS:
                say(
                    f"reading {rows:,} rows for the longest prompt and labels, to which every "
                    "batch is padded: data.max_prompt and data.max_labels spare this"
                )
            longest = [source.longest_texts(preprocessor.tokenizer, most) for source in sources]
            prompts, labels = zip(*longest, strict=True)
            return max(prompts), max(labels)

        prompt, labels = longest_of_first(measure)
        lengths = (
            config.max_prompt or padded_length(prompt, config.min_prompt_bucket, most[0]),
            config.max_labels or padded_length(labels, config.min_labels_bucket, most[1]),
        )
    return replace(
        preprocessor,
        max_prompt=lengths[0],
        max_labels=lengths[1],
        min_prompt_bucket=lengths[0],
        min_labels_bucket=lengths[1],
        min_questions=max((source.questions for source in config.train), default=1),
    )
