"""Everything that a run is made of. `python -m train.main --help` prints every field."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from florence_jax.config import PRESETS, Florence2Config
from florence_jax.sharding import parse_mesh
from florence_jax.training.checked import Checked, counted, not_finite, positive, within
from florence_jax.training.checkpointing.manager import CheckpointConfig
from florence_jax.training.data.augment import AugmentConfig
from florence_jax.training.data.sources import SourceConfig
from florence_jax.training.data.storage import is_url
from florence_jax.training.lora import LoraConfig
from florence_jax.training.losses import LossConfig
from florence_jax.training.metrics.tasks import metric_problems
from florence_jax.training.optimizer import OptimizerConfig, warmup_problem
from florence_jax.training.remat import Remat
from florence_jax.training.suggest import did_you_mean

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """What trains.

    Attributes:
        start: checkpoint directory or hub id to start from.
        revision: branch, tag or commit of a hub id.
        architecture: without `start`, the sizes of random weights: base, large, large-4k, tiny, or
            a mapping with the fields of Florence2Config.
        processor: directory or hub id of the tokenizer and the processor, by default those of
            `start`; "bytes" for one token a byte; or "module:function", which writes them and is
            called with (directory, image_size=(height, width), image_tokens=...).
        from_scratch: random weights that a small model learns from,
            `florence_jax.training.init_params`, in place of the reference's own.
        dtype: what activations are computed in. Trainable parameters are float32 in any case.
        frozen_dtype: what frozen parameters are kept in.
        dropout, attention_dropout, activation_dropout: in place of the checkpoint's own.
        drop_path: of the vision tower's blocks, in place of the checkpoint's own.
        remat: what the backward pass computes again, to save memory: none; dots, all of a block
            but its linear layers; or blocks, everything between the blocks' inputs.
    """

    start: str = ""
    revision: str | None = None
    architecture: str | Florence2Config | None = None
    processor: str = ""
    from_scratch: bool = False
    dtype: Dtype = "float32"
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
    """Where examples come from and how they become batches.

    Attributes:
        directory: a data set in the train/valid/test convention: each holds a .jsonl file, or a
            *.coco.json file, and the pictures. Adds to `train` and `valid`.
        train, valid: lists of sources, in words `data.train=[{kind: jsonl, path: a.jsonl}]`.
        mix: "rows" draws each row of a batch from the mixture; "batches" draws each batch from one
            source, so that short answers are not padded to the length of long ones.
        image_size: (height, width) in pixels that pictures are resized to; by default the
            processor's.
        max_prompt, max_labels: tokens; a longer row is put into quarantine, nothing is cut. By
            default the most that the model has positions for. Several processes pad every batch to
            them: there the default is the longest row of the training data, which is read for it
            once.
        min_prompt_bucket, min_labels_bucket: tokens that every batch is padded to, doubled (to the
            longest allowed at most) until its longest row fits. Each pair of lengths compiles a
            program of its own: where that takes long, set them to the longest.
        augment: how pictures are changed.
        cached_features: of a frozen vision tower: a directory, filled by `python -m
            train.features`, with its output for every training picture. The tower is never run in
            training, and pictures cannot be augmented. By default there is none.
        threads: that read and decode pictures...
        workers: ... in each of this many processes; 0 for threads of this process alone.
        quarantine_share: the run stops when more than this share of rows could not be used: of the
            rows that a process has seen since it started (of 1,000 at least, or of all where there
            are fewer). A picture that several questions share is seen as one row.
        changed: what a run does when the files of its training rows (not the pictures that they
            name) have other content than when it began: "refuse" to go on, or "accept" them.
    """

    directory: str = ""
    train: tuple[SourceConfig, ...] = ()
    valid: tuple[SourceConfig, ...] = ()
    mix: Literal["rows", "batches"] = "rows"
    image_size: tuple[int, int] | None = None
    max_prompt: int | None = None
    max_labels: int | None = None
    min_prompt_bucket: int = 16
    min_labels_bucket: int = 32
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cached_features: str | None = None
    threads: int = 4
    workers: int = 0
    quarantine_share: float = 0.01
    changed: Literal["refuse", "accept"] = "refuse"

    def problems(self) -> Iterator[str]:
        if not self.directory and not self.train:
            yield "name training data: data.directory or data.train"
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
    """What is measured on the valid split while training.

    Attributes:
        every: steps between two evaluations; 0 for none. There is one after the last step too.
        examples: of each source, for the loss; 0 for all.
        answers: of each source, generated and judged by task; 0 for none.
        pictures: generated answers that are drawn beside the truth.
        batch_size: rows at a time; 0 for those of a training micro-batch.
        metric: what "best" means: "loss" or "nll", the lowest, or "accuracy" or a task metric's
            name in metrics.jsonl, such as "<OD> mAP@0.5", the highest.
        num_beams, no_repeat_ngram_size, max_new_tokens: of generation.
    """

    every: int = 1000
    examples: int = 1000
    answers: int = 100
    pictures: int = 8
    batch_size: int = 0
    metric: str = "loss"
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 256

    def problems(self) -> Iterator[str]:
        least = dict.fromkeys(("every", "examples", "answers", "pictures", "batch_size"), 0)
        least |= {"num_beams": 1, "no_repeat_ngram_size": 0, "max_new_tokens": 1}
        for name, number in least.items():
            # Generation's own bound of beams.
            most = 1024 if name == "num_beams" else 2**31 - 1
            yield from counted(f"evaluation.{name}", getattr(self, name), number, most)


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Checked):
    """What is written down while training.

    Attributes:
        every: steps between two lines of metrics.jsonl, which hold means over those steps' tokens;
            the device is asked for numbers only then.
        tensorboard: whether the same goes to RUN/tensorboard.
        peak_flops: FLOP/s that one device can do at most, for the MFU; 0 for the published figure
            where the device is a known one, else no MFU is shown.
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
    """The checkpoint that a finished run leaves in RUN/export.

    Attributes:
        at_end: whether it is written when the last step is done.
        dtype: of its parameters.
    """

    at_end: bool = True
    dtype: Dtype = "float32"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """A run.

    Attributes:
        directory: the run's own. Where it holds a checkpoint, the run goes on from there.
        steps: updates, all told. A finished run with more steps than it had goes on: the rest of
            its learning rates are those of the longer run.
        epochs: in place of `steps`: how many times as many rows as there are in the training data
            (in all sources of a mixture together, whose weights say how often each one's come).
        batch_size: rows of one update.
        accumulation: micro-batches that an update is made of.
        seed: of the order, the augmentation, the dropout and random weights.
        mesh: devices along each axis, such as data=4,fsdp=2,tensor=2; -1 is what the others leave
            over. By default all devices of all processes divide the batch.
        rules: how parameters are divided: dp, fsdp, tp, fsdp_tp, or a .toml file.
    """

    # On a command line one of them replaces the other.
    ALTERNATIVES: ClassVar = (("steps", "epochs"),)

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
            yield "directory must name the run's own, for example directory=runs/mine"
        if is_url(self.directory or ""):
            yield (
                f"directory={self.directory} is a URL, and a run needs a file system: its logs are "
                "appended to, and its checkpoints become whole by a rename. Name a directory that "
                "every process sees (train/launch/README.md has the ways), and copy what is "
                "finished to the bucket, for example with `gcloud storage rsync`"
            )
        if self.mesh:
            try:
                parse_mesh(self.mesh)
            except ValueError as error:
                yield str(error)
        if self.steps is None and self.epochs is None:
            yield "steps or epochs must be set: how long the run is, for example epochs=3"
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
        if self.evaluation is not None:
            valid = self.data.valid if self.data is not None else ()
            more = [metric for source in valid for metric in source.metrics]
            yield from metric_problems(self.evaluation.metric, self.evaluation.answers, more)
        problem = self.steps and warmup_problem(self.optimizer, self.steps)
        if problem:
            yield problem

    @property
    def evaluation_rows(self) -> int:
        return self.evaluation.batch_size or self.batch_size // self.accumulation


