"""The images and the job of `florence-jax annotate`, which annotates a block stage by stage."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.annotation.noun_phrases import NounPhraseExtractor
from florence_jax.annotation.schema import SCHEMA, to_row
from florence_jax.annotation.settings import AnnotateSettings
from florence_jax.annotation.stages import Answer, ImageAnnotator
from florence_jax.batch.image_reader import FileBelow
from florence_jax.batch.job import DecodedItem, Item, Row, pipeline_fingerprint
from florence_jax.batch.sources.open import file_pin
from florence_jax.generation import GenerationConfig
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.image_encoder import EncodedImage
from florence_jax.inference.image_files import Say, find_images
from florence_jax.inference.requests import DecodedImage, Request, Response
from florence_jax.processing import ImageConfig
from florence_jax.processing.confidence import text_confidence
from florence_jax.runtime.error_text import row_error_text


@dataclass(frozen=True)
class ImageFolder:
    """A `Source` of the files `names` below `root`.

    The directory is not part of the fingerprint: a run goes on after the images were moved.
    """

    root: Path
    names: Sequence[str]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "images"}

    def __len__(self) -> int:
        return len(self.names)

    def ids(self) -> Iterator[str]:
        return iter(self.names)

    def pins(self) -> Iterator[str]:
        """Size and modification time of each file."""
        return (file_pin(self.root / name) for name in self.names)

    def row_files(self) -> dict[str, Any]:
        """Empty: every input is an image."""
        return {}

    def read(self, start: int, stop: int) -> Iterator[Item]:
        for name in self.names[start:stop]:
            yield Item(id=name, image=FileBelow(str(self.root), name, follow_links=True))


def find_image_folder(
    sources: Iterable[str | Path], root: Path | None = None, say: Say | None = None
) -> ImageFolder:
    """The images that `sources` name, as `florence-jax predict` reads them.

    Args:
        root: names are paths below it; by default the deepest directory that holds all images.
        say: told how many files of a directory are skipped, by kind.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source holds no image, or an image lies outside of `root`.
    """
    # The folder's own path, links kept: names stay those that a person sees.
    found = [Path(os.path.abspath(path)) for path in find_images(sources, say)]
    if root is None:
        root = Path(os.path.commonpath([path.parent for path in found]))
    root = Path(os.path.abspath(root))
    outside = [path for path in found if not path.is_relative_to(root)]
    if outside:
        raise ValueError(
            f"{outside[0]} lies outside of {root}: name a directory above all images "
            "(--image-root), or leave it out"
        )
    return ImageFolder(root, [path.relative_to(root).as_posix() for path in found])


class AnnotateJob:
    """Makes rows as described in `florence_jax.annotation.schema`.

    Each image of a block is encoded once. Each stage asks about all images of the block together,
    so that the device has full batches.
    """

    def __init__(
        self,
        pipeline: BasePipeline,
        settings: AnnotateSettings,
        extractor: NounPhraseExtractor,
        *,
        generation: GenerationConfig | None = None,
        constrained: bool = True,
        batch_size: int = 8,
    ) -> None:
        """
        Args:
            settings: the tasks, and the thresholds of the filters.
            extractor: finds the noun phrases of captions.
            generation: decoding settings; by default the checkpoint's.
            constrained: allow only answers that parse completely; else a box that a token limit
                cuts in half would be lost.
            batch_size: rows in one compiled call.

        Raises:
            ValueError: decoding settings or a pipeline that give no single answer or no scores.
        """
        generation = generation or pipeline.generation
        if generation.do_sample or generation.num_return_sequences != 1:
            raise ValueError(
                "annotations need one answer to each question, the same at every start: "
                "do_sample=False and num_return_sequences=1"
            )
        if pipeline.compat is not None:
            raise ValueError(
                f"compat={pipeline.compat!r} has no confidence for every answer, which the filters "
                "need: leave compat (--compat) out"
            )
        self._settings, self._extractor = settings, extractor
        self._pipeline, self._constrained = pipeline, constrained
        self._engine = pipeline.engine(
            generation,
            constrained=constrained,
            batch_size=batch_size,
            reorder=True,
            check_prompts=False,
            label_scores=True,
        )

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        own = {
            "kind": "annotate",
            "schema": SCHEMA,
            "settings": self._settings.record(),
            "analyser": self._extractor.name,
            "decoding": dataclasses.asdict(self._engine.generation),
            "constrained": self._constrained,
            "batch_rows": self._engine.rows_of_a_device,
        }
        return own | pipeline_fingerprint(self._pipeline)

    @property
    def image_config(self) -> ImageConfig:
        return self._pipeline.image_config

    @property
    def activity(self) -> DeviceStats:
        return self._engine.stats

    def __call__(self, loaded: Iterable[DecodedItem]) -> Sequence[Row]:
        images = [
            ImageAnnotator(
                id=item.item.id,
                image=getattr(item.item.image, "name", item.item.id),
                encoded=encoded,
                size=item.size,
                settings=self._settings,
                extractor=self._extractor,
            )
            for item, encoded in self._encode(loaded)
        ]
        problems: dict[int, Row] = {}

        def attempt(number: int, action: Callable[..., Any], *arguments: Any) -> Any:
            """The result of the action; None once the image has failed, while the others go on."""
            if number not in problems:
                try:
                    return action(*arguments)
                except Exception as error:
                    problems[number] = {"error": row_error_text(error)}
            return None

        for stage in zip(*(image.stages() for image in images), strict=True):
            asked = [
                (number, *one)
                for number, requests in enumerate(stage)
                for one in attempt(number, requests) or ()
            ]
            responses = self._engine.run(request for _, request, _ in asked)
            # All of them before any is read, so that the batches of a stage follow each other.
            answers = [
                self._answer(request, response)
                for (_, request, _), response in zip(asked, responses, strict=True)
            ]
            for (number, _, read), answer in zip(asked, answers, strict=True):
                attempt(number, read, answer)
        rows = [
            attempt(number, lambda image=image: to_row(image.annotation()))
            for number, image in enumerate(images)
        ]
        return [problems.get(number) or row or {} for number, row in enumerate(rows)]

    def _encode(self, loaded: Iterable[DecodedItem]) -> Iterator[tuple[DecodedItem, EncodedImage]]:
        """Each item with its encoded image."""
        taken: list[DecodedItem] = []

        def images() -> Iterator[DecodedImage]:
            for item in loaded:
                taken.append(item)
                yield DecodedImage(size=item.size, pixels=item.pixels)

        for number, encoded in enumerate(self._engine.encode_images(images())):
            yield taken[number], encoded

    def _answer(self, request: Request, response: Response | Exception) -> Answer:
        if isinstance(response, Exception):
            return Answer(error=row_error_text(response))
        words = self._pipeline.tokenizer.decode_with_spans(response.ids)
        return Answer(
            value=response.result[request.task],
            score=text_confidence(*words, response.token_scores),
        )
