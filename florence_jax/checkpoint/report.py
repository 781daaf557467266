"""`Report`: what loading a checkpoint read, decided and found odd."""

import dataclasses
from collections.abc import Mapping

from florence_jax.checkpoint.pytorch.key_map import Naming


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
        quirks: what is odd but harmless, one sentence each.
    """

    source: str
    files: tuple[str, ...]
    naming: Naming
    parameters: int
    stored_dtypes: Mapping[str, int]
    tied: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    quirks: tuple[str, ...] = ()

    def __str__(self) -> str:
        dtypes = ", ".join(f"{dtype} ({count})" for dtype, count in self.stored_dtypes.items())
        lines = [
            f"{self.source}: {self.parameters:,} parameters from {', '.join(self.files)}",
            f"  naming: {self.naming}; stored as {dtypes}",
        ]
        if self.tied:
            lines.append(f"  tied to the token table: {', '.join(self.tied)}")
        lines += [f"  not tied: {sentence}" for sentence in self.untied]
        lines += [f"  ignored: {name}: {reason}" for name, reason in self.ignored.items()]
        lines += [f"  odd: {sentence}" for sentence in self.quirks]
        return "\n".join(lines)
