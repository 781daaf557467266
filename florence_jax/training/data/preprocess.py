"""From an example to arrays. Never raises: what cannot be used becomes a row without weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from florence_jax.processing import (
    FlorenceTokenizer,
    build_prompt,
    check_request,
    load_image,
)
from florence_jax.processing.pixels import resize_picture
from florence_jax.processing.request_check import check_task_of_data
from florence_jax.processing.vocabulary import check_locations, check_no_control_tokens
from florence_jax.training.cached_features.store import FeatureStore
from florence_jax.training.data.augment import AugmentConfig, augment, in_frame_of
from florence_jax.training.data.example import Example, Source
from florence_jax.training.data.order import ordered_answer
from florence_jax.training.data.storage import readable_image
from florence_jax.training.losses import IGNORE
from florence_jax.training.step import Batch


@dataclass(frozen=True)
class Features:
    """One example as arrays.

    Attributes:
        id: the example's.
        image: uint8[H, W, 3], or its cached features float[h, w, C].
        prompt: token ids, `<s>` and `</s>` included.
        target: token ids, `<s>` and `</s>` included; empty for a row without weight.
        problem: why the row has no weight, or None.
        others: of the same image.
    """

    id: str
    image: np.ndarray
    prompt: list[int]
    target: list[int]
    problem: str | None = None
    others: tuple[Features, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """Opens, augments, resizes and tokenizes.

    Attributes:
        tokenizer: of the model that trains.
        image_size: (height, width) in pixels that every picture is resized to.
        max_prompt, max_target: tokens; a longer one is a problem, nothing is cut.
        min_prompt_bucket, min_target_bucket: tokens that batches are padded to, doubled until all
            fit, and never more than the longest that is allowed.
        least_questions: rows of every picture at least.
        augmentation: what may be changed, differently in each epoch.
        resample: PIL's resampling filter; 3 is bicubic, the published processor's.
        features: in place of pixels; pictures are neither opened nor changed then.
        tasks: those that the model declares beside the 15, see `check_task`.
    """

    tokenizer: FlorenceTokenizer
    image_size: tuple[int, int]
    max_prompt: int = 256
    max_target: int = 1024
    min_prompt_bucket: int = 16
    min_target_bucket: int = 32
    least_questions: int = 1
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    resample: int = int(Image.Resampling.BICUBIC)
    features: FeatureStore | None = None
    tasks: frozenset[str] = frozenset()

    def __call__(self, numbered: ExampleRef, rng: np.random.Generator) -> Features:
        """The row of an example; equal arguments give equal rows."""
        where = f"{numbered.name}:{numbered.index}"
        try:
            example = numbered.source[numbered.index]
            where = example.id
            return self.row(example, rng)
        # Grain drops what follows a transform that raises, and one bad file must not end a run of
        # days: whatever went wrong is written down with the row's id.
        except Exception as error:
            blank = np.zeros((*self.image_size, 3), np.uint8)
            if self.features is not None:
                blank = self.features.blank()
            return Features(where, blank, [], [], f"{type(error).__name__}: {error}")

    def row(self, example: Example, rng: np.random.Generator) -> Features:
        """The row of an example, with those of its others.

        Raises:
            ValueError: a picture that cannot be read, or a text that does not fit.
        """
        source = readable_image(example.image)
        if self.features is not None:
            size, image = self.features.look_up(source)
            example = in_frame_of(size, example)
        else:
            picture = load_image(source)
            example = in_frame_of(picture.size, example)
            picture, example = augment(picture, example, self.augmentation, rng)
            size, image = picture.size, self.pixels(picture)
        row = self._asked(example, size, image, rng)
        others = tuple(self._other(other, size, image, rng) for other in example.others)
        return replace(row, others=others)

    def _other(
        self, example: Example, size: tuple[int, int], image: np.ndarray, rng: np.random.Generator
    ) -> Features:
        # The picture is good, and so may be the rest of what is asked of it.
        try:
            return self._asked(example, size, image, rng)
        except ValueError as error:
            return Features(example.id, image, [], [], f"{type(error).__name__}: {error}")

    def _asked(
        self, example: Example, size: tuple[int, int], image: np.ndarray, rng: np.random.Generator
    ) -> Features:
        """The row of an example whose picture is open, `size` = (width, height)."""
        answer = ordered_answer(example, size, rng)
        check_no_control_tokens(answer, "the answer")
        check_locations(answer, "the answer")
        self._check_prefix(example.prefix)
        prompt, target = self.tokenizer.encode([build_prompt(example.prefix), answer])
        for name, ids, limit in (
            ("prompt", prompt, self.max_prompt),
            ("target", target, self.max_target),
        ):
            if len(ids) > limit:
                raise ValueError(f"the {name} has {len(ids)} tokens, more than max_{name}={limit}")
        return Features(example.id, image, prompt, target)

    def _check_prefix(self, prefix: str) -> None:
        """Refuse a misspelt task, and a task without its text or region: nobody could ask it."""
        check_task_of_data(prefix, declared=self.tasks | self.tokenizer.declared_tasks())
        check_request(prefix, free_prompt=True)

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """The picture resized, uint8[H, W, 3]."""
        height, width = self.image_size
        return np.asarray(resize_picture(picture, (width, height), self.resample))


@dataclass(frozen=True)
class ExampleRef:
    """Example `index` of a source, not read yet."""

    name: str
    source: Source
    index: int


@dataclass(frozen=True)
class HostBatch:
    """This host's share of one update, and what went wrong in it.

    Attributes:
        arrays: with A micro-batches of B pictures and B * Q rows.
        ids: of its rows in order, A * B * Q; "" for a row that fills up a picture's.
        problems: (id, reason) of rows without weight.
    """

    arrays: Batch
    ids: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]


def collate(rows: Sequence[Features], *, make_row: Preprocessor, micro: int = 1) -> HostBatch:
    """Rows as one padded batch of `micro` micro-batches."""
    height = len(rows) // micro
    images = np.stack([row.image for row in rows])
    most = max(make_row.least_questions, *(1 + len(row.others) for row in rows))
    blank = Features("", images[0], [], [])
    rows = [
        asked
        for row in rows
        for asked in (row, *row.others, *[blank] * (most - 1 - len(row.others)))
    ]

    def padded(sequences: list[list[int]], least: int, limit: int, filler: int) -> np.ndarray:
        length = padded_length(max(map(len, sequences)), least, limit)
        array = np.full((len(rows), length), filler, np.int32)
        for row, ids in enumerate(sequences):
            array[row, : len(ids)] = ids
        return array.reshape(micro, height * most, length)

    return HostBatch(
        arrays=Batch(
            images=images.reshape(micro, height, *images.shape[1:]),
            input_ids=padded(
                [row.prompt for row in rows],
                make_row.min_prompt_bucket,
                make_row.max_prompt,
                make_row.tokenizer.pad_id,
            ),
            labels=padded(
                [row.target for row in rows],
                make_row.min_target_bucket,
                make_row.max_target,
                IGNORE,
            ),
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
