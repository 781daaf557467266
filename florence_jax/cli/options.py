"""Options that several commands share: the model, decoding, and loading a pipeline from them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from florence_jax.generation_config import GenerationConfig
from florence_jax.runtime.program_parser import positive

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from florence_jax.batch.blocks import RowFormat, RunOptions
    from florence_jax.inference.base_pipeline import BasePipeline
    from florence_jax.inference.pipeline import Florence2Pipeline

_DEFAULT_MODEL = "microsoft/Florence-2-base-ft"

# Names for `add_shared`.
MODEL = ("--model", "--revision", "--mesh", "--rules", "--processor")
DECODING = ("--dtype", "--matmul-precision", "--quantize", "--beams", "--max-new-tokens")
SAMPLING = ("--sample", "--seed", "--temperature", "--top-k", "--top-p")
PROCESSES = ("--workers", "--process-index", "--process-count")

_SHARED: dict[str, dict[str, Any]] = {
    "--model": {
        "default": _DEFAULT_MODEL,
        "help": "directory of a checkpoint, training run or PEFT adapter, or a hub id; 'shapes' is "
        "the small trained model of `florence-jax demo` (default: %(default)s)",
    },
    "--revision": {"help": "branch, tag or commit of the hub id"},
    "--mesh": {
        "metavar": "AXIS=SIZE,...",
        "help": "divide parameters and batches among devices: data, fsdp and tensor, -1 for the "
        "rest",
    },
    "--rules": {
        "metavar": "NAME|FILE",
        "help": "with --mesh, how parameters are divided: dp, fsdp, tp, fsdp_tp (default) or a "
        ".toml file",
    },
    "--processor": {
        "help": "directory or hub id of the tokenizer, where the model has none",
    },
    "--compat": {
        "choices": ("original", "native"),
        "help": "reproduce the original code's or transformers' results exactly",
    },
    "--adapter": {
        "metavar": "DIR",
        "help": "directory or hub id of a PEFT adapter to merge into the model (an adapter that "
        "names its base model is a --model by itself)",
    },
    "--weights": {
        "metavar": "MODEL",
        "help": "if --model is a directory of exported programs without weights: the checkpoint "
        "that it was exported from",
    },
    "--dtype": {
        "choices": ("float32", "bfloat16", "float16"),
        "help": "of weights and activations (default: float32)",
    },
    "--matmul-precision": {
        "choices": ("default", "high", "highest"),
        "help": "how float32 is multiplied on a GPU or TPU: highest (the default) in float32, the "
        "others faster and less exact",
    },
    "--quantize": {
        "choices": ("int8",),
        "help": "keep the decoder's and the token table's weights in int8: a third less memory of "
        "base in float32, and slightly other answers",
    },
    "--beams": {"type": int, "help": "beam search width (default: the checkpoint's)"},
    "--max-new-tokens": {
        "type": int,
        "help": "longest answer (default: what the model can hold)",
    },
    "--sample": {
        "action": "store_true",
        "help": "draw each token at random instead of the best",
    },
    "--seed": {"type": int, "help": "with --sample: the same seed gives the same answers"},
    "--temperature": {"type": float, "help": "with --sample (default: 1.0)"},
    "--top-k": {"type": int, "help": "with --sample: of the K best tokens"},
    "--top-p": {"type": float, "help": "with --sample: of the best that add up to P"},
    "--free-prompt": {
        "action": "store_true",
        "help": "allow prompts that look like a task and are none that the model declares, such "
        "as a fine-tune's <DocVQA>; without it they are refused as misspelt",
    },
    "--batch-size": {"type": positive, "default": 8, "help": "default: %(default)s"},
    "--block-size": {
        "type": int,
        "metavar": "N",
        "help": "images in a block (default: 512, 32 on a CPU, and at least four batches)",
    },
    "--workers": {
        "type": int,
        "metavar": "N",
        "help": "processes that read images, 0 for none (default: one for each core but one, at "
        "most 16)",
    },
    "--process-index": {
        "type": int,
        "metavar": "I",
        "help": "this is process I, from 0, of several that share DIR (default: what "
        "jax.distributed, SLURM, Open MPI or Cloud TPU says)",
    },
    "--process-count": {"type": int, "metavar": "N", "help": "how many there are"},
    "--extend": {
        "action": "store_true",
        "help": "the inputs have grown since the run in DIR began: do the new ones too, in blocks "
        "behind the others",
    },
}

Options = TypeVar("Options", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and how it is loaded; see the options' help.

    Raises:
        ValueError: --rules without --mesh.
    """

    model: str = _DEFAULT_MODEL
    revision: str | None = None
    adapter: str | None = None
    processor: str | None = None
    weights: str | None = None
    compat: Literal["original", "native"] | None = None
    dtype: str | None = None
    matmul_precision: Literal["default", "high", "highest"] | None = None
    quantize: Literal["int8"] | None = None
    mesh: str | None = None
    rules: str | None = None

    def __post_init__(self) -> None:
        if self.rules is not None and self.mesh is None:
            raise ValueError(
                "--rules belongs to --mesh: name the mesh too, for example --mesh data=-1"
            )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling instead of the best answer; None leaves a setting as the checkpoint has it."""

    sample: bool = False
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Decoding; None leaves a setting as the checkpoint has it.

    Attributes:
        beams: width of the beam search.
        max_new_tokens: the longest answer.
        sampling: None for a command that does not sample.

    Raises:
        ValueError: a value out of range, or sampling without a seed.
    """

    beams: int | None = None
    max_new_tokens: int | None = None
    sampling: SamplingOptions | None = None

    def __post_init__(self) -> None:
        # What suits no checkpoint is refused before one is loaded.
        GenerationConfig(**self.settings())
        if self.sampling is not None and self.sampling.sample:
            _check_seed(self.sampling.seed)

    def settings(self) -> dict[str, Any]:
        """The decoding settings that are given, by their names in `GenerationConfig`."""
        given = {"num_beams": self.beams, "max_new_tokens": self.max_new_tokens}
        sampling = self.sampling
        if sampling is not None:
            given |= {
                "do_sample": sampling.sample or None,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
            }
        return {name: value for name, value in given.items() if value is not None}


