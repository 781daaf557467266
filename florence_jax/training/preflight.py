"""Resolve a run's settings against its model and data, and report every problem at once."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.runtime.error_text import error_text
from florence_jax.training.build import TrainSetup, build_training, make_loader
from florence_jax.training.checkpointing.resume import (
    PROCESSOR,
    RunError,
    check_data,
    check_same,
    has_begun,
)
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import SettingsError
from florence_jax.training.data.example import Source
from florence_jax.training.data.loader import DataLoader
from florence_jax.training.data.registry import (
    Named,
    source_notes,
    training_sources,
    valid_sources,
)
from florence_jax.training.pretrained import (
    PretrainedFiles,
    prepare_pretrained,
    read_pretrained,
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run whose settings, model and data fit together; nothing is written yet.

    Attributes:
        pretrained: the model that the run starts from, without weights.
        setup: the step and its parts; `setup.config` has the steps that the epochs come to.
        sources: the opened training data.
        valid: the opened validation data.
        loader: the batches of this process.
        pins: digests of the training data's files, for a run with a directory.
    """

    pretrained: PretrainedFiles
    setup: TrainSetup
    sources: list[Named]
    valid: Mapping[str, Source]
    loader: DataLoader
    pins: Mapping[str, Any]

    @property
    def config(self) -> TrainConfig:
        return self.setup.config

    @property
    def notes(self) -> list[str]:
        """Sentences on what the data sets joined, cut or left out."""
        return source_notes([*(source for _, source, _ in self.sources), *self.valid.values()])


def prepare(config: TrainConfig, files: Path, *, run: Path | None = None) -> Prepared:
    """Open the data, read the model's sizes and build the step; nothing is computed.

    Args:
        files: an empty directory for the tokenizer's and the processor's files.
        run: the run's directory. Where it holds a checkpoint, its own files are used, and its
            settings and data are compared with these.

    Raises:
        RunError, DataError, CheckpointError, RuleError, ValueError, OSError: exactly one problem
            was found.
        SettingsError: several problems were found; the message has a line for each.
    """
    problems: list[Exception] = []
    sources: list[Named] = []
    valid: Mapping[str, Source] = {}
    pretrained = setup = None
    by_epochs = config.epochs is not None
    resumed = run if run is not None and has_begun(run) else None
    with _noting(problems):
        sources = training_sources(config.data, config.seed)
    with _noting(problems):
        valid = valid_sources(config.data, config.seed)
    with _noting(problems):
        if sources:
            config = with_steps(config, sources)
    with _noting(problems):
        if resumed is not None and config.steps is not None:
            if by_epochs:
                # Other rows make other steps: what has changed is the data.
                check_data(config, resumed, sources)
            check_same(config, resumed)
        if resumed is None:
            pretrained = prepare_pretrained(config, files)
        else:
            pretrained = read_pretrained(resumed / PROCESSOR)
    if pretrained is not None:
        with _noting(problems):
            # Rules, adapters and the mesh are checked even where the data cannot be read.
            known = config.steps is not None
            counted = config if known else dataclasses.replace(config, steps=2**31 - 1, epochs=None)
            setup = build_training(counted, pretrained)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SettingsError("\n".join(map(_sentence, problems)))
    assert pretrained is not None
    assert setup is not None
    pins = {} if run is None else check_data(config, run, sources)
    return Prepared(
        pretrained=pretrained,
        setup=setup,
        sources=sources,
        valid=valid,
        loader=make_loader(config, pretrained, sources, setup.placement.share),
        pins=pins,
    )


def with_steps(config: TrainConfig, sources: list[Named]) -> TrainConfig:
    """The settings with steps in place of epochs.

    An epoch has as many rows as all sources together; the last step may begin another epoch.

    Raises:
        ValueError: they are too few for the warm-up, or more than can be counted.
    """
    if config.epochs is None:
        return config
    rows = sum(len(source) for _, source, _ in sources)
    steps = math.ceil(config.epochs * rows / config.batch_size)
    return dataclasses.replace(config, steps=steps, epochs=None)


def _sentence(error: Exception) -> str:
    return error_text(error) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def _noting(problems: list[Exception]) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, RunError) as error:
        problems.append(error)
