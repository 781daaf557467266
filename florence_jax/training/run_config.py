"""Settings that every training run has, whatever it trains: `RunConfig` and its parts."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from florence_jax.config import DaViTConfig
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.training.checked import Checked, counted, not_finite, positive, within
from florence_jax.training.data.storage import is_url
from florence_jax.training.settings import (
    CheckpointConfig,
    OptimizerConfig,
    Remat,
    warmup_problem,
)

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Checked):
    """The network that trains.

    Attributes:
        start: Checkpoint directory or hub id to start from.
        revision: Branch, tag or commit of a hub id.
        dtype: Dtype of the activations. Trainable parameters are float32 in any case.
        matmul_precision: How products of float32 are computed: highest, in float32; high, in three
            bfloat16 passes on a TPU and in TensorFloat32 on a GPU; default, in one bfloat16 pass on
            a TPU and in TensorFloat32 on a GPU. With another dtype it changes nothing.
        frozen_dtype: Dtype of frozen parameters.
        drop_path: Stochastic-depth rate of the vision tower; by default the checkpoint's.
        drop_path_per_block: Whether that rate grows along the tower with every block, as timm's, or
            with every half of a block, as the original code's. By default as in the checkpoint,
            whose config.json may say it, else as the original code's.
        remat: Activations that the backward pass recomputes to save memory: none; dots, all of a
            block but its linear layers; or blocks, everything between the blocks' inputs.
    """

    start: str = ""
    revision: str | None = None
    dtype: Dtype = "float32"
    matmul_precision: MatmulPrecision = "highest"
    frozen_dtype: Dtype = "float32"
    drop_path: float | None = None
    drop_path_per_block: bool | None = None
    remat: Remat = "none"

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "model.")
        yield from within("model.drop_path", self.drop_path, 0, 1)

    def with_drop_path(self, tower: DaViTConfig) -> DaViTConfig:
        """The vision tower with the run's stochastic depth."""
        settings = {
            "drop_path_rate": self.drop_path,
            "drop_path_per_block": self.drop_path_per_block,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return dataclasses.replace(tower, **given)


@dataclass(frozen=True, kw_only=True)
class ReadingConfig(Checked):
    """How training data are read.

    Attributes:
        directory: The data set's directory.
        threads: Threads that read and decode images, in each worker process.
        workers: Worker processes; 0 for threads of the main process alone.
        quarantine_share: The run stops when more than this share of rows could not be used, of the
            rows that a process has seen since it started (of at least 1,000, or of all where there
            are fewer). An image that several questions share counts as one row.
        changed: What a resumed run does when the files of its training rows (not the images that
            they name) have changed since it began: "refuse" to go on, or "accept" them.
    """

    directory: str = ""
    threads: int = 4
    workers: int = 0
    quarantine_share: float = 0.01
    changed: Literal["refuse", "accept"] = "refuse"

    def problems(self) -> Iterator[str]:
        for name in ("threads", "workers"):
            yield from counted(f"data.{name}", getattr(self, name), 0, 1024)
        if not 0.0 <= self.quarantine_share <= 1.0:
            yield f"data.quarantine_share must be within [0, 1], got {self.quarantine_share}"


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(Checked):
    """Evaluation on the validation data while training.

    Attributes:
        every: Steps between two evaluations; 0 for none. There is one after the last step too.
        before: Evaluate before the first step too: the run ends with a comparison, and what cannot
            be evaluated is said at once.
        images: Answers that are drawn.
        batch_size: Rows at a time; 0 for those of a training micro-batch.
        metric: Metric of the best checkpoint.
    """

    every: int = 1000
    before: bool = False
    images: int = 8
    batch_size: int = 0
    metric: str = "loss"

    def problems(self) -> Iterator[str]:
        for name in ("every", "images", "batch_size"):
            yield from counted(f"evaluation.{name}", getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Checked):
    """Logs of the run.

    Attributes:
        every: Steps between two lines of metrics.jsonl, whose values are means over those steps'
            tokens. The device is asked for numbers only then.
        tensorboard: Whether the same values go to RUN/tensorboard, and drawn answers.
        wandb: Project of Weights & Biases that they go to as well, in a run named as the directory
            is. Without a network they are kept for `wandb sync`; WANDB_MODE=offline does not try.
        trackio: Project of trackio that they go to as well.
        mlflow: Experiment of MLflow that they go to as well, on the server of MLFLOW_TRACKING_URI,
            or in RUN/mlflow.db without one.
        peak_flops: Peak FLOP/s of one device, for the MFU; 0 for the published figure of a known
            device, else no MFU is shown.
    """

    every: int = 10
    tensorboard: bool = True
    wandb: str = ""
    trackio: str = ""
    mlflow: str = ""
    peak_flops: float = 0.0

    def problems(self) -> Iterator[str]:
        yield from not_finite(self, "logging.")
        yield from counted("logging.every", self.every, 1)
        yield from within("logging.peak_flops", self.peak_flops, 0)

    @property
    def has_trackers(self) -> bool:
        return bool(self.wandb or self.trackio or self.mlflow)


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
class RunConfig(Checked):
    """Settings of any training run.

    Attributes:
        directory: The run's own directory. Where it holds a checkpoint, the run resumes from it.
        steps: Updates in all. A finished run goes on with more steps than it had, and its further
            learning rates are those of the longer run.
        epochs: Number of passes over the training data, in place of `steps`. One pass draws as many
            rows as all sources of the mixture have together.
        model: The network that trains.
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
        optimizer: The optimizer.
        checkpoint: Checkpoints of the run.
        evaluation: Evaluation on the validation data.
        logging: Logs of the run.
        export: The checkpoint that a finished run writes.
    """

    directory: str
    steps: int | None = None
    epochs: float | None = None
    model: NetworkConfig
    data: ReadingConfig
    batch_size: int = 8
    accumulation: int = 1
    seed: int = 0
    mesh: str = ""
    rules: str = "fsdp_tp"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: ScoringConfig = field(default_factory=ScoringConfig)
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
        problem = self.steps and warmup_problem(self.optimizer, self.steps)
        if problem:
            yield problem

    @property
    def evaluation_rows(self) -> int:
        return self.evaluation.batch_size or self.batch_size // self.accumulation