# What may change between a run and its continuation: none of it touches the updates.
RESUMABLE_FIELDS = ("checkpoint", "evaluation", "logging", "export", "directory", "mesh", "rules")
FREE_DATA = ("threads", "workers", "quarantine_share", "valid", "changed")


def fixed(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings that a resumed run must have in common with what it resumes.

    `steps` may change where no learning rate depends on it: with a constant schedule.
    """
    kept = {name: value for name, value in tree.items() if name not in RESUMABLE_FIELDS}
    kept["data"] = {k: v for k, v in tree["data"].items() if k not in FREE_DATA}
    if tree["optimizer"]["schedule"] == "constant":
        del kept["steps"]
    return kept


def _augment_problems(data: DataConfig) -> Iterator[str]:
    moved = [f"data.augment.{n}" for n in ("flip", "scale_jitter") if getattr(data.augment, n)]
    if moved and any(source.questions > 1 for source in data.train):
        yield (
            f"{' and '.join(moved)} would move a picture under the other questions asked of "
            "it: set these to 0, or questions of each source to 1"
        )


def _cached_features_problems(data: DataConfig, directory: str) -> Iterator[str]:
    if not directory:
        yield "data.cached_features must name a directory, or be null for none"
    if is_url(directory):
        yield (
            f"data.cached_features={directory} is a URL, and features are read in place: "
            "name a directory of a file system"
        )
    changed = [f"data.augment.{n}={v:g}" for n, v in vars(data.augment).items() if v]
    if changed:
        yield (
            f"data.cached_features={directory} holds what a tower sees in pictures as they "
            f"are, and {', '.join(changed)} would change them: set these to 0, or "
            "data.cached_features to null"
        )