def add_shared(parser: Any, *names: str) -> None:
    """Add options that several commands have to a parser or group, in the order of `names`."""
    for name in names:
        parser.add_argument(name, **_SHARED[name])


def model_from_anywhere(model: str) -> str:
    """--model, as a process in another working directory has to name it."""
    from florence_jax.checkpoint.hub import BUNDLED

    is_path = model not in BUNDLED and Path(model).expanduser().exists()
    return os.path.abspath(Path(model).expanduser()) if is_path else model


def options_from(cls: type[Options], /, arguments: argparse.Namespace, **given: Any) -> Options:
    """A dataclass of options from the parsed arguments of the same names.

    Args:
        cls: the dataclass; a field that the command does not offer keeps its default.
        arguments: of the command line.
        given: fields that are not taken from the arguments.
    """
    names = {field.name for field in dataclasses.fields(cls)} & vars(arguments).keys()
    parsed = {name: getattr(arguments, name) for name in names - given.keys()}
    return cls(**parsed, **given)


def decoding_from(arguments: argparse.Namespace) -> DecodingOptions:
    """The decoding options of a command, with those of sampling where it has them."""
    has_sampling = hasattr(arguments, "seed")
    sampling = options_from(SamplingOptions, arguments) if has_sampling else None
    return options_from(DecodingOptions, arguments, sampling=sampling)


def load_checkpoint_pipeline(options: ModelOptions, *, progress: bool) -> Florence2Pipeline:
    """The pipeline of a checkpoint."""
    from florence_jax.inference.pipeline import Florence2Pipeline

    given = {name: value for name, value in vars(options).items() if value is not None}
    given.pop("weights", None)
    return Florence2Pipeline.from_pretrained(given.pop("model"), **given, progress=progress)


def load_pipeline(options: ModelOptions, *, progress: bool) -> BasePipeline:
    """The pipeline of a checkpoint, or of exported programs if --model is a directory of them."""
    from florence_jax.export.manifest import is_artifact

    directory = Path(options.model)
    if not is_artifact(directory):
        if options.weights is not None:
            raise ValueError(
                f"--weights belongs to exported programs, and {options.model} is no directory of "
                "them: leave it out"
            )
        return load_checkpoint_pipeline(options, progress=progress)
    from florence_jax.inference.exported_pipeline import load_exported

    fixed = ("dtype", "matmul_precision", "quantize", "revision", "adapter", "processor")
    for name in (*fixed, "mesh", "rules"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is fixed by the export in {directory}: leave it out"
            )
    pipeline = load_exported(directory, weights=options.weights)
    return pipeline if not options.compat else dataclasses.replace(pipeline, compat=options.compat)


def decoding_settings(pipeline: BasePipeline, options: DecodingOptions) -> GenerationConfig:
    """The pipeline's decoding settings, changed as the options say.

    Raises:
        ValueError: sampling without a seed, or options of sampling without it.
    """
    settings = dataclasses.replace(pipeline.generation, **options.settings())
    if options.sampling is not None:
        _check_sampling(options.sampling, settings)
    return settings


def _check_sampling(sampling: SamplingOptions, settings: GenerationConfig) -> None:
    if settings.do_sample:
        _check_seed(sampling.seed)
        return
    names = ("seed", "temperature", "top_k", "top_p")
    idle = [name for name in names if getattr(sampling, name) is not None]
    if idle:
        raise ValueError(
            f"--{idle[0].replace('_', '-')} belongs to --sample: the best answer is not drawn"
        )


def _check_seed(seed: int | None) -> None:
    if seed is None or not 0 <= seed < 1 << 32:
        # Reported here, and not as the error of every image.
        raise ValueError(
            "sampling (--sample, or do_sample of the checkpoint) needs --seed N, from 0 to "
            "4294967295" + ("" if seed is None else f"; got {seed}")
        )


def say_on_stderr(sentence: str) -> None:
    """Tell the user something that is neither an error nor an answer."""
    print(f"florence-jax: {sentence}", file=sys.stderr)


def run_options(
    arguments: argparse.Namespace,
    *,
    row_format: RowFormat | None = None,
    max_block_size: int | None = None,
) -> RunOptions:
    """How the run that the arguments describe is divided.

    Raises:
        ValueError: numbers that are out of range or do not go together.
    """
    from florence_jax.batch.blocks import RunOptions, find_share

    return RunOptions(
        block_size=getattr(arguments, "block_size", None),
        batch_size=arguments.batch_size,
        max_block_size=max_block_size,
        row_format=row_format,
        workers=arguments.workers,
        share=find_share(arguments.process_index, arguments.process_count),
        extend=getattr(arguments, "extend", False),
    )
