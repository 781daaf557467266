"""Settings of runs that train an image network: `ClassifyConfig` and `SegmentConfig`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from florence_jax.backbone.config import PRESETS, BackboneConfig
from florence_jax.segmentation.masks import IGNORED
from florence_jax.training.checked import Checked, counted, did_you_mean, not_finite, within
from florence_jax.training.run_config import (
    NetworkConfig,
    ReadingConfig,
    RunConfig,
    ScoringConfig,
)

CLASSIFICATION, SEGMENTATION = "classification", "segmentation"


@dataclass(frozen=True, kw_only=True)
class ImageModelConfig(NetworkConfig):
    """The image network that trains.

    Attributes:
        start: What `florence_jax.load_backbone` takes: a published name such as davit_tiny, a file
            or directory of timm's, a Florence-2. A classifier of the same number of classes is
            kept, another is left out.
        architecture: Without `start`, the sizes of random weights: a published name, or an object
            with the fields of BackboneConfig.
        from_scratch: Initialise random weights for training from scratch: kernels keep the
            variance of what passes through them, where the reference's have a deviation of 0.02.
    """

    architecture: str | BackboneConfig | None = None
    from_scratch: bool = False

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if bool(self.start) == (self.architecture is not None):
            yield "set either model.start or model.architecture, and not both"
        if isinstance(self.architecture, str) and self.architecture not in PRESETS:
            yield (
                f"model.architecture {self.architecture!r} is none of {', '.join(PRESETS)}"
                f"{did_you_mean(self.architecture, PRESETS)}"
            )
        if self.from_scratch and self.start:
            yield "model.from_scratch draws random weights, and model.start names trained ones"


@dataclass(frozen=True, kw_only=True)
class ImageAugmentConfig(Checked):
    """How training images are changed.

    Attributes:
        scale: Smallest and largest size. For classification: share of the image's area that the
            crop keeps. For segmentation: factor on the size at which an image just covers the crop.
        ratio: Narrowest and widest crop, width over height; classification only.
        flip: Probability of mirroring left and right.
        colour: Brightness, contrast and saturation change by up to this share.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    colour: float = 0.0

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "data.augment.")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                yield f"data.augment.{name} must be (smallest, largest) above 0, got {low, high}"
        if self.flip != 1.0:
            yield from within("data.augment.flip", self.flip, 0, 1)
        yield from within("data.augment.colour", self.colour, 0, 1)


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig(ReadingConfig):
    """The training and validation data.

    Attributes:
        directory: Holds the folders train and valid. For classification each has a folder for each
            class; for segmentation each has the folders images and masks.
        image_size: (height, width) in pixels of what the network sees; by default those that
            `model.start` was trained with.
        augment: Changes of training images.
    """

    image_size: tuple[int, int] | None = None
    augment: ImageAugmentConfig = field(default_factory=ImageAugmentConfig)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.directory:
            yield "name the data's directory: --data.directory DIR"
        if self.image_size is not None and min(self.image_size) < 1:
            yield f"data.image_size must be positive pixels, got {self.image_size}"


@dataclass(frozen=True, kw_only=True)
class MaskDataConfig(ImageDataConfig):
    """The training and validation data of a segmentation network.

    Attributes:
        num_classes: Classes of a pixel; 0 counts the names in `classes`.
        classes: Names of the classes in their order; by default their numbers.
        reduce_zero_label: 0 in a mask stands for what does not count and class n for n - 1, as in
            ADE20K.
    """

    num_classes: int = 0
    classes: tuple[str, ...] = ()
    reduce_zero_label: bool = False
    augment: ImageAugmentConfig = field(
        default_factory=lambda: ImageAugmentConfig(scale=(0.5, 2.0))
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.num_classes and not self.classes:
            yield "say how many classes the masks have: data.num_classes or data.classes"
        if self.num_classes and self.classes and self.num_classes != len(self.classes):
            yield (
                f"data.num_classes is {self.num_classes}, and data.classes has "
                f"{len(self.classes)} names"
            )
        if self.num_classes or self.classes:
            yield from counted("data.num_classes", len(self.names), 2, IGNORED)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.classes or tuple(map(str, range(self.num_classes)))


@dataclass(frozen=True, kw_only=True)
class MixConfig(Checked):
    """Changes of training batches, drawn on the device.

    Attributes:
        mixup: Alpha of the Beta distribution of mixup's shares
            (https://arxiv.org/abs/1710.09412); 0 turns it off. One share is drawn for a
            micro-batch, whose images are mixed in reverse order, as timm does.
        mixup_prob: Probability that a micro-batch is mixed.
        erasing: Probability that a random rectangle of an image is erased
            (https://arxiv.org/abs/1708.04896), before images are mixed.
        erasing_area: Smallest and largest share of the image that is erased.
        erasing_aspect: Narrowest rectangle, width over height; the widest is its inverse.
        erasing_noise: Erased pixels are normal noise; else they are the mean colour.
    """

    mixup: float = 0.0
    mixup_prob: float = 1.0
    erasing: float = 0.0
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    erasing_aspect: float = 0.3
    erasing_noise: bool = True

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "mix.")
        yield from within("mix.mixup", self.mixup, 0)
        for name in ("mixup_prob", "erasing"):
            if getattr(self, name) != 1.0:
                yield from within(f"mix.{name}", getattr(self, name), 0, 1)
        low, high = self.erasing_area
        if not 0 < low <= high <= 1:
            yield f"mix.erasing_area must be (smallest, largest) within 0 to 1, got {low, high}"
        if not 0 < self.erasing_aspect <= 1:
            yield f"mix.erasing_aspect must be within (0, 1], got {self.erasing_aspect}"


