"""How many FLOPs an update needs by arithmetic, and how many a device can do: the MFU.

Counted are the matrix products, convolutions and attention of `florence_jax.bench.roofline`; what
is computed twice to save memory counts once.
"""

from collections.abc import Mapping

from florence_jax.bench import roofline
from florence_jax.config import Florence2Config
from train.parameters import Treatment

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets.
PEAKS = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float:
    """Of a device as jax names it; 0 where it is not a known one."""
    return next((peak for name, peak in PEAKS.items() if device_kind.startswith(name)), 0.0)


def update_flops(
    config: Florence2Config,
    treated: Mapping[str, Treatment],
    *,
    rows: int,
    image_size: tuple[int, int],
    prompt: int,
    target: int,
) -> float:
    """FLOPs of one update over `rows` rows of padded lengths `prompt` and `target`.

    A part that trains costs three times its forward pass, one whose adapters alone train twice, and
    a vision tower in which nothing trains once.
    """
    training = [path for path, treatment in treated.items() if treatment.trains]
    weights = 3.0 if any(not path.endswith(("/a", "/b")) for path in training) else 2.0
    in_tower = any(path.startswith("vision_tower/") for path in training)
    memory = config.num_image_tokens(*image_size) + prompt
    vision = roofline.vision(config, *image_size).flops
    text = roofline.encoder(config, memory) + roofline.cross_key_values(config, memory)
    text_flops = text.flops + sum(
        roofline.token(config, memory, position).flops for position in range(target)
    )
    return rows * ((weights if in_tower else 1.0) * vision + weights * text_flops)
