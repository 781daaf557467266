"""Settings of a run's parts: optimizer, loss, adapters, checkpoints. They import no jax.

`florence-jax train` reads its flags with these, and answers a wrong one before jax is loaded.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from florence_jax.training.checked import Checked, counted, not_finite, positive, within

# Norms, biases and positions are not decayed, as in the transformers trainer and most papers.
NO_DECAY = r".*/bias|.*norm[^/]*(/\d+)?/scale|.*positions.*"

# "none" keeps everything; "blocks" keeps what enters a block of the vision tower or a layer of the
# text model; "dots" keeps what its linear layers return as well.
Remat = Literal["none", "blocks", "dots"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """How parameters move.

    Attributes:
        name: "adamw"; "lion" keeps one moment instead of two; "adafactor" keeps a row and a column
            of the second moment and no first.
        learning_rate: the schedule's peak.
        schedule: what follows the warm-up: "cosine" or "linear" down to `final_fraction` of the
            peak at the last step, or "constant".
        warmup_steps: steps of linear growth from 0 (the paper: 5,000).
        final_fraction: the last learning rate as a share of the peak.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the denominator.
        moment_dtype: dtype of the first moment; "bfloat16" halves its memory and traffic. The
            second moment changes too little in a step for the 8 bits of bfloat16.
        weight_decay: decoupled from the gradient, times the learning rate.
        no_decay: regex of parameters without weight decay, matched whole.
        clip_norm: gradients are scaled down to this global norm; 0 leaves them.
        rules: (regex, multiple of the learning rate) in order, the first match decides; 0 freezes.
        layer_decay: learning rate's factor for each layer further from the decoder's top, or from
            the heads of an image network.
        ema_decay: keep an exponential moving average of the parameters; 0 keeps none.
    """

    name: Literal["adamw", "lion", "adafactor"] = "adamw"
    learning_rate: float = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = 0.0
    no_decay: str = NO_DECAY
    clip_norm: float = 1.0
    rules: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    layer_decay: float = 1.0
    ema_decay: float = 0.0

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "optimizer.")
        for field in ("learning_rate", "eps", "layer_decay"):
            yield from positive(f"optimizer.{field}", getattr(self, field))
        if self.clip_norm:
            # As float32, a smaller one would scale every gradient to nothing.
            yield from positive("optimizer.clip_norm", self.clip_norm)
        yield from counted("optimizer.warmup_steps", self.warmup_steps, 0)
        for field in ("weight_decay", "final_fraction"):
            yield from within(f"optimizer.{field}", getattr(self, field), 0)
        for field in ("b1", "b2", "ema_decay"):
            yield from within(f"optimizer.{field}", getattr(self, field), 0, 1)
        if self.name == "adafactor" and self.moment_dtype != "float32":
            yield (
                f"optimizer.moment_dtype is {self.moment_dtype!r} and adafactor keeps no first "
                "moment: use adamw or lion, or leave it out"
            )
        for pattern, rate in self.rules or ():
            yield from within(f"optimizer.rules: the rate of {pattern!r}", rate, 0)


def warmup_problem(config: OptimizerConfig, steps: int) -> str | None:
    """The reason why the warm-up does not fit into a run of `steps` steps, or None."""
    if not config.warmup_steps or config.warmup_steps < steps:
        return None
    return (
        f"optimizer.warmup_steps is {config.warmup_steps} and the run has {steps} steps: the peak "
        "would never be reached; lengthen the run, or shorten the warm-up "
        f"(--optimizer.warmup-steps {steps // 10})"
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
    """Settings of the loss.

    Attributes:
        label_smoothing: share of the label's probability spread evenly over the vocabulary.
        z_loss: weight of log(Z)^2, which keeps the logits' normaliser near 1
            (https://arxiv.org/abs/2204.02311, section 5).
        location_weight: weight of a location token's loss beside that of a word's, which is 1.
        location_sigma: standard deviation, in bins, of a Gaussian around a location token's own
            bin: its probability is the target of the neighbouring bins. 0 makes the bin itself the
            only target. A bin is a thousandth of the image's side.
        vocabulary_block: words whose logits exist at one time; the backward pass computes them
            again. 0 is all words on a CPU, and blocks that fit on the chip elsewhere: logits of
            a vocabulary of 51,289 are the largest activation of long labels.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    location_weight: float = 1.0
    location_sigma: float = 0.0
    vocabulary_block: int = 0

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "loss.")
        yield from within("loss.label_smoothing", self.label_smoothing, 0, 1)
        for field in ("z_loss", "location_weight", "location_sigma"):
            yield from within(f"loss.{field}", getattr(self, field), 0)
        yield from counted("loss.vocabulary_block", self.vocabulary_block, 0)

    @property
    def sees_locations(self) -> bool:
        """Whether location tokens are treated unlike words."""
        return self.location_weight != 1.0 or self.location_sigma > 0.0


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Checked):
    """Which kernels get an adapter, and how large.

    Attributes:
        rank: columns of `a`; 0 trains without adapters.
        alpha: the adapter is scaled by alpha / rank (alpha / sqrt(rank) with `rank_stabilised`).
        dropout: probability of zeroing an input entry of the adapter.
        targets: regex of kernel paths, matched whole. The default is every linear layer of BART and
            the vision tower. The projector's kernel between them is left out: the original model
            holds it as a bare parameter, which PEFT cannot adapt.
        rank_stabilised: https://arxiv.org/abs/2312.03732.
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = r"(?!projector/).*/(q_proj|k_proj|v_proj|out_proj|fc1|fc2|qkv|proj)/kernel"
    rank_stabilised: bool = False

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "lora.")
        yield from counted("lora.rank", self.rank, 0, 65_536)
        yield from within("lora.dropout", self.dropout, 0, 1)
        yield from positive("lora.alpha", self.alpha)
        try:
            re.compile(self.targets or "")
        except re.error as error:
            yield f"lora.targets {self.targets!r} is no regex: {error}"

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Checked):
    """When to save, and what to keep.

    Attributes:
        every: steps between two checkpoints.
        keep_last: the newest ones that are kept.
        keep_every: checkpoints at multiples of this many steps are kept for good; 0 for none.
        keep_best: whether the best one by the run's metric is kept too.
    """

    every: int = 1000
    keep_last: int = 3
    keep_every: int = 0
    keep_best: bool = True

    def problems(self) -> Iterator[str]:
        yield from counted("checkpoint.every", self.every, 1)
        yield from counted("checkpoint.keep_last", self.keep_last, 1)
        yield from counted("checkpoint.keep_every", self.keep_every, 0)
