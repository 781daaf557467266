"""`LoadPlan`: how each parameter of a checkpoint is read; `Report`: what was decided on the way."""

import dataclasses
import re
from collections.abc import Mapping

from florence_jax.checkpoint.native.arrays import SavedArrays
from florence_jax.checkpoint.pytorch.key_map import Match, Naming
from florence_jax.checkpoint.pytorch.lazy_tensor import LazyTensor
from florence_jax.checkpoint.pytorch.provenance import SourceFormat
from florence_jax.checkpoint.pytorch.transforms import Transform
from florence_jax.config import Florence2Config


@dataclasses.dataclass(frozen=True)
class Source:
    """A stored tensor and the parameter that it fills."""

    tensor: LazyTensor
    match: Match
    transform: Transform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What loading a checkpoint read, decided and found odd; `str(report)` is for people.

    Attributes:
        source: the directory that was read.
        files: the weight files.
        naming: which of the two published namings the tensors have.
        parameters: number of elements loaded.
        stored_dtypes: number of tensors per dtype in the files.
        tied: names of tensors that hold the token table's values and were read once.
        untied: why `lm_head` and the output bias were kept apart, one sentence each.
        ignored: tensors that were not read, with the reason.
        warnings: what is odd but harmless, one sentence each.
    """

    source: str
    files: tuple[str, ...]
    naming: Naming
    parameters: int
    stored_dtypes: Mapping[str, int]
    tied: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        dtypes = ", ".join(f"{dtype} ({count})" for dtype, count in self.stored_dtypes.items())
        # Of Orbax's own directory, whose files have names for no one, the directory.
        places = dict.fromkeys(re.sub("/.*", "/", name) for name in self.files)
        lines = [
            f"{self.source}: {self.parameters:,} parameters from {', '.join(places)}",
            f"  naming: {self.naming}; stored as {dtypes}",
        ]
        if self.tied:
            lines.append(f"  tied to the token table: {', '.join(self.tied)}")
        lines += [f"  not tied: {sentence}" for sentence in self.untied]
        lines += [f"  ignored: {name}: {reason}" for name, reason in self.ignored.items()]
        lines += [f"  odd: {sentence}" for sentence in self.warnings]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class LoadPlan:
    """How every parameter of a checkpoint's model is filled; nothing has been read yet.

    Attributes:
        config: the model that the checkpoint holds.
        sources: path in the parameter tree -> stored tensor and its transform; complete, with
            shapes that fit `config`.
        report: what was decided and found odd.
        origin: what the PyTorch file has beyond these parameters.
        saved: the same parameters for Orbax, where `save_checkpoint` wrote the checkpoint.
    """

    config: Florence2Config
    sources: dict[str, Source]
    report: Report
    origin: SourceFormat
    saved: SavedArrays | None = None
