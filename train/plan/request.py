"""The request of a plan: one program of one run on one machine."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from florence_jax.config import PRESETS, Florence2Config
from train.plan.topology import Topology, parse_topology

Program = Literal["train", "generate"]

# Flags of `florence-jax train` for which a plan has options of its own.
_OPTIONS = {
    "--accumulation": "--accumulation",
    "--batch-size": "--global-batch",
    "--data.image-size": "--image-size",
    "--mesh": "--mesh",
    "--model.architecture": "--model",
    "--model.dtype": "--dtype",
    "--rules": "--rules",
}


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The arguments of the command line, which are all that a compiling process gets.

    Attributes:
        model: a preset's name.
        topology: the machine's name.
        mesh, rules: how its devices divide the work, as in `florence-jax train`.
        global_batch: rows of one update, or of one call of the generation loop.
        accumulation: micro-batches of one update.
        image_size: side of the square images, in pixels.
        prompt_length, target_length: tokens; of the loop, `target_length` new ones at most.
        dtype: Dtype of activations.
        remat: `model.remat`; by default the recipe's.
        num_beams: Beams of the generation loop.
        program: the training step or the generation loop.
        config: a recipe whose settings the run starts from.
        settings: flags of `florence-jax train` on top.
        effort: the compiler's `exec_time_optimization_effort`.
    """

    model: str = "base"
    topology: str = "v5e:4x4"
    mesh: str = "fsdp=-1"
    rules: str = "fsdp"
    global_batch: int = 256
    accumulation: int = 1
    image_size: int = 768
    prompt_length: int = 16
    target_length: int = 256
    dtype: str = "bfloat16"
    remat: str = ""
    num_beams: int = 3
    program: Program = "train"
    config: str = ""
    settings: tuple[str, ...] = ()
    effort: float = -1.0

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise ValueError(f"model {self.model!r} is none of {', '.join(PRESETS)}")
        numbers = ("global_batch", "accumulation", "image_size", "prompt_length", "target_length")
        for name in (*numbers, "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.global_batch % self.accumulation:
            raise ValueError(
                f"a global batch of {self.global_batch} rows is no multiple of "
                f"{self.accumulation} micro-batches"
            )
        for word in self.settings:
            option = _OPTIONS.get(word.partition("=")[0].replace("_", "-"))
            if option is not None:
                raise ValueError(f"{word}: a plan takes it as {option}")
        if self.program == "generate" and (self.config or self.settings):
            raise ValueError(
                f"{self.config or self.settings[0]}: the generation loop takes no recipe; its "
                "sizes are --model's, its batch is --global-batch"
            )
        positions = self.sizes.text.max_position_embeddings
        lengths = {"image and prompt": self.encoder_length, "target": self.target_length}
        for what, length in lengths.items():
            if length > positions:
                raise ValueError(
                    f"{length} tokens of {what} are more than the model's {positions} positions"
                )
        _ = self.machine

    @property
    def sizes(self) -> Florence2Config:
        return PRESETS[self.model]()

    @property
    def machine(self) -> Topology:
        return parse_topology(self.topology)

    @property
    def encoder_length(self) -> int:
        """The number of image and prompt tokens that the encoder reads."""
        return self.sizes.num_image_tokens(self.image_size, self.image_size) + self.prompt_length

    def short(self) -> str:
        """A short description in one line."""
        what = "generate " if self.program == "generate" else ""
        remat = f" remat {self.remat}" if self.remat else ""
        return (
            f"{what}{self.model} {self.topology} {self.mesh} {self.rules} batch "
            f"{self.global_batch}{remat}"
        )

    def to_tree(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> "PlanRequest":
        return cls(**{**tree, "settings": tuple(tree["settings"])})
