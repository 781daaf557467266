"""FLOPs of an update and peak FLOP/s of devices, for the model FLOPs utilization (MFU).

Matrix products, convolutions and attention count, as in `florence_jax.model.flops`. Rematerialised
operations count once.
"""

from collections.abc import Mapping

from florence_jax.config import Florence2Config
from florence_jax.model import flops
from florence_jax.training.optimizer import ParamGroup

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets. A TPU7x chip (2,307 TFLOP/s,
# docs.cloud.google.com/tpu/docs/tpu7x) is two devices.
PEAKS = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
}


def peak_flops(device_kind: str) -> float:
    """The peak FLOP/s of a device by its `device_kind` in JAX; 0 for an unknown one."""
    return next((peak for name, peak in PEAKS.items() if device_kind.startswith(name)), 0.0)


def update_flops(
    config: Florence2Config,
    param_groups: Mapping[str, ParamGroup],
    *,
    rows: int,
    questions: int = 1,
    image_size: tuple[int, int],
    prompt: int,
    labels: int,
    cached_features: bool = False,
) -> float:
    """FLOPs of one update over `rows` rows of padded lengths `prompt` and `labels`.

    A part that trains costs three times its forward pass; a part of which only adapters train,
    twice; a frozen vision tower, once, or nothing where its features are cached.

    Args:
        questions: consecutive rows that share an image.
    """
    training = [path for path, group in param_groups.items() if group.trains]
    weights = 3.0 if any(not path.endswith(("/a", "/b")) for path in training) else 2.0
    in_tower = any(path.startswith("vision_tower/") for path in training)
    image_tokens = config.num_image_tokens(*image_size)
    encoder_tokens = image_tokens + prompt
    if cached_features:
        # The projector's, which is otherwise counted with the tower.
        vision = weights * 2 * image_tokens * config.vision.embed_dims[-1] * config.text.d_model
    else:
        vision = (weights if in_tower else 1.0) * flops.vision(config, *image_size).flops
    text = flops.encoder(config, encoder_tokens) + flops.cross_attention_cache(
        config, encoder_tokens
    )
    text_flops = text.flops + sum(
        flops.token(config, encoder_tokens, position).flops for position in range(labels)
    )
    return rows * (vision / questions + weights * text_flops)
