"""Scores of image networks on the validation data: top-1 and top-5, or mean IoU."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageDraw

from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.classification.accuracy import top_k_accuracy
from florence_jax.processing import load_image
from florence_jax.processing.image.pixels import normalised
from florence_jax.runtime.signals import Interruption
from florence_jax.segmentation.masks import draw_mask, read_mask
from florence_jax.segmentation.metrics import confusion, scores
from florence_jax.segmentation.segment_image import segment_image
from florence_jax.segmentation.segmenter import SegmenterConfig
from florence_jax.sharding.batch import divide_batch
from florence_jax.training.aot_compile import AotCompiled
from florence_jax.training.data.example import DataError
from florence_jax.training.data.preprocess import ExampleRef
from florence_jax.training.distributed import is_first
from florence_jax.training.images.config import ClassifyConfig, SegmentConfig
from florence_jax.training.images.data import MASK, LabelledFiles
from florence_jax.training.images.network import ImageNetwork
from florence_jax.training.images.rows import ImageRows
from florence_jax.training.prepare import TrainSetup
from florence_jax.training.state import Flat

_CAPTION = 24  # pixels below an image for its class and the answer
_SMALLEST = 160


class ImageEvaluation:
    """Evaluates the current parameters whenever it is called; subclasses say how.

    Attributes:
        sources: the valid split by name, or nothing.
        problems: (id, reason) of the rows that could not be used, by the last call.
    """

    def __init__(
        self,
        setup: TrainSetup,
        network: ImageNetwork,
        valid: LabelledFiles | None,
        interruption: Interruption,
        *,
        say: Callable[[str], None] | None,
        drawing: Callable[[], AbstractContextManager],
    ):
        """
        Args:
            setup: the run's step and its parts.
            network: sizes and classes.
            valid: the validation data.
            interruption: asked between batches.
            say: called with a line when something is compiled.
            drawing: entered around each image that is written; may swallow an OSError.
        """
        self.sources = {} if valid is None else {"valid": valid}
        self.problems: list[tuple[str, str]] = []
        self._setup, self._network, self._valid = setup, network, valid
        self._interruption, self._drawing = interruption, drawing
        mesh = setup.placement.mesh
        self._logits = AotCompiled(
            self._forward,
            interruption,
            mesh=mesh,
            out_shardings=NamedSharding(mesh, PartitionSpec()),
            name="the evaluation",
            say=say,
        )

    def __call__(self, params: Flat, samples: Path, *, is_before: bool = False) -> dict[str, float]:
        """Every figure by name.

        Args:
            params: by path, on the run's mesh.
            samples: directory for some of the answers.
            is_before: no step was taken yet; changes nothing here.

        Raises:
            Interrupted: somebody asked for it.
            DataError: no row can be used.
        """
        del is_before
        assert self._valid is not None
        self.problems = []
        return self._scores(params, self._valid, samples)

    def _scores(self, params: Flat, valid: LabelledFiles, samples: Path) -> dict[str, float]:
        raise TypeError("an evaluation is of classes or of masks")

    def _forward(self, params: Flat, images: jax.Array) -> jax.Array:
        model = self._setup.objective.model
        with model.precision_scope():
            output = model.bind(unflatten(params))(images)
        return output[0] if isinstance(self._network.config, SegmenterConfig) else output

    def _run(self, params: Flat, images: np.ndarray) -> np.ndarray:
        """Logits of normalised float32[B, H, W, 3]."""
        self._interruption.check()
        arrays = divide_batch(self._setup.placement.mesh, images)
        return np.asarray(jax.device_get(self._logits(params, arrays)))[: len(images)]

    def _none_usable(self) -> DataError:
        row, reason = self.problems[0]
        return DataError(f"no row of the valid split can be used; the first is {row}: {reason}")


class ClassEvaluation(ImageEvaluation):
    """Loss without smoothing, top-1 and top-5."""

    def _scores(self, params: Flat, valid: LabelledFiles, samples: Path) -> dict[str, float]:
        config: ClassifyConfig = self._setup.config
        network, height = self._network, config.evaluation_rows
        rows = ImageRows(image=network.image, num_classes=len(network.classes))
        rng = np.random.default_rng(0)
        found: list[np.ndarray] = []
        labels: list[int] = []
        for first in range(0, len(valid), height):
            numbers = range(first, min(first + height, len(valid)))
            made = [rows(ExampleRef("valid", valid, number), rng) for number in numbers]
            self.problems += [(row.id, row.problem) for row in made if row.problem is not None]
            # Always as many, so that there is one program.
            blank = [np.zeros_like(made[0].image)] * (height - len(made))
            images = np.stack([row.image for row in made] + blank)
            logits = self._run(params, normalised(images, network.image.pixels))
            for row, answer in zip(made, logits, strict=False):
                if row.labels is not None:
                    label = int(row.labels[0])
                    if len(labels) < config.evaluation.images and is_first():
                        text = f"{network.classes[label]}: {network.classes[answer.argmax()]}"
                        with self._drawing():
                            _write_captioned(samples / f"{len(labels):04d}.png", row.image, text)
                    found.append(answer)
                    labels.append(label)
        if not labels:
            raise self._none_usable()
        matrix = np.stack(found)
        best = matrix.max(1, keepdims=True)
        log_sum = np.log(np.exp(matrix - best).sum(1)) + best[:, 0]
        loss = float((log_sum - matrix[np.arange(len(labels)), labels]).mean())
        accuracy = top_k_accuracy(matrix, [(label,) for label in labels])
        return {"loss": loss, **{f"top{k}": share for k, share in accuracy.items()}}


class MaskEvaluation(ImageEvaluation):
    """Mean IoU and accuracies over all pixels, by overlapping windows."""

    def _scores(self, params: Flat, valid: LabelledFiles, samples: Path) -> dict[str, float]:
        config: SegmentConfig = self._setup.config
        network = self._network
        size, classes = network.image.size, len(network.classes)
        share = 1 - config.evaluation.overlap
        stride = (max(math.ceil(size[0] * share), 1), max(math.ceil(size[1] * share), 1))
        windows = _Windows(self, params)
        matrix = np.zeros((classes, classes), np.int64)
        drawn = 0
        for number in range(len(valid)):
            example = valid[number]
            assert not isinstance(example.labels, str)
            try:
                picture = load_image(example.image)
                truth = read_mask(
                    example.labels[MASK],
                    num_classes=classes,
                    size=(picture.height, picture.width),
                    reduce_zero_label=config.data.reduce_zero_label,
                )
            except (ValueError, OSError) as error:
                self.problems.append((example.id, f"{type(error).__name__}: {error}"))
                continue
            answer = segment_image(
                windows, {}, picture, stride=stride, batch_size=config.evaluation_rows
            )
            matrix += confusion(answer, truth, classes)
            if drawn < config.evaluation.images and is_first():
                with self._drawing():
                    _write_pair(samples / f"{drawn:04d}.png", picture, truth, answer)
                drawn += 1
        if not matrix.sum():
            if self.problems:
                raise self._none_usable()
            raise DataError("no pixel of the valid split's masks counts")
        result = scores(matrix)
        return {
            "mIoU": result.mean_iou,
            "mean_accuracy": result.mean_accuracy,
            "pixel_accuracy": result.pixel_accuracy,
        }


class _Windows:
    """The network as `sliding_logits` calls it, on the run's mesh."""

    def __init__(self, evaluation: MaskEvaluation, params: Flat):
        self._evaluation, self._params = evaluation, params
        self.config = evaluation._network.config

    def logits(self, params: Any, images: Any) -> np.ndarray:
        return self._evaluation._run(self._params, np.asarray(images))


def _write_captioned(path: Path, image: np.ndarray, text: str) -> None:
    """An image with "class: answer" beneath."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    page = Image.new("RGB", (max(picture.width, _SMALLEST), picture.height + _CAPTION), "white")
    page.paste(picture, (0, 0))
    ImageDraw.Draw(page).text((4, picture.height + 6), text, fill="black")
    page.save(path)


def _write_pair(path: Path, picture: Image.Image, truth: np.ndarray, answer: np.ndarray) -> None:
    """The mask and the answer beside each other, drawn over the image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = Image.new("RGB", (2 * picture.width, picture.height))
    page.paste(draw_mask(picture, truth), (0, 0))
    page.paste(draw_mask(picture, answer), (picture.width, 0))
    page.save(path)
