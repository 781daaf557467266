"""`Florence2Pipeline`: images and task prompts in, parsed results out."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from florence_jax.adapters import resolve_model
from florence_jax.checkpoint import CheckpointError, resolve
from florence_jax.export.writer import export_pipeline
from florence_jax.generation import Constraint, GenerationConfig
from florence_jax.inference.base_pipeline import BasePipeline
from florence_jax.inference.batching import DEFAULT_BATCH_SIZE, batch_buckets
from florence_jax.inference.compiled import JitFns
from florence_jax.inference.constraints import AnswerConstraints
from florence_jax.inference.declared_tasks import own_tasks
from florence_jax.inference.load_sharded import (
    DEFAULT_RULES,
    LOADING,
    MeshLike,
    RulesLike,
    load_model,
)
from florence_jax.inference.overrides import check_keywords, with_overrides
from florence_jax.inference.requests import Request
from florence_jax.inference.save_pretrained import SaveFormat, save_pipeline
from florence_jax.inference.warmup import usual_prompts, warm_up
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.model import Model, Params
from florence_jax.processing import (
    TASKS,
    FlorenceTokenizer,
    ImageConfig,
    build_prompt,
    load_tokenizer,
)
from florence_jax.processing.request_check import check_task_of_data
from florence_jax.processing.tasks import Compat, check_compat
from florence_jax.quantization import Quantization, quantized_modules
from florence_jax.runtime.compilation_cache import use_compilation_cache
from florence_jax.sharding import make_mesh

# Keywords of `warmup` beside the decoding settings.
_WARMUP = ("image_sizes", "prompts", "batch_sizes", "generation", "constrained", "progress")
# Where the tokenizer of checkpoints that ship none comes from; all Florence-2s share it.
BASE_PROCESSOR = "microsoft/Florence-2-base"


@dataclass(frozen=True, kw_only=True)
class Florence2Pipeline(BasePipeline):
    """A checkpoint, ready to answer.

    The first pipeline of a process lets jax keep compiled programs on disk, see
    `florence_jax.runtime.compilation_cache`.

    Attributes:
        model, params: what `florence_jax.load` returns.
        tokenizer, image_config, generation, compat, tasks: see `BasePipeline`.
        source: directory of the checkpoint's configuration and processor files, which
            `save_pretrained` copies; None for a model that was made in code.
        tokenizer_source: the same for the tokenizer's files.
        replicas: devices that each hold all parameters and answer a part of every batch, see
            `replicate_over_local_devices`; None for one device, or for the model's own mesh.
    """

    model: Model
    params: Params
    source: Path | None = None
    tokenizer_source: Path | None = None
    replicas: Mesh | None = None

    def __post_init__(self) -> None:
        use_compilation_cache()

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        kept = ", int8 weights" if quantized_modules(self.params) else ""
        height, width = self.image_config.size
        return (
            f"Florence2Pipeline({self.model!r}{kept}, {count / 1e6:.1f}M parameters, images "
            f"{width}x{height}, compat={self.compat!r})"
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: str = "float32",
        matmul_precision: MatmulPrecision = "highest",
        quantize: Quantization | None = None,
        mesh: MeshLike | None = None,
        rules: RulesLike = DEFAULT_RULES,
        revision: str | None = None,
        adapter: str | Path | None = None,
        merge_adapter: bool = True,
        processor: str | Path | None = None,
        compat: Compat = None,
        verify: bool = True,
        progress: bool = False,
        **unknown: Any,
    ) -> Florence2Pipeline:
        """Load a published or fine-tuned checkpoint.

        Args:
            source: a directory or a hub id such as "microsoft/Florence-2-base-ft", in the original
                or in transformers' native naming, or a directory in this library's own format; the
                directory of a training run or of a PEFT adapter; or "shapes", the bundled model.
            dtype: "float32", "bfloat16" or "float16", for weights and activations.
            matmul_precision: how float32 is multiplied: "highest" computes in float32 everywhere;
                "high" and "default" are faster and less exact on a GPU or TPU, see `Model`.
            quantize: "int8" keeps the decoder's and the token table's weights in that, see
                `florence_jax.quantization`; by default everything is of `dtype`.
            mesh, rules: devices to divide parameters and batches among, see `florence_jax.load`.
            revision: branch, tag or commit of a hub id.
            adapter, merge_adapter: a PEFT adapter to add to the model, see `florence_jax.load`.
            processor: directory or hub id to take the tokenizer from. By default `source` itself
                or, where it has none, `microsoft/Florence-2-base`, with a warning that says so.
            verify: compare a checkpoint in this library's own format with its manifest first.
            progress: show a bar while weights are read.

        Raises:
            CheckpointError, ValueError: what is missing or wrong, and what to do.
            TypeError: a keyword that does not exist (`unknown` takes none).
        """
        check_keywords(unknown, (*LOADING, "processor", "compat", "progress"))
        check_compat(compat)
        chosen = (
            source,
            dtype,
            matmul_precision,
            quantize,
            mesh,
            rules,
            revision,
            adapter,
            merge_adapter,
        )
        files, model, params = load_model(*chosen, verify=verify, progress=progress)
        directory = files.directory
        tokenizer, tokenizer_source = _find_tokenizer(directory, files.has_tokenizer, processor)
        return cls(
            model=model,
            params=params,
            tokenizer=tokenizer,
            image_config=ImageConfig.from_hf(files.preprocessor or {}),
            generation=GenerationConfig.from_hf(files.config, files.generation),
            compat=compat,
            tasks=own_tasks(directory),
            source=directory,
            tokenizer_source=tokenizer_source,
        )

    @property
    def programs(self) -> JitFns:
        return JitFns(model=self.model, params=self.params, replicas=self.replicas)

    @functools.cached_property
    def constraints(self) -> AnswerConstraints:
        return AnswerConstraints(self.tokenizer, self.model.config.text.vocab_size)

    def warmup(
        self,
        *,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        prompts: Iterable[str] | None = None,
        batch_sizes: Sequence[int] = batch_buckets(DEFAULT_BATCH_SIZE),
        generation: GenerationConfig | None = None,
        constrained: bool = False,
        progress: bool = True,
        **overrides: Any,
    ) -> dict[str, float]:
        """Compile now what requests will need, without running it.

        Programs differ by image size, by batch size (calls use 1, 2, 4, ... up to theirs), by the
        prompt's length (16, 32, 64, ... tokens), by the beams and n-grams of the settings, and by
        the buffers that `max_new_tokens` asks for (64, 128, 256, ...). After a warmup for them, no
        mixture of images, tasks and other settings compiles anything.

        Args:
            image_sizes: (height, width) in pixels; by default the checkpoint's.
            prompts: prompts as requests have them, the longest of each length that will come. By
                default the 15 tasks, without a text where they take one.
            batch_sizes: by default those of calls with the default `batch_size`.
            generation, overrides: decoding settings, as for a call.
            constrained: compile the programs of constrained answers too. Lists of more than a
                hundred labels or two need larger tables, and then programs of their own.
            progress: show a bar on stderr.

        Returns:
            Seconds by program, read from the cache on disk where it has them.
        """
        return warm_up(
            self.programs,
            self.image_config,
            image_sizes=[self.image_config.size] if image_sizes is None else image_sizes,
            prompt_lengths=self._lengths(prompts),
            batch_sizes=batch_sizes,
            settings=with_overrides(generation or self.generation, overrides, _WARMUP),
            constraints=self._usual_constraints(constrained),
            progress=progress,
        )

    def export(
        self,
        path: str | Path,
        *,
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
        image_sizes: Sequence[tuple[int, int]] | None = None,
        prompts: Iterable[str] | None = None,
        batch_sizes: Sequence[int] = batch_buckets(DEFAULT_BATCH_SIZE),
        generation: GenerationConfig | None = None,
        constrained: bool = False,
        include_weights: bool = False,
        overwrite: bool = False,
        progress: bool = False,
        **overrides: Any,
    ) -> None:
        """Write the compiled part as StableHLO, to answer elsewhere without the model's code.

        `florence_jax.load_exported(path)` reads it. The programs take the weights as arguments: the
        directory names them by a sha256, and holds them only if told to.

        Args:
            path: the directory to write.
            platforms: what the programs may run on: "cpu", "cuda", "rocm", "tpu".
            image_sizes, prompts, batch_sizes, generation, overrides: the buckets, as for `warmup`;
                beams and n-grams are fixed by them, `max_new_tokens` is the most that can be asked.
            constrained: write the programs of constrained answers too.
            include_weights: put the weights into the directory too.
            overwrite: replace an existing export.
            progress: show a bar on stderr.

        Raises:
            ArtifactError, CheckpointError: what cannot be exported or written, and why.
        """
        export_pipeline(
            self,
            Path(path),
            platforms=platforms,
            image_sizes=[self.image_config.size] if image_sizes is None else image_sizes,
            prompt_lengths=self._lengths(prompts),
            batch_sizes=batch_sizes,
            settings=with_overrides(
                generation or self.generation,
                overrides,
                ("path", "platforms", *_WARMUP, "include_weights", "overwrite"),
            ),
            constraints=self._usual_constraints(constrained),
            include_weights=include_weights,
            overwrite=overwrite,
            progress=progress,
        )

    def save_pretrained(
        self, path: str | Path, format: SaveFormat = "jax", *, overwrite: bool = False
    ) -> None:
        """Write the pipeline as a checkpoint directory, which `from_pretrained` reads.

        Weights keep the pipeline's dtype. The tokenizer's and processor's files are those that it
        was loaded from; decoding settings and image size are the pipeline's.

        Args:
            path: the directory; it appears when it is complete.
            format: "jax" is this library's own, verified when it is loaded; "native" is read by
                transformers' `Florence2ForConditionalGeneration` and `AutoProcessor`; "original" by
                Microsoft's code (beside its `.py` files).
            overwrite: replace an existing checkpoint.

        Raises:
            CheckpointError, ValueError: what cannot be written, and why.
        """
        save_pipeline(self, Path(path).expanduser(), format, overwrite=overwrite)

    def _usual_constraints(self, constrained: bool) -> tuple[Constraint | None, ...]:
        """The constraints to compile for, with a start for one row; None for free answers."""
        if not constrained:
            return (None,)
        return (None, self.constraints([Request(image=None, prompt=next(iter(TASKS)))]))

    def _lengths(self, prompts: Iterable[str] | None) -> list[int]:
        """Tokens of each prompt; of the 15 tasks where there are none."""
        if prompts is None:
            texts = usual_prompts()
        else:
            given = [prompts] if isinstance(prompts, str) else list(prompts)
            for prompt in given:
                # Only its length counts: a task of a fine-tune's own needs no permission here.
                check_task_of_data(prompt, declared=self.declared_tasks)
            texts = list(map(build_prompt, given))
        return [len(ids) for ids in self.tokenizer.encode(texts)]


def replicate_over_local_devices(
    pipeline: BasePipeline, devices: Sequence[Any] | None = None
) -> BasePipeline:
    """The pipeline with its parameters on each of this host's devices, if there are several.

    Exported programs stay on the one device that they were exported for, and a model that is on a
    mesh already on that.
    """
    devices = jax.local_devices() if devices is None else devices
    if len(devices) == 1 or not isinstance(pipeline, Florence2Pipeline):
        return pipeline
    if pipeline.model.mesh is not None:
        return pipeline
    mesh = make_mesh("data=-1", devices)
    params = jax.device_put(pipeline.params, NamedSharding(mesh, PartitionSpec()))
    return dataclasses.replace(pipeline, params=params, replicas=mesh)


def _find_tokenizer(
    directory: Path, has_tokenizer: bool, processor: str | Path | None
) -> tuple[FlorenceTokenizer, Path]:
    """The tokenizer, and the directory of its files."""
    if processor is not None:
        found = resolve_model(processor, weights=False)
        return load_tokenizer(found), found
    if has_tokenizer:
        return load_tokenizer(directory), directory
    warnings.warn(
        f"{directory} has no tokenizer files; taking those of {BASE_PROCESSOR}, which all "
        "published Florence-2 models share (pass processor= to choose another)",
        stacklevel=3,
    )
    try:
        found = resolve(BASE_PROCESSOR, weights=False)
        return load_tokenizer(found), found
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory} has no tokenizer files and {BASE_PROCESSOR} cannot be reached ({error}); "
            "pass processor=DIRECTORY, a folder with a Florence-2 tokenizer.json"
        ) from error
