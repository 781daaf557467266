"""Settings of a training run: TrainConfig and its parts. `florence-jax train --help` lists them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from florence_jax.config import PRESETS, Florence2Config
from florence_jax.training.checked import counted, did_you_mean, within
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.example import ObjectOrder
from florence_jax.training.data.sources import SourceConfig
from florence_jax.training.data.storage import is_url
from florence_jax.training.metrics.judge import metric_problems
from florence_jax.training.run_config import (
    ExportConfig,
    LoggingConfig,
    NetworkConfig,
    ReadingConfig,
    RunConfig,
    ScoringConfig,
)
from florence_jax.training.settings import LoraConfig, LossConfig

# Beyond it, an end token would be certain or banned.
_MOST_BIAS = 100.0

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "ExportConfig",
    "LoggingConfig",
    "ModelConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(NetworkConfig):
    """The model that trains.

    Attributes:
        architecture: Without `start`, the sizes of random weights: base, large, large-4k, tiny, or
            an object with the fields of Florence2Config.
        processor: Directory or hub id of the tokenizer and the processor, by default those that
            come with `start`; "bytes" for one token a byte; or "module:function", which writes them
            and is called with (directory, image_size=(height, width), image_tokens=...).
        from_scratch: Initialise random weights for training from scratch
            (`florence_jax.training.pretrained.scratch_parameters`), not as the reference does.
        dropout: Dropout rate; by default the checkpoint's.
        attention_dropout: Dropout rate of attention weights; by default the checkpoint's.
        activation_dropout: Dropout rate after the MLP's activation; by default the checkpoint's.
    """

    architecture: str | Florence2Config | None = None
    processor: str = ""
    from_scratch: bool = False
    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None

    def problems(self) -> Iterator[str]:
        if bool(self.start) == (self.architecture is not None):
            yield "set either model.start or model.architecture, and not both"
        if isinstance(self.architecture, str) and self.architecture not in PRESETS:
            yield (
                f"model.architecture {self.architecture!r} is none of {', '.join(PRESETS)}"
                f"{did_you_mean(self.architecture, PRESETS)}"
            )
        if not self.start and not self.processor:
            yield "random weights have no tokenizer: set model.processor"
        yield from super().problems()
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            yield from within(f"model.{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class DataConfig(ReadingConfig):
    """The training and validation data, and how examples become batches.

    Attributes:
        directory: A data set in the train/valid/test convention: each folder holds a .jsonl file or
            a *.coco.json file, and the images. It adds to `train` and `valid`.
        order: Order in which the labels of `directory` name objects, see `order` of a source; by
            default that of the layout.
        train: Training data sets.
        valid: Validation data sets.
        mix: "rows" draws each row of a batch from the mixture; "batches" draws each batch from one
            source, so that short answers are not padded to the length of long ones.
        image_size: (height, width) in pixels that images are resized to; by default the
            processor's.
        max_prompt: Most tokens of a prompt. A longer row goes to quarantine; nothing is cut. By
            default the most that the model has positions for. Several processes pad every batch to
            this length, and measure it once on the training data where it is not set.
        max_labels: Most tokens of the labels; otherwise as `max_prompt`.
        min_prompt_bucket: Length that the prompts of every batch are padded to, doubled until the
            longest row fits. Each pair of lengths compiles a program of its own: where that takes
            long, set it to the longest.
        min_labels_bucket: The same for the labels.
        one_length: Pad every batch to the longest prompt and labels of the training data, which are
            measured when the run begins: one program is compiled. For small data sets and short
            runs, where compiling takes longer than computing with padding. Several processes do
            this in any case.
        augment: Image augmentation.
        cached_features: With a frozen vision tower, the directory with its output for every
            training image, written by `python -m train.features`. Training then never runs the
            tower, and cannot augment images.
    """

    order: ObjectOrder | None = None
    train: tuple[SourceConfig, ...] = ()
    valid: tuple[SourceConfig, ...] = ()
    mix: Literal["rows", "batches"] = "rows"
    image_size: tuple[int, int] | None = None
    max_prompt: int | None = None
    max_labels: int | None = None
    min_prompt_bucket: int = 16
    min_labels_bucket: int = 32
    one_length: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cached_features: str | None = None

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.directory and not self.train:
            yield "name training data: data.directory or data.train"
        if self.order is not None and not self.directory:
            yield "data.order is that of data.directory: give each source of data.train its own"
        for kind in ("prompt", "labels"):
            yield from counted(f"data.min_{kind}_bucket", getattr(self, f"min_{kind}_bucket"), 2)
            yield from counted(f"data.max_{kind}", getattr(self, f"max_{kind}"), 2)
        if self.image_size is not None and min(self.image_size) < 1:
            yield f"data.image_size must be positive pixels, got {self.image_size}"
        if any(source.questions > 1 for source in self.valid):
            yield "evaluation asks one question at a time: leave questions of data.valid at 1"
        yield from _augment_problems(self)
        if self.cached_features is not None:
            yield from _cached_features_problems(self, self.cached_features)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(ScoringConfig):
    """Evaluation on the validation data while training.

    Attributes:
        examples: Examples of each source for the loss; 0 for all.
        answers: Answers that are generated and judged of each source; 0 for none.
        images: Generated answers that are drawn beside the truth.
        metric: Metric of the best checkpoint: "loss" or "nll", the lowest, or "accuracy" or a task
            metric's name in metrics.jsonl, such as "<OD> mAP@0.5", the highest.
        num_beams: Beams of the generated answers.
        no_repeat_ngram_size: Length of n-grams that may not repeat in an answer; 0 for no limit.
        max_new_tokens: Most tokens of an answer.
        eos_bias: Added to the logit of the end token in generated answers: below 0, answers name
            more objects before they end. An export keeps it, as `sequence_bias` of its
            generation_config.json, which transformers reads too; it is of every task then.
    """

    examples: int = 1000
    answers: int = 100
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 256
    eos_bias: float = 0.0

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        least = dict.fromkeys(("examples", "answers"), 0)
        least |= {"num_beams": 1, "no_repeat_ngram_size": 0, "max_new_tokens": 1}
        for name, number in least.items():
            # Generation's own bound of beams.
            most = 1024 if name == "num_beams" else 2**31 - 1
            yield from counted(f"evaluation.{name}", getattr(self, name), number, most)
        yield from within("evaluation.eos_bias", self.eos_bias, -_MOST_BIAS, _MOST_BIAS)

    def sequence_bias(self, eos_id: int) -> tuple[tuple[tuple[int], float], ...]:
        """`eos_bias` as `GenerationConfig.sequence_bias` has it; empty without one."""
        return (((eos_id,), self.eos_bias),) if self.eos_bias else ()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """The settings of a training run.

    Attributes:
        model: The model that trains.
        data: The training and validation data.
        loss: The loss.
        lora: Low-rank adapters.
        evaluation: Evaluation on the validation data.
    """

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        more = [metric for source in self.data.valid for metric in source.metrics]
        yield from metric_problems(self.evaluation.metric, self.evaluation.answers, more)


def _augment_problems(data: DataConfig) -> Iterator[str]:
    moved = [f"data.augment.{n}" for n in ("flip", "scale_jitter") if getattr(data.augment, n)]
    if moved and any(source.questions > 1 for source in data.train):
        yield (
            f"{' and '.join(moved)} would move an image under the other questions asked of "
            "it: set these to 0, or questions of each source to 1"
        )


def _cached_features_problems(data: DataConfig, directory: str) -> Iterator[str]:
    if not directory:
        yield "data.cached_features must name a directory, or be None"
    if is_url(directory):
        yield (
            f"data.cached_features={directory} is a URL, and features are read in place: "
            "name a directory of a file system"
        )
    changed = [f"data.augment.{n}={v:g}" for n, v in vars(data.augment).items() if v]
    if changed:
        yield (
            f"data.cached_features={directory} holds what a tower sees in images as they "
            f"are, and {', '.join(changed)} would change them: set these to 0, or "
            "data.cached_features to None"
        )
