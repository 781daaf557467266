"""The jobs of `florence-jax embed` and `classify`: a row for each image that a backbone has seen.

Batches depend on the block alone, and every batch is padded to the one size that its program has.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from florence_jax.backbone.backbone import Backbone
from florence_jax.backbone.load import load_backbone
from florence_jax.batch.job import DecodedItem, Row, program_fingerprint
from florence_jax.inference.device_stats import DeviceStats
from florence_jax.inference.image_encoder import Normalizer
from florence_jax.model.handle import Params
from florence_jax.processing.image.crop import CropConfig
from florence_jax.results.table_columns import Columns
from florence_jax.sharding import make_mesh
from florence_jax.sharding.batch import divide_batch, pad_rows, padded_rows
from florence_jax.sharding.mesh import batch_parts

VectorDtype = Literal["float32", "float16"]
# Batches that are on the device before the first one's result is fetched.
_RUNNING = 2


class BackboneJob(abc.ABC):
    """Makes rows `{"width", "height", "sha256", ...}`; `sha256` is that of the encoded image."""

    def __init__(self, backbone: Backbone, params: Params, *, batch_size: int = 8) -> None:
        """
        Args:
            backbone, params: on one device or on a mesh, from `load_backbone`.
            batch_size: images in one compiled call, on each part of the mesh.
        """
        self._backbone, self._params = backbone, params
        parts = 1 if backbone.mesh is None else batch_parts(backbone.mesh)
        self._rows = batch_size * parts
        self._normalize = Normalizer(backbone.config.image.pixels)
        self.activity = DeviceStats(counts_tokens=False)

    @property
    @abc.abstractmethod
    def columns(self) -> Columns:
        """The columns of its rows that have a type in Parquet."""

    @property
    @abc.abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What its rows depend on beside the backbone, as JSON."""

    @abc.abstractmethod
    def run(self, images: jax.Array) -> Any:
        """Start the computation for float32[B, H, W, 3], normalised."""

    @abc.abstractmethod
    def answer(self, outputs: Any, number: int) -> Row:
        """The columns of image `number`, from the outputs of `run` on the host."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        backbone = self._backbone
        return {
            **self.settings,
            "batch_rows": self._rows,
            # The weights do not tell the width of heads and windows.
            "backbone": dataclasses.asdict(backbone.config.vision),
            "dtype": backbone.dtype,
            **program_fingerprint(
                self._params,
                image=self.image_config,
                mesh=backbone.mesh,
                matmul_precision=backbone.matmul_precision,
            ),
        }

    @property
    def image_config(self) -> CropConfig:
        return self._backbone.config.image

    def __call__(self, loaded: Iterable[DecodedItem]) -> Sequence[Row]:
        rows: list[Row] = []
        running: deque[tuple[list[Row], Any]] = deque()
        items = iter(loaded)
        while batch := list(itertools.islice(items, self._rows)):
            own: list[Row] = [
                {"width": one.size[0], "height": one.size[1], "sha256": one.sha256} for one in batch
            ]
            running.append((own, self._launch(np.stack([one.pixels for one in batch]))))
            rows += own
            if len(running) > _RUNNING:
                self._fetch(*running.popleft())
        for own, outputs in running:
            self._fetch(own, outputs)
        return rows

    def _launch(self, pixels: np.ndarray) -> Any:
        mesh = self._backbone.mesh
        padded = pad_rows(pixels, padded_rows(mesh, self._rows))
        self.activity.begin()
        return self.run(self._normalize(padded if mesh is None else divide_batch(mesh, padded)))

    def _fetch(self, rows: list[Row], outputs: Any) -> None:
        found = jax.device_get(outputs)
        self.activity.end()
        self.activity.add_tokens(0)
        for number, row in enumerate(rows):
            row |= self.answer(found, number)


class EmbedJob(BackboneJob):
    """Rows with `embedding`, a list of numbers: the pooled and normalised last feature map."""

    def __init__(
        self,
        backbone: Backbone,
        params: Params,
        *,
        vectors: VectorDtype = "float32",
        batch_size: int = 8,
    ) -> None:
        """
        Args:
            backbone, params, batch_size: as for `BackboneJob`.
            vectors: dtype that embeddings are rounded to.
        """
        super().__init__(backbone, params, batch_size=batch_size)
        self._vectors: VectorDtype = vectors

    @property
    def columns(self) -> Columns:
        kind = "float32s" if self._vectors == "float32" else "float16s"
        return {"sha256": "text", "embedding": kind}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kind": "embed", "vectors": self._vectors}

    def run(self, images: jax.Array) -> jax.Array:
        return self._backbone.embed(self._params, images)

    def answer(self, outputs: np.ndarray, number: int) -> Row:
        with np.errstate(over="ignore"):
            vector = outputs[number].astype(self._vectors)
        if not np.isfinite(vector).all():
            return {"error": f"its embedding has values that {self._vectors} cannot hold"}
        return {"embedding": shortest_numbers(vector)}


class ClassifyJob(BackboneJob):
    """Rows with `classes`, the most probable first: `{"class", "name", "probability"}` each."""

    def __init__(
        self,
        backbone: Backbone,
        params: Params,
        *,
        names: Sequence[str] = (),
        top: int = 5,
        batch_size: int = 8,
    ) -> None:
        """
        Args:
            backbone, params, batch_size: as for `BackboneJob`.
            names: of the classes, in order; without them, classes in rows have no `name`.
            top: classes in a row; all if there are fewer.

        Raises:
            ValueError: the backbone has no classifier, or one of another number of classes.
        """
        classes = backbone.config.num_classes
        if not classes:
            raise ValueError(
                "this tower has no classifier: name a model with one, such as davit_tiny, or take "
                "its embeddings (florence-jax embed) and fit a linear probe to them"
            )
        if names and len(names) != classes:
            raise ValueError(
                f"there are {len(names)} names for a classifier of {classes} classes: give one for "
                "each class, in the order of training"
            )
        super().__init__(backbone, params, batch_size=batch_size)
        self._names, self._top = tuple(names), min(top, classes)

    @property
    def columns(self) -> Columns:
        return {"sha256": "text", "classes": "classes"}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kind": "classify", "top": self._top, "names": list(self._names)}

    def run(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _most_probable(self._backbone.logits(self._params, images), self._top)

    def answer(self, outputs: tuple[np.ndarray, np.ndarray], number: int) -> Row:
        probabilities, classes = (one[number] for one in outputs)
        if not np.isfinite(probabilities).all():
            return {"error": "its logits are not finite: run with --dtype float32"}
        names = self._names
        values = shortest_numbers(probabilities)
        return {
            "classes": [
                {"class": one, **({"name": names[one]} if names else {}), "probability": value}
                for one, value in zip(classes.tolist(), values, strict=True)
            ]
        }


def load_for_jobs(source: str | Path, **settings: Any) -> tuple[Backbone, Params]:
    """`load_backbone`; without a `mesh`, whole on each of this host's devices."""
    if "mesh" not in settings and len(jax.local_devices()) > 1:
        settings |= {"mesh": make_mesh("data=-1", jax.local_devices()), "rules": "dp"}
    return load_backbone(source, **settings)


def shortest_numbers(vector: np.ndarray) -> list[float]:
    """The numbers with the fewest digits that are read back as the same float32 or float16."""
    numbers = vector.astype(str).astype(np.float64)
    same = np.array_equal(numbers.astype(vector.dtype), vector)
    return (numbers if same else vector).tolist()


@functools.partial(jax.jit, static_argnums=1)
def _most_probable(logits: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
    """float32[B, classes] -> (float32[B, top] probabilities, int32[B, top] classes)."""
    values, classes = jax.lax.top_k(jax.nn.softmax(logits), top)
    return values, classes