@dataclass(frozen=True, kw_only=True)
class ClassifyScoring(ScoringConfig):
    """Evaluation on the validation images while training.

    Attributes:
        images: Images that are written with the class and the answer beneath.
        metric: Metric of the best checkpoint: "top1" or "top5", the highest, or "loss", the lowest.
    """

    metric: str = "top1"

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.metric not in ("top1", "top5", "loss"):
            yield f"evaluation.metric {self.metric!r} is none of top1, top5, loss"


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(RunConfig):
    """The settings of a run that trains a classifier on folders of classes.

    Attributes:
        kind: What the run trains.
        data: The training and validation data.
        label_smoothing: Share of the label's probability spread evenly over all classes.
        mix: Changes of training batches.
        evaluation: Evaluation on the validation images.
    """

    kind: str = field(init=False, default=CLASSIFICATION)
    model: ImageModelConfig
    data: ImageDataConfig
    label_smoothing: float = 0.1
    mix: MixConfig = field(default_factory=MixConfig)
    evaluation: ClassifyScoring = field(default_factory=ClassifyScoring)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from within("label_smoothing", self.label_smoothing, 0, 1)
        high = self.data.augment.scale[1]
        if high > 1:
            yield f"data.augment.scale is a share of the image's area, at most 1, got {high}"


@dataclass(frozen=True, kw_only=True)
class SegmenterModelConfig(ImageModelConfig):
    """The segmentation network that trains: a DaViT with UperNet's heads.

    Attributes:
        start: What `florence_jax.load_backbone` takes, or a directory of
            `florence_jax.save_segmenter`, whose heads are kept where they have the same number of
            classes.
        feature_norms: A layer norm for each stage's feature map.
        hidden_dim: Width of UperNet's levels.
        pool_sizes: Sides of its pyramid of pooled maps.
        auxiliary_dim: Width of the auxiliary head; 0 leaves it out.
        auxiliary_weight: Weight of its loss.
    """

    feature_norms: bool = True
    hidden_dim: int = 512
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_dim: int = 256
    auxiliary_weight: float = 0.4

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from counted("model.hidden_dim", self.hidden_dim, 1)
        yield from counted("model.auxiliary_dim", self.auxiliary_dim, 0)
        yield from within("model.auxiliary_weight", self.auxiliary_weight, 0)
        if not self.pool_sizes or min(self.pool_sizes) < 1:
            yield f"model.pool_sizes must be sizes from 1, got {self.pool_sizes}"


@dataclass(frozen=True, kw_only=True)
class SegmentScoring(ScoringConfig):
    """Evaluation on the validation masks while training, by overlapping windows.

    Attributes:
        images: Images that are written with the mask and the answer drawn over them.
        batch_size: Windows at a time; 0 for the rows of a training micro-batch.
        overlap: Share of a window that the next one covers too.
        metric: Metric of the best checkpoint: "mIoU", "mean_accuracy" or "pixel_accuracy".
    """

    metric: str = "mIoU"
    overlap: float = 1 / 3

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from within("evaluation.overlap", self.overlap, 0, 1)
        if self.metric not in ("mIoU", "mean_accuracy", "pixel_accuracy"):
            yield (
                f"evaluation.metric {self.metric!r} is none of mIoU, mean_accuracy, pixel_accuracy"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(RunConfig):
    """The settings of a run that trains a segmentation network on images and masks.

    Attributes:
        kind: What the run trains.
        data: The training and validation data.
        evaluation: Evaluation on the validation masks.
    """

    kind: str = field(init=False, default=SEGMENTATION)
    model: SegmenterModelConfig
    data: MaskDataConfig
    evaluation: SegmentScoring = field(default_factory=SegmentScoring)


ImageRunConfig = ClassifyConfig | SegmentConfig
