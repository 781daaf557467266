"""A training run of a Florence-2, as the loop sees it."""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from florence_jax.model import Model
from florence_jax.runtime.signals import Interruption
from florence_jax.training.cached_features.vision_tower import with_features
from florence_jax.training.checkpointing.export import export_run
from florence_jax.training.checkpointing.resume import pin
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.losses import IGNORE
from florence_jax.training.metrics.evaluation import Evaluation
from florence_jax.training.metrics.flops import update_flops
from florence_jax.training.prepare import Prepared
from florence_jax.training.pretrained import load_parameters
from florence_jax.training.run import Counts, Pins, Run
from florence_jax.training.state import Batch, Flat, TrainState


class Florence2Run(Run):
    """Any task as text: prompts, labels and generated answers."""

    def __init__(self, prepared: Prepared):
        self.prepared, self.setup = prepared, prepared.setup
        self.rows, self.notes = prepared.data.rows, prepared.data.notes
        model = prepared.setup.objective.model
        assert isinstance(model, Model)
        self._flops = functools.partial(
            update_flops,
            model.config,
            prepared.setup.param_groups,
            image_size=prepared.pretrained.image.size,
            cached_features=prepared.config.data.cached_features is not None,
        )

    def at(self, files: Path) -> "Florence2Run":
        pretrained = dataclasses.replace(self.prepared.pretrained, files=files)
        return Florence2Run(dataclasses.replace(self.prepared, pretrained=pretrained))

    def pin(self) -> Pins:
        return pin(self.prepared.data)

    def first_parameters(self) -> Flat:
        prepared = self.prepared
        return load_parameters(prepared.config, prepared.pretrained, self.setup.placement.layout)

    def loader(self, state: TrainState) -> DataLoader:
        if self.prepared.config.data.cached_features is None:
            return self.prepared.loader
        return with_features(self.prepared.loader, self.setup, state.frozen)

    def evaluator(
        self,
        interruption: Interruption,
        *,
        say: Callable[[str], None],
        drawing: Callable[[], AbstractContextManager],
    ) -> Evaluation:
        prepared = self.prepared
        return Evaluation(
            self.setup,
            prepared.preprocessor,
            prepared.data.valid,
            interruption,
            say=say,
            drawing=drawing,
        )

    def count(self, batch: Batch) -> Counts:
        labels = np.asarray(batch.labels)
        shares = self.setup.placement.share[1]
        rows = labels.shape[0] * labels.shape[1] * shares
        questions = labels.shape[1] // batch.images.shape[1]
        return Counts(
            labels=int((labels != IGNORE).sum()) * shares,
            images=rows // questions,
            flops=self._flops(
                rows=rows,
                questions=questions,
                prompt=batch.input_ids.shape[-1],
                labels=labels.shape[-1],
            ),
        )

    def export(self, state: TrainState, directory: Path | None = None) -> list[Path]:
        return export_run(self.setup, self.prepared.pretrained, state, directory)
