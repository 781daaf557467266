"""From an example to token ids and pixels, and from these to a padded batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from florence_jax.processing import (
    FlorenceTokenizer,
    build_prompt,
    check_request,
    load_image,
)
from florence_jax.processing.image.pixels import resize_picture
from florence_jax.processing.request_check import check_task_of_data
from florence_jax.processing.targets import target_text
from florence_jax.processing.vocabulary import check_locations, check_no_control_tokens
from florence_jax.training.cached_features.store import FeatureStore
from florence_jax.training.data.augment import AugmentConfig, augment, in_frame_of
from florence_jax.training.data.example import Example, Source, ordered_labels
from florence_jax.training.data.storage import readable_image
from florence_jax.training.losses import IGNORE
from florence_jax.training.step import Batch

# A location is one token wherever it is, so any size will do.
_ANY_SIZE = (1000, 1000)
_TOGETHER = 512


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
        augmentation: what may be changed, differently in each epoch.
        resample: PIL's resampling filter; 3 is bicubic, the published processor's.
        features: in place of pixels; images are neither opened nor changed then.
        tasks: tasks that the model declares beside the 15, see `check_task_of_data`.
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
        text = ordered_labels(example, size, rng)
        check_no_control_tokens(text, "the text of the labels")
        check_locations(text, "the text of the labels")
        self._check_prefix(example.prefix)
        prompt, labels = self.tokenizer.encode([build_prompt(example.prefix), text])
        for name, ids, limit in (
            ("prompt", prompt, self.max_prompt),
            ("labels", labels, self.max_labels),
        ):
            if len(ids) > limit:
                raise ValueError(f"{len(ids)} tokens of {name}, more than max_{name}={limit}")
        return Features(example.id, pixels, prompt, labels)

    def _check_prefix(self, prefix: str) -> None:
        """Refuse a misspelt task, and a task without its text or region: nobody could ask it."""
        check_task_of_data(prefix, declared=self.tasks | self.tokenizer.declared_tasks())
        check_request(prefix, free_prompt=True)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The image resized, uint8[H, W, 3]."""
        height, width = self.image_size
        return np.asarray(resize_picture(image, (width, height), self.resample))


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


def longest_texts_of(
    sources: Iterable[Source], tokenizer: FlorenceTokenizer, most: tuple[int, int]
) -> tuple[int, int]:
    """(tokens of the longest prompt, of the longest labels); every row is read, no image is.

    Processes of one run pad every batch to these. Rows that cannot be used, and those longer than
    `most`, are left out, because they end up in quarantine. An endless source counts as `most`.
    """
    longest = [2, 2]
    for source in sources:
        if source.endless:
            return most
        for first in range(0, len(source), _TOGETHER):
            texts: list[str] = []
            for index in range(first, min(first + _TOGETHER, len(source))):
                texts += _texts(source, index)
            lengths = [len(ids) for ids in tokenizer.encode(texts)] if texts else []
            for part in (0, 1):
                fitting = [length for length in lengths[part::2] if length <= most[part]]
                longest[part] = max(longest[part], *fitting, 0)
    return longest[0], longest[1]


def _texts(source: Source, index: int) -> Sequence[str]:
    """Prompt and labels of an example and of each of the same image."""
    texts: list[str] = []
    # `Preprocessor` says in quarantine what is wrong with a row.
    try:
        example = source[index]
        for one in (example, *example.same_image):
            texts += (build_prompt(one.prefix), _labels(one))
    except Exception:
        return []
    return texts


def _labels(example: Example) -> str:
    if isinstance(example.labels, str):
        return example.labels
    return target_text(example.task, example.labels, example.size or _ANY_SIZE)
