"""Preprocess an RGB image to the normalised pixels that the image encoder takes.

Bit-exact to transformers' PIL-backed CLIP image processor as Florence-2 configures it: squash to
768x768 with PIL's bicubic filter, rescale by 1/255, normalise with the ImageNet mean and std.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from florence_jax.processing.image import ImageError
from florence_jax.processing.image.load import MAX_PIXELS, load_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = int(Image.Resampling.BICUBIC)
# Published sizes are at most 768; the model's position tables end long before this.
_MAX_SIZE = 8192


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Preprocessing settings: ``preprocess_image(image, **dataclasses.asdict(config))``.

    Attributes:
        size: ``(height, width)`` in pixels that every image is resized to, aspect not kept.
        mean, std: per RGB channel, on the rescaled values.
        resample: PIL's resampling filter, 3 is bicubic.
        rescale: factor from 8-bit values.
    """

    size: tuple[int, int] = (768, 768)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: int = BICUBIC
    rescale: float = 1 / 255

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(type(n) is int and n > 0 for n in self.size):
            raise ValueError(
                f"size must be two positive integers (height, width), got {self.size!r:.200}"
            )
        if max(self.size) > _MAX_SIZE:
            raise ValueError(
                f"size is {self.size!r:.200} (height, width); a side may have at most {_MAX_SIZE} "
                "pixels: Florence-2 takes 768"
            )
        for field in ("mean", "std"):
            values = getattr(self, field)
            if not (isinstance(values, tuple) and len(values) == 3 and all(map(_finite, values))):
                raise ValueError(f"{field} must be one number per RGB channel, got {values!r:.200}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std!r:.200}")
        if type(self.resample) is not int or self.resample not in list(Image.Resampling):
            raise ValueError(
                "resample must be one of PIL's filters 0..5 (3 is bicubic), got "
                f"{self.resample!r:.200}"
            )
        if not _finite(self.rescale):
            raise ValueError(f"rescale must be a finite number, got {self.rescale!r:.200}")

    @classmethod
    def from_hf(cls, preprocessor_config: Mapping[str, Any]) -> ImageConfig:
        """Read a checkpoint's ``preprocessor_config.json`` (or ``processor_config.json``).

        Without a file (an empty mapping) the base model's settings hold. What a file leaves out is
        what transformers' ``CLIPImageProcessor``, Florence-2's image processor, takes for it.

        Raises:
            ValueError: a setting Florence-2 does not use and we would silently get wrong: a size
                that keeps the aspect (as one number does, and none), a centre crop, or no resize.
        """
        config = preprocessor_config.get("image_processor", preprocessor_config)
        if not isinstance(config, Mapping):
            raise ValueError(f"image_processor must be an object of settings, got {config!r:.200}")
        is_clip = str(config.get("image_processor_type", "")).startswith("CLIPImageProcessor")
        size = config.get("size", None if is_clip else {"height": 768, "width": 768})
        # A number is the shorter side to transformers' CLIP, 224 where there is none.
        if isinstance(size, int) and not is_clip:
            size = {"height": size, "width": size}
        if not isinstance(size, Mapping) or not {"height", "width"} <= set(size):
            raise ValueError(
                f"preprocessor_config has size={size!r:.200}; Florence-2 needs 'height' and 'width'"
            )
        # Its crop is on unless it is switched off.
        if config.get("do_center_crop", is_clip) or not config.get("do_resize", True):
            raise ValueError(
                "preprocessor_config asks for a centre crop or for no resize, which Florence-2 "
                "does not use; set do_center_crop to false and do_resize to true"
            )
        mean, std = (CLIP_MEAN, CLIP_STD) if config else (IMAGENET_MEAN, IMAGENET_STD)
        rescaled, normalised = config.get("do_rescale", True), config.get("do_normalize", True)
        return cls(
            size=(size["height"], size["width"]),
            mean=_tuple(config.get("image_mean", mean)) if normalised else (0.0,) * 3,
            std=_tuple(config.get("image_std", std)) if normalised else (1.0,) * 3,
            resample=config.get("resample", BICUBIC),
            rescale=config.get("rescale_factor", 1 / 255) if rescaled else 1.0,
        )

    def to_hf(self, image_tokens: int) -> dict[str, Any]:
        """The settings of transformers' ``CLIPImageProcessor``, the reverse of `from_hf`.

        Args:
            image_tokens: image features in front of a prompt.
        """
        size = {"height": self.size[0], "width": self.size[1]}
        return {
            "crop_size": size,
            "do_center_crop": False,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": "CLIPImageProcessor",
            "image_seq_length": image_tokens,
            "image_std": list(self.std),
            "resample": self.resample,
            "rescale_factor": self.rescale,
            "size": size,
        }


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _finite(value: Any) -> bool:
    # Compared, not math.isfinite, which overflows on an integer too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def preprocess_image(
    image: Any,
    *,
    size: Sequence[int] = (768, 768),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    resample: int = BICUBIC,
    rescale: float = 1 / 255,
) -> np.ndarray:
    """Preprocess one image to normalised pixels, float32[H, W, 3] (a row of an NHWC batch).

    Args:
        image: anything `load_image` takes; loaded with its defaults (EXIF orientation applied).
        size: ``(height, width)`` in pixels.
        mean, std, resample, rescale: as in `ImageConfig`.

    Raises:
        ImageError: an image that cannot be loaded.
        ValueError: a wrong setting.
    """
    config = ImageConfig(
        size=(int(size[0]), int(size[1])),
        mean=tuple(mean),
        std=tuple(std),
        resample=int(resample),
        rescale=float(rescale),
    )
    height, width = config.size
    return normalised(resize_image(load_image(image), (width, height), config.resample), config)


def normalised(picture: Image.Image | np.ndarray, config: ImageConfig) -> np.ndarray:
    """The normalised pixels of 8-bit RGB images of any size, float32[..., H, W, 3]."""
    values = np.asarray(picture)
    pixels = np.empty(values.shape, np.float32)
    for channel, table in enumerate(channel_tables(config)):
        pixels[..., channel] = table.take(values[..., channel])
    return pixels


def resize_image(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """`image.resize(size)` to a (width, height), with memory bounded by the image's own pixels.

    PIL scales the width first, to an image of the new width and the old height: of an image of
    100 x 1,000,000 pixels that would be 3 GB. Such images are scaled the other way round, which
    may round differently.

    Raises:
        ImageError: there is not enough memory.
    """
    method = Image.Resampling(resample)
    try:
        if size[0] * image.height <= MAX_PIXELS:
            return image.resize(size, method)
        turned = image.transpose(Image.Transpose.TRANSPOSE)
        width, height = size
        return turned.resize((height, width), method).transpose(Image.Transpose.TRANSPOSE)
    except MemoryError as error:
        raise ImageError(
            f"an image of {image.width}x{image.height} pixels needs more memory than there is "
            "to be resized; shrink it, or read fewer images at a time"
        ) from error


def channel_tables(config: ImageConfig) -> np.ndarray:
    """float32[3, 256]: the normalised value of each 8-bit value, channel by channel.

    The rounding is the reference's: rescale in float64, round to float32, then subtract and divide
    in float32. Only 256 inputs exist, so a table gives the same bits without a pass per operation.
    """
    rescaled = (np.arange(256, dtype=np.float64) * config.rescale).astype(np.float32)
    mean = np.array(config.mean, np.float32)[:, None]
    std = np.array(config.std, np.float32)[:, None]
    return (rescaled - mean) / std
