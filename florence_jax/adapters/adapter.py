"""`Adapter`: the low-rank updates of a LoRA adapter, in the layout of the parameter tree.

Source: "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685, and
"A Rank Stabilization Scaling Factor", https://arxiv.org/abs/2312.03732, for `use_rslora`.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from florence_jax.checkpoint.pytorch.key_map import Naming

# Runs of layer numbers in a path.
_NUMBERS = re.compile(r"/[0-9]+/")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """The update of one linear map: `x @ W` becomes `x @ W + scale * (x @ a) @ b`.

    Attributes:
        a: float[in, r].
        b: float[r, out].
        alpha: the scale's numerator; `Adapter.scale` gives the scale.
        b_bias: float[out], scaled and added to the map's bias (PEFT's `lora_bias`); usually None.
        base: the weight that the adapter was trained on, in our layout, where its file repeats it
            (PEFT does for a targeted `lm_head`); only compared with the model's.
    """

    a: np.ndarray
    b: np.ndarray
    alpha: float
    b_bias: np.ndarray | None = None
    base: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """The rank r of the update."""
        return self.a.shape[1]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A LoRA adapter.

    Attributes:
        modules: path of the adapted weight ("encoder/layers/0/fc1/kernel", "lm_head/embedding") ->
            its update.
        replaced: path -> a whole new parameter in our layout (PEFT's `modules_to_save` and `bias`).
        use_rslora: the scale is alpha / sqrt(r) instead of alpha / r.
        naming: the naming of the files that the adapter was read from; None where it was made here.
        peft_config: the content of those files' adapter_config.json.
        notes: what is odd but harmless, one sentence each.
    """

    modules: Mapping[str, LowRank]
    replaced: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    use_rslora: bool = False
    naming: Naming | None = None
    peft_config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def scale(self, path: str) -> float:
        """The factor on `a @ b` for the weight at `path`."""
        module = self.modules[path]
        return module.alpha / (math.sqrt(module.rank) if self.use_rslora else module.rank)

    def summary(self) -> list[str]:
        """The adapted weights for people: a line for each kind of weight, rank and scale."""
        kinds = collections.Counter(
            (_NUMBERS.sub("/*/", path), update.rank, self.scale(path))
            for path, update in self.modules.items()
        )
        lines = [
            f"{kind}: {count} with rank {rank}, scale {scale:g}"
            for (kind, rank, scale), count in sorted(kinds.items())
        ]
        return lines + [f"{path}: replaced" for path in sorted(self.replaced)]
