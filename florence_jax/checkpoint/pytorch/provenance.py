"""`SourceFormat`: what a PyTorch file held beyond its parameters, needed to write it back.

A PyTorch file may hold the token table under up to four names, and an output bias of zeros; none
of that is a parameter here. To give the same file back, a saved checkpoint remembers it in the
section "florence_jax" of its config.json.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, clip
from florence_jax.checkpoint.pytorch.key_map import NAMINGS, Naming, match_name
from florence_jax.checkpoint.pytorch.lazy_tensor import READABLE_DTYPES

_DTYPES = {dtype.name for dtype in READABLE_DTYPES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """The format of the PyTorch file that the parameters came from.

    Attributes:
        naming: its naming.
        vocab_size: rows of its token table.
        extra: names in `naming` -> dtype of the tensors that hold the token table, or an output
            bias of zeros.
    """

    naming: Naming
    vocab_size: int
    extra: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The form that config.json keeps."""
        return {
            "naming": self.naming,
            "vocab_size": self.vocab_size,
            "extra": dict(sorted(self.extra.items())),
        }

    @classmethod
    def none(cls, config: Mapping[str, Any]) -> "SourceFormat":
        """The format for parameters that come from no PyTorch file: the dialect of config.json."""
        original = "dim_embed" in config["vision_config"]
        rows = config["text_config"]["vocab_size"]
        return cls(naming="original" if original else "native", vocab_size=rows, extra={})

    @classmethod
    def from_json(cls, value: Any, label: str) -> "SourceFormat":
        """Read the form that `to_json` gives.

        Raises:
            CheckpointError: `value`, which `label` holds, has another form.
        """
        value = value if isinstance(value, dict) else {}
        naming, rows, extra = value.get("naming"), value.get("vocab_size"), value.get("extra")
        if (
            naming not in NAMINGS
            or type(rows) is not int
            or not isinstance(extra, dict)
            or not all(match_name(name, naming) and extra[name] in _DTYPES for name in extra)
        ):
            raise CheckpointError(
                f"{label}: {clip(repr(value))} does not say what the checkpoint was converted from "
                "(naming, vocab_size, extra): convert it again"
            )
        return cls(naming=naming, vocab_size=rows, extra=extra)
