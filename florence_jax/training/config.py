"""Settings of a training run: TrainConfig and its parts. `florence-jax train --help` lists them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from florence_jax.config import PRESETS, Florence2Config
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.training.checked import (
    Checked,
    counted,
    did_you_mean,
    not_finite,
    positive,
    within,
)
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.example import ObjectOrder
from florence_jax.training.data.sources import SourceConfig
from florence_jax.training.data.storage import is_url
from florence_jax.training.metrics.judge import metric_problems
from florence_jax.training.settings import (
    CheckpointConfig,
    LoraConfig,
    LossConfig,
    OptimizerConfig,
    Remat,
    warmup_problem,
)

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """The model that trains.

    Attributes:
        start: Checkpoint directory or hub id to start from.
        revision: Branch, tag or commit of a hub id.
        architecture: Without `start`, the sizes of random weights: base, large, large-4k, tiny, or
            an object with the fields of Florence2Config.
        processor: Directory or hub id of the tokenizer and the processor, by default those that
            come with `start`; "bytes" for one token a byte; or "module:function", which writes them
            and is called with (directory, image_size=(height, width), image_tokens=...).
        from_scratch: Initialise random weights for training from scratch
            (`florence_jax.training.pretrained.scratch_parameters`), not as the reference does.
        dtype: Dtype of the activations. Trainable parameters are float32 in any case.
        matmul_precision: How products of float32 are computed: highest, in float32; high, in three
            bfloat16 passes on a TPU and in TensorFloat32 on a GPU; default, in one bfloat16 pass on
            a TPU and in TensorFloat32 on a GPU. With another dtype it changes nothing.
        frozen_dtype: Dtype of frozen parameters.
        dropout: Dropout rate; by default the checkpoint's.
        attention_dropout: Dropout rate of attention weights; by default the checkpoint's.
        activation_dropout: Dropout rate after the MLP's activation; by default the checkpoint's.
        drop_path: Stochastic-depth rate of the vision tower; by default the checkpoint's.
        remat: Activations that the backward pass recomputes to save memory: none; dots, all of a
            block but its linear layers; or blocks, everything between the blocks' inputs.
    """

    start: str = ""
    revision: str | None = None
    architecture: str | Florence2Config | None = None
    processor: str = ""
    from_scratch: bool = False
    dtype: Dtype = "float32"
    matmul_precision: MatmulPrecision = "highest"
    frozen_dtype: Dtype = "float32"
    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    drop_path: float | None = None
    remat: Remat = "none"

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "model.")
        if bool(self.start) == (self.architecture is not None):
            yield "set either model.start or model.architecture, and not both"
        if isinstance(self.architecture, str) and self.architecture not in PRESETS:
            yield (
                f"model.architecture {self.architecture!r} is none of {', '.join(PRESETS)}"
                f"{did_you_mean(self.architecture, PRESETS)}"
            )
        if not self.start and not self.processor:
            yield "random weights have no tokenizer: set model.processor"
        for name in ("dropout", "attention_dropout", "activation_dropout", "drop_path"):
            yield from within(f"model.{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
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
        threads: Threads that read and decode images, in each worker process.
        workers: Worker processes; 0 for threads of the main process alone.
        quarantine_share: The run stops when more than this share of rows could not be used, of the
            rows that a process has seen since it started (of at least 1,000, or of all where there
            are fewer). An image that several questions share counts as one row.
        changed: What a resumed run does when the files of its training rows (not the images that
            they name) have changed since it began: "refuse" to go on, or "accept" them.
    """

    directory: str = ""
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
    threads: int = 4
    workers: int = 0
    quarantine_share: float = 0.01
    changed: Literal["refuse", "accept"] = "refuse"

    def problems(self) -> Iterator[str]:
        if not self.directory and not self.train:
            yield "name training data: data.directory or data.train"
        if self.order is not None and not self.directory:
            yield "data.order is that of data.directory: give each source of data.train its own"
        for kind in ("prompt", "labels"):
            yield from counted(f"data.min_{kind}_bucket", getattr(self, f"min_{kind}_bucket"), 2)
            yield from counted(f"data.max_{kind}", getattr(self, f"max_{kind}"), 2)
        if self.image_size is not None and min(self.image_size) < 1:
            yield f"data.image_size must be positive pixels, got {self.image_size}"
        for name in ("threads", "workers"):
            yield from counted(f"data.{name}", getattr(self, name), 0, 1024)
        if any(source.questions > 1 for source in self.valid):
            yield "evaluation asks one question at a time: leave questions of data.valid at 1"
        if not 0.0 <= self.quarantine_share <= 1.0:
            yield f"data.quarantine_share must be within [0, 1], got {self.quarantine_share}"
        yield from _augment_problems(self)
        if self.cached_features is not None:
            yield from _cached_features_problems(self, self.cached_features)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Checked):
    """Evaluation on the validation data while training.

    Attributes:
        every: Steps between two evaluations; 0 for none. There is one after the last step too.
        before: Evaluate before the first step too: the run ends with a comparison, and what cannot
            be evaluated is said at once.
        examples: Examples of each source for the loss; 0 for all.
        answers: Answers that are generated and judged of each source; 0 for none.
        images: Generated answers that are drawn beside the truth.
        batch_size: Rows at a time; 0 for those of a training micro-batch.
        metric: Metric of the best checkpoint: "loss" or "nll", the lowest, or "accuracy" or a task
            metric's name in metrics.jsonl, such as "<OD> mAP@0.5", the highest.
        num_beams: Beams of the generated answers.
        no_repeat_ngram_size: Length of n-grams that may not repeat in an answer; 0 for no limit.
        max_new_tokens: Most tokens of an answer.
    """

    every: int = 1000
    before: bool = False
    examples: int = 1000
    answers: int = 100
    images: int = 8
    batch_size: int = 0
    metric: str = "loss"
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 256

    def problems(self) -> Iterator[str]:
        least = dict.fromkeys(("every", "examples", "answers", "images", "batch_size"), 0)
        least |= {"num_beams": 1, "no_repeat_ngram_size": 0, "max_new_tokens": 1}
        for name, number in least.items():
            # Generation's own bound of beams.
            most = 1024 if name == "num_beams" else 2**31 - 1
            yield from counted(f"evaluation.{name}", getattr(self, name), number, most)


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Checked):
    """Logs of the run.

    Attributes:
        every: Steps between two lines of metrics.jsonl, whose values are means over those steps'
            tokens. The device is asked for numbers only then.
        tensorboard: Whether the same values go to RUN/tensorboard.
        peak_flops: Peak FLOP/s of one device, for the MFU; 0 for the published figure of a known
            device, else no MFU is shown.
    """

    every: int = 10
    tensorboard: bool = True
    peak_flops: float = 0.0

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "logging.")
        yield from counted("logging.every", self.every, 1)
        yield from within("logging.peak_flops", self.peak_flops, 0)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The checkpoint that a finished run writes to RUN/export.

    Attributes:
        at_end: Whether it is written after the last step.
        dtype: Dtype of its parameters.
    """

    at_end: bool = True
    dtype: Dtype = "float32"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """The settings of a training run.

    Attributes:
        directory: The run's own directory. Where it holds a checkpoint, the run resumes from it.
        steps: Updates in all. A finished run goes on with more steps than it had, and its further
            learning rates are those of the longer run.
        epochs: Number of passes over the training data, in place of `steps`. One pass draws as many
            rows as all sources of the mixture have together.
        model: The model that trains.
        data: The training and validation data.
        batch_size: Rows of one update.
        accumulation: Micro-batches of one update.
        seed: Seed of the order, the augmentation, the dropout and random weights.
        mesh: Devices along each axis, such as data=4,fsdp=2,tensor=2; -1 is what the others leave
            over. By default all devices of all processes divide the batch. Several devices of one
            CPU are for trying meshes: XLA:CPU aborts the process where one of them reaches a
            collective a minute after another, as on busy cores. Free the cores, or add
            --xla_cpu_collective_call_terminate_timeout_seconds=600 to the environment's XLA_FLAGS.
        rules: How parameters are divided: dp, fsdp, tp, fsdp_tp, or a .toml file.
        loss: The loss.
        optimizer: The optimizer.
        lora: Low-rank adapters.
        checkpoint: Checkpoints of the run.
        evaluation: Evaluation on the validation data.
        logging: Logs of the run.
        export: The checkpoint that a finished run writes.
    """

    directory: str
    steps: int | None = None
    epochs: float | None = None
    model: ModelConfig
    data: DataConfig
    batch_size: int = 8
    accumulation: int = 1
    seed: int = 0
    mesh: str = ""
    rules: str = "fsdp_tp"
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def problems(self) -> Iterator[str]:
        yield from not_finite(self)
        if self.directory == "":
            yield "directory must name the run's own, for example --directory runs/mine"
        if is_url(self.directory):
            yield (
                f"directory={self.directory} is a URL, and a run needs a file system: its logs are "
                "appended to, and its checkpoints become whole by a rename. Name a directory that "
                "every process sees (train/launch/README.md has the ways), and copy what is "
                "finished to the bucket, for example with `gcloud storage rsync`"
            )
        if self.mesh:
            from florence_jax.sharding import parse_mesh  # which imports jax

            try:
                parse_mesh(self.mesh)
            except ValueError as error:
                yield str(error)
        if self.steps is None and self.epochs is None:
            yield "steps or epochs must be set: how long the run is, for example --epochs 3"
        if self.steps is not None and self.epochs is not None:
            yield f"set either steps or epochs, and not both: got {self.steps} and {self.epochs}"
        # A step is counted in int32, and the seed's thousandfold is one of numpy's uint32.
        for name, least, most in (
            ("steps", 1, 2**31 - 1),
            ("batch_size", 1, 2**31 - 1),
            ("accumulation", 1, 2**31 - 1),
            ("seed", 0, 4_000_000),
        ):
            yield from counted(name, getattr(self, name), least, most)
        yield from positive("epochs", self.epochs)
        if self.accumulation and self.batch_size % self.accumulation:
            yield f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}"
        more = [metric for source in self.data.valid for metric in source.metrics]
        yield from metric_problems(self.evaluation.metric, self.evaluation.answers, more)
        problem = self.steps and warmup_problem(self.optimizer, self.steps)
        if problem:
            yield problem

    @property
    def evaluation_rows(self) -> int:
        return self.evaluation.batch_size or self.batch_size // self.accumulation


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
