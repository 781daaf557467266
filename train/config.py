"""Everything that a run is made of. `python -m train.main --help` prints every field."""

from dataclasses import dataclass, field
from typing import Any, Literal

from florence_jax.config import PRESETS, Florence2Config
from florence_jax.processing import TASKS
from florence_jax.sharding import parse_mesh
from train.checkpoints import CheckpointConfig
from train.data.augment import AugmentConfig
from train.data.example import ObjectOrder
from train.data.place import is_url
from train.lora import LoraConfig
from train.losses import LossConfig
from train.optimizer import OptimizerConfig
from train.remat import Remat
from train.shapes.config import SceneConfig

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What trains.

    Attributes:
        start: checkpoint directory or hub id to start from.
        revision: branch, tag or commit of a hub id.
        architecture: without `start`, the sizes of random weights: base, large, large-4k, tiny, or
            a mapping with the fields of Florence2Config.
        processor: directory or hub id of the tokenizer and the processor; "shapes" for those of the
            synthetic world, "bytes" for one token a byte. By default those of `start`.
        from_scratch: random weights that a small model learns from, `train.scratch`, in place of
            the reference's own.
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

    def __post_init__(self) -> None:
        if bool(self.start) == (self.architecture is not None):
            raise ValueError("set either model.start or model.architecture, and not both")
        if isinstance(self.architecture, str) and self.architecture not in PRESETS:
            raise ValueError(
                f"model.architecture {self.architecture!r} is none of {', '.join(PRESETS)}"
            )
        if not self.start and not self.processor:
            raise ValueError("random weights have no tokenizer: set model.processor")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set.

    Attributes:
        kind: its layout. jsonl, parquet and array_record hold rows `image, prefix, suffix`; coco is
            a COCO JSON file; vqa and docvqa are questions; annotations are what florence-jax
            annotate wrote; shapes is the synthetic world.
        path: the file, or the directory of Parquet or ArrayRecord files or of annotations; a path,
            or (all but array_record) a URL gs://, s3://, az:// or hf://, as of all that data name.
        weight: its share of the mixture, relative to the others'.
        tasks: of a coco file (default <OD>), of annotations (default all that they answer) or of
            the world (default all 15); each has an equal part of the weight.
        image_root: directory that image names start from; by default the file's own.
        annotations: of vqa, VQAv2's second file.
        order: in which an answer to <OD>, <DENSE_REGION_CAPTION>, <REGION_PROPOSAL> or
            <OPEN_VOCABULARY_DETECTION> names things: random (anew in each epoch), as_annotated,
            left_to_right, top_to_bottom, area (largest first) or label (by the alphabet). By
            default random for coco and annotations, since a model that learns the annotators' order
            learns where they begin and may find little else; as_annotated for the others, whose
            texts are learnt as they stand.
        image_pattern: of vqa, such as "COCO_train2014_{image_id:012d}.jpg".
        scenes: of shapes, how many.
        questions: of annotations and shapes, asked of each picture of a batch at most: the tower
            runs once for all. Of annotations, tasks then take turns as each image has questions.
        split: of shapes: train, valid or held-out.
        scene: of shapes, how hard they are.
    """

    kind: Literal[
        "jsonl", "parquet", "array_record", "coco", "vqa", "docvqa", "annotations", "shapes"
    ]
    path: str = ""
    weight: float = 1.0
    tasks: tuple[str, ...] = ()
    image_root: str = ""
    annotations: str = ""
    order: ObjectOrder | None = None
    image_pattern: str = ""
    scenes: int = 1_000_000
    questions: int = 1
    split: Literal["train", "valid", "held-out"] = "train"
    scene: SceneConfig = field(default_factory=SceneConfig)

    def __post_init__(self) -> None:
        if (self.kind == "shapes") == bool(self.path):
            raise ValueError(
                f"a {self.kind} source " + ("has no" if self.path else "needs a") + " path"
            )
        most = {"annotations": 64, "shapes": len(self.tasks) or len(TASKS)}.get(self.kind, 1)
        if not 1 <= self.questions <= most:
            raise ValueError(
                f"a {self.kind} source asks 1 to {most} questions of a picture, got questions="
                f"{self.questions}"
            )
        if not self.weight > 0.0:
            raise ValueError(f"the weight of {self.path or self.kind} must be positive")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how they become batches.

    Attributes:
        directory: a data set in the train/valid/test convention: each holds a .jsonl file, or a
            *.coco.json file, and the pictures. Adds to `train` and `valid`.
        train, valid: lists of sources, in words `data.train=[{kind: jsonl, path: a.jsonl}]`.
        mix: "rows" draws each row of a batch from the mixture; "batches" draws each batch from one
            source, so that short answers are not padded to the length of long ones.
        image_size: (height, width) in pixels that pictures are resized to; by default the
            processor's.
        max_prompt, max_target: tokens; a longer row is put into quarantine, nothing is cut.
        least_prompt, least_target: tokens that every batch is padded to, doubled until its longest
            row fits. Each pair of lengths compiles a program of its own: where that takes long, set
            them to the longest.
        augment: how pictures are changed.
        cached_features: of a frozen vision tower: a directory, filled by `python -m
            train.features`, with its output for every training picture. The tower is never run in
            training, and pictures cannot be augmented. By default there is none.
        threads: that read and decode pictures...
        workers: ... in each of this many processes; 0 for threads of this process alone.
        quarantine_share: the run stops when more than this share of rows could not be used: of the
            rows that a process has seen since it started (of 1,000 at least, or of all where there
            are fewer). A picture that several questions share is seen as one row.
    """

    directory: str = ""
    train: tuple[SourceConfig, ...] = ()
    valid: tuple[SourceConfig, ...] = ()
    mix: Literal["rows", "batches"] = "rows"
    image_size: tuple[int, int] | None = None
    max_prompt: int = 256
    max_target: int = 1024
    least_prompt: int = 16
    least_target: int = 32
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cached_features: str | None = None
    threads: int = 4
    workers: int = 0
    quarantine_share: float = 0.01

    def __post_init__(self) -> None:
        if not self.directory and not self.train:
            raise ValueError("name training data: data.directory or data.train")
        for kind in ("prompt", "target"):
            least, most = getattr(self, f"least_{kind}"), getattr(self, f"max_{kind}")
            if min(least, most) < 2:
                raise ValueError(f"data.least_{kind} and data.max_{kind} must be at least 2 tokens")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"data.image_size must be positive pixels, got {self.image_size}")
        if self.threads < 0 or self.workers < 0:
            raise ValueError(
                f"data.threads={self.threads} and data.workers={self.workers} must not be negative"
            )
        if any(source.questions > 1 for source in self.valid):
            raise ValueError(
                "evaluation asks one question at a time: leave questions of data.valid at 1"
            )
        moved = [f"data.augment.{n}" for n in ("flip", "scale_jitter") if getattr(self.augment, n)]
        if moved and any(source.questions > 1 for source in self.train):
            raise ValueError(
                f"{' and '.join(moved)} would move a picture under the other questions asked of "
                "it: set these to 0, or questions of each source to 1"
            )
        if not 0.0 <= self.quarantine_share <= 1.0:
            raise ValueError("data.quarantine_share must be within [0, 1]")
        if self.cached_features is not None:
            if not self.cached_features:
                raise ValueError("data.cached_features must name a directory, or be null for none")
            if is_url(self.cached_features):
                raise ValueError(
                    f"data.cached_features={self.cached_features} is a URL, and features are read "
                    "in place: name a directory of a file system"
                )
            changed = [f"data.augment.{n}={v:g}" for n, v in vars(self.augment).items() if v]
            if changed:
                raise ValueError(
                    f"data.cached_features={self.cached_features} holds what a tower sees in "
                    f"pictures as they are, and {', '.join(changed)} would change them: set these "
                    "to 0, or data.cached_features to null"
                )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured on the valid split while training.

    Attributes:
        every: steps between two evaluations; 0 for none. There is one after the last step too.
        examples: of each source, for the loss; 0 for all.
        answers: of each source, generated and judged by task; 0 for none.
        pictures: generated answers that are drawn beside the truth.
        batch_size: rows at a time; 0 for those of a training micro-batch.
        metric: what "best" means: "loss", the lowest, or a task metric's name in metrics.jsonl,
            such as "<OD> mAP@0.5", the highest.
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

    def __post_init__(self) -> None:
        least = dict.fromkeys(("every", "examples", "answers", "pictures", "batch_size"), 0)
        least |= {"num_beams": 1, "no_repeat_ngram_size": 0, "max_new_tokens": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(
                    f"evaluation.{name} must be at least {number}, got {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
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

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"logging.every must be at least 1, got {self.every}")


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
class TrainConfig:
    """A run.

    Attributes:
        directory: the run's own. Where it holds a checkpoint, the run goes on from there.
        steps: updates, all told.
        batch_size: rows of one update.
        accumulation: micro-batches that an update is made of.
        seed: of the order, the augmentation, the dropout and random weights.
        mesh: devices along each axis, such as data=4,fsdp=2,tensor=2; -1 is what the others leave
            over. By default all devices of all processes divide the batch.
        rules: how parameters are divided: dp, fsdp, tp, fsdp_tp, or a .toml file.
    """

    directory: str
    steps: int
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

    def __post_init__(self) -> None:
        if not self.directory:
            raise ValueError("directory must name the run's own, for example directory=runs/mine")
        if is_url(self.directory):
            raise ValueError(
                f"directory={self.directory} is a URL, and a run needs a file system: its logs are "
                "appended to, and its checkpoints become whole by a rename. Name a directory that "
                "every process sees (train/launch/README.md has the ways), and copy what is "
                "finished to the bucket, for example with `gcloud storage rsync`"
            )
        if self.mesh:
            parse_mesh(self.mesh)
        for name in ("steps", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}"
            )

    @property
    def evaluation_rows(self) -> int:
        return self.evaluation.batch_size or self.batch_size // self.accumulation


# What may change between a run and its continuation: none of it touches the updates.
FREE = ("checkpoint", "evaluation", "logging", "export", "directory", "mesh", "rules")
FREE_DATA = ("threads", "workers", "quarantine_share", "valid")


def fixed(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings that a resumed run must have in common with what it resumes.

    `steps` may change where no learning rate depends on it: with a constant schedule.
    """
    kept = {name: value for name, value in tree.items() if name not in FREE}
    kept["data"] = {k: v for k, v in tree["data"].items() if k not in FREE_DATA}
    if tree["optimizer"]["schedule"] == "constant":
        del kept["steps"]
    return kept
