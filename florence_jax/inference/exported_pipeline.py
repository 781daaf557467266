"""`load_exported`: a pipeline whose functions were exported, without the model's code."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence_jax.export.manifest import PROCESSOR, ArtifactError
from florence_jax.export.programs import ExportedPrograms, load_programs
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.constraints import AnswerConstraints
from florence_jax.processing import load_tokenizer
from florence_jax.runtime.compilation_cache import use_compilation_cache


def load_exported(
    directory: str | Path, *, weights: str | Path | Mapping[str, Any] | None = None
) -> ExportedPipeline:
    """The pipeline that `Florence2Pipeline.export` wrote.

    Args:
        directory: the directory that it wrote.
        weights: where the directory holds none: the checkpoint, a directory or a hub id, or its
            parameters. They must be the very ones that were exported, in the dtype that they had.

    Raises:
        ArtifactError: the directory is damaged, is for another platform, or the weights are missing
            or others.
    """
    programs = load_programs(Path(directory), weights)
    manifest = programs.manifest
    return ExportedPipeline(
        exported=programs,
        tokenizer=load_tokenizer(Path(directory)),
        image_config=manifest.image,
        generation=manifest.generation,
        compat=manifest.compat,
        tasks=frozenset(json.loads(programs.contents.get(PROCESSOR, b"{}")).get("tasks", ())),
    )


@dataclass(frozen=True, kw_only=True)
class ExportedPipeline(BasePipeline):
    """Answers as the `Florence2Pipeline` that was exported, within the exported buckets.

    Attributes:
        exported: the programs and their weights.
        tokenizer, image_config, generation, compat: see `BasePipeline`.
    """

    exported: ExportedPrograms

    def __post_init__(self) -> None:
        use_compilation_cache()

    def __repr__(self) -> str:
        return f"ExportedPipeline({self.exported!r}, compat={self.compat!r})"

    @property
    def programs(self) -> ExportedPrograms:
        return self.exported

    @functools.cached_property
    def constraints(self) -> AnswerConstraints:
        if all(generator.constraint is None for generator in self.exported.manifest.generators):
            raise ArtifactError(
                "no program was exported that constrains answers: export with constrained=True "
                "(--constrained), or ask without"
            )
        return AnswerConstraints(self.tokenizer, self.exported.config.text.vocab_size)
