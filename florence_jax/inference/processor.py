"""`Processor`: images to pixel values, prompts to token ids, answers to results.

It is to `florence_jax.load` and `florence_jax.generate` what transformers' `Florence2Processor` is
to its model, with two differences: `pixel_values` are NHWC, and `input_ids` are the text tokens
alone, because this library's model puts the image's features in front of them itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.adapters import resolve_model
from florence_jax.checkpoint.repository import PROCESSOR_FILES, read_json_object
from florence_jax.inference.declared_tasks import own_tasks
from florence_jax.processing import (
    FlorenceTokenizer,
    ImageConfig,
    build_prompt,
    load_image,
    load_tokenizer,
    parse,
    preprocess_image,
    task_of,
)
from florence_jax.processing.request_check import check_request
from florence_jax.processing.tasks import Compat, check_compat


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Turns images and prompts into a model's inputs, and its tokens into results.

    Attributes:
        tokenizer: ids to text and back.
        image_config: how images become pixel values.
        compat: as for `florence_jax.Florence2Pipeline`.
        tasks: the checkpoint's own tasks beside the 15.
    """

    tokenizer: FlorenceTokenizer = field(repr=False)
    image_config: ImageConfig = field(default_factory=ImageConfig)
    compat: Compat = None
    tasks: frozenset[str] = frozenset()

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, compat: Compat = None
    ) -> Processor:
        """The processor of a checkpoint, whose weights are not read.

        Args:
            source: as for `Florence2Pipeline.from_pretrained`; of a hub id only the tokenizer and
                processor files are downloaded.
            revision: branch, tag or commit of a hub id.
            compat: None, "original" or "native", see `florence_jax.parse`.

        Raises:
            CheckpointError, ValueError, FileNotFoundError: what is missing or wrong.
        """
        check_compat(compat)
        directory = resolve_model(source, revision, weights=False)
        found = (read_json_object(directory, name) for name in PROCESSOR_FILES)
        settings = next((one for one in found if one is not None), {})
        tokenizer = load_tokenizer(directory)
        return cls(
            tokenizer=tokenizer,
            image_config=ImageConfig.from_hf(settings),
            compat=compat,
            tasks=own_tasks(directory) | tokenizer.declared_tasks(),
        )

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        free_prompt: bool = False,
    ) -> dict[str, np.ndarray]:
        """Model inputs for B images, B prompts or both.

        Args:
            images: one image (path, bytes, PIL, array) or a list of them.
            text: one prompt ("<OD>", "<CAPTION_TO_PHRASE_GROUNDING>a car") or a list of them.
            free_prompt: as in a pipeline's call.

        Returns:
            `pixel_values` float32[B, H, W, 3] where there are images; `input_ids` and
            `attention_mask`, int32[B, L], where there is text.

        Raises:
            ImageError: an image cannot be read.
            ValueError: a prompt that is no task, or neither images nor text.
        """
        if images is None and text is None:
            raise ValueError("the processor got neither images nor text: pass at least one of them")
        inputs: dict[str, np.ndarray] = {}
        if text is not None:
            ids, mask = self._encoded(_as_list(text), free_prompt=free_prompt)
            inputs |= {"input_ids": ids, "attention_mask": mask}
        if images is not None:
            inputs["pixel_values"] = self.images(images)
        return inputs

    def images(self, images: Any) -> np.ndarray:
        """One image or a list of B as `pixel_values`, float32[B, H, W, 3], normalised.

        Raises:
            ImageError: an image cannot be read.
        """
        several = images if isinstance(images, list | tuple) else [images]
        settings = dataclasses.asdict(self.image_config)
        return np.stack([preprocess_image(load_image(image), **settings) for image in several])

    def prompts(
        self,
        prompts: str | Sequence[str],
        *,
        text: str | Sequence[str] | None = None,
        region: Any = None,
        image_size: Sequence[float] | None = None,
        free_prompt: bool = False,
    ) -> np.ndarray:
        """One prompt or a list of B as `input_ids`, int32[B, L], padded with the pad id.

        Args:
            prompts: tasks, with or without their text.
            text, region, image_size: of one prompt, as for `florence_jax.processing.build_prompt`.
            free_prompt: as in a pipeline's call.

        Raises:
            ValueError: a prompt that is no task, or whose text or region is missing or wrong.
        """
        several = _as_list(prompts)
        if len(several) > 1 and not (text is None and region is None):
            raise ValueError("text and region belong to one prompt: put each into its own prompt")
        given = {"text": text, "region": region, "image_size": image_size}
        return self._encoded(several, free_prompt=free_prompt, **given)[0]

    def _encoded(
        self, prompts: Sequence[str], *, free_prompt: bool, **given: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        sentences = []
        for prompt in prompts:
            check_request(prompt, **given, declared=self.tasks, free_prompt=free_prompt)
            sentences.append(build_prompt(prompt, **given, compat=self.compat))
        return self.tokenizer.encode_batch(sentences)

    def batch_decode(self, sequences: Any, *, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of int[B, T]."""
        return [
            self.tokenizer.decode(row, skip_special_tokens=skip_special_tokens)
            for row in np.asarray(sequences)
        ]

    def post_process(self, sequence: Any, task: str, image_size: Sequence[float]) -> dict[str, Any]:
        """The result of one answer, as transformers' `post_process_generation` gives it.

        Args:
            sequence: its text, or its token ids int[T] as `generate` returns them.
            task: the task, such as "<OD>", or the whole prompt.
            image_size: ``(width, height)`` in pixels of the image.

        Returns:
            ``{task: answer}``, as `florence_jax.parse` has it.
        """
        answer = sequence if isinstance(sequence, str) else self.batch_decode([sequence])[0]
        return parse(answer, task_of(task), image_size, compat=self.compat)


def _as_list(prompts: str | Sequence[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)
