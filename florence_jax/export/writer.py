"""Export a pipeline: its programs as StableHLO, which run without the model's code."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.export
import numpy as np

import florence_jax
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.save import save_tensors
from florence_jax.export.manifest import (
    CONFIG,
    MANIFEST,
    PROCESSOR,
    WEIGHTS,
    ArtifactError,
    Encoder,
    Generator,
    Manifest,
    decoding_values,
    file_entry,
    plain_values,
    weights_sha256,
)
from florence_jax.generation import Constraint, GenerationConfig
from florence_jax.generation.decode_config import DecodeStatic
from florence_jax.generation.generate import generate_jit
from florence_jax.generation.inputs import prepare_inputs, prompt_buckets
from florence_jax.model import Model, Params
from florence_jax.quantization import quantized_modules
from florence_jax.runtime.atomic_dir import atomic_directory
from florence_jax.runtime.terminal_bar import terminal_bar

if TYPE_CHECKING:
    from florence_jax.inference.pipeline import Florence2Pipeline


def export_pipeline(
    pipeline: Florence2Pipeline,
    directory: Path,
    *,
    platforms: Sequence[str],
    image_sizes: Sequence[tuple[int, int]],
    prompt_lengths: Sequence[int],
    batch_sizes: Sequence[int],
    settings: GenerationConfig,
    constraints: Sequence[Constraint | None],
    include_weights: bool,
    overwrite: bool,
    progress: bool,
) -> Manifest:
    """Write the directory that `manifest` describes; see `Florence2Pipeline.export`."""
    if settings.do_sample:
        raise ArtifactError("do_sample=True is not exported: exported programs take no random key")
    config = pipeline.model.config
    positions = config.text.max_position_embeddings
    buckets = {
        size: prompt_buckets(prompt_lengths, config.num_image_tokens(*size), positions)
        for size in image_sizes
    }
    exports = [
        export
        for size, batch in itertools.product(buckets, batch_sizes)
        for export in _exports(pipeline.model, size, batch, buckets[size], settings, constraints)
    ]
    shapes = jax.tree.map(_shape, pipeline.params)
    with atomic_directory(directory, overwrite=overwrite) as new:
        files = {}

        def write(name: str, content: bytes) -> None:
            (new / name).write_bytes(content)
            files[name] = file_entry(content)

        for export in terminal_bar(exports, unit="program", shown=progress):
            exported = jax.export.export(jax.jit(export.function), platforms=tuple(platforms))
            write(export.program.file, bytes(exported(shapes, *export.arguments).serialize()))
        write(CONFIG, _json(config.to_hf("native")))
        write("tokenizer.json", pipeline.tokenizer.save(new).read_bytes())
        if pipeline.tasks:
            write(PROCESSOR, _json({"tasks": sorted(pipeline.tasks)}))
        if include_weights:
            files[WEIGHTS] = _write_weights(new / WEIGHTS, pipeline.params)
        manifest = Manifest(
            made_with={"florence_jax": florence_jax.__version__, "jax": jax.__version__},
            platforms=tuple(platforms),
            dtype=pipeline.model.dtype,
            matmul_precision=pipeline.model.matmul_precision,
            quantize="int8" if quantized_modules(pipeline.params) else None,
            image=pipeline.image_config,
            generation=settings,
            compat=pipeline.compat,
            weights_sha256=weights_sha256(pipeline.params),
            encoders=tuple(e.program for e in exports if isinstance(e.program, Encoder)),
            generators=tuple(e.program for e in exports if isinstance(e.program, Generator)),
            files=files,
        )
        (new / MANIFEST).write_bytes(manifest.encode())
    return manifest


@dataclass(frozen=True)
class _Export:
    """A program to be, a function of the parameters and `arguments`."""

    program: Encoder | Generator
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def _exports(
    model: Model,
    size: tuple[int, int],
    batch: int,
    prompt_lengths: Sequence[int],
    settings: GenerationConfig,
    constraints: Sequence[Constraint | None],
) -> Iterator[_Export]:
    """Everything for one image size and batch size. Arguments and results are plain containers,
    so that a caller of a program needs no class of ours."""
    name = f"{size[0]}x{size[1]}-batch{batch}"

    def encode(params: Params, pixel_values: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(model.encode_image(params, pixel_values))

    yield _Export(
        Encoder(file=f"encode-{name}.stablehlo", batch=batch, image_size=size),
        encode,
        (jax.ShapeDtypeStruct((batch, *size, 3), np.float32),),
    )
    tokens, dim = model.config.num_image_tokens(*size), model.config.text.d_model
    for length, constraint in itertools.product(prompt_lengths, constraints):
        prepared = prepare_inputs(
            model,
            {},
            image_features=jax.ShapeDtypeStruct((batch, tokens, dim), model.dtype),
            input_ids=np.zeros((batch, length), np.int32),
            config=settings,
            constraint=None if constraint is None else constraint.repeated(batch),
        )

        def generate(
            params: Params,
            image_features: jax.Array,
            input_ids: jax.Array,
            attention_mask: jax.Array,
            values: Mapping[str, Any],
            plan: DecodeStatic = prepared.plan,
        ) -> dict[str, Any]:
            output = generate_jit(
                model,
                plan,
                False,
                params,
                image_features,
                input_ids,
                attention_mask,
                decoding_values(values),
                None,
            )
            return output._asdict()

        kind = "generate" if constraint is None else "generate-constrained"
        yield _Export(
            Generator(
                file=f"{kind}-{name}-prompt{length}.stablehlo",
                batch=batch,
                image_size=size,
                prompt_tokens=length,
                plan=prepared.plan,
                constraint=None if constraint is None else np.shape(constraint.next_state),
            ),
            generate,
            (
                prepared.image,
                prepared.input_ids,
                prepared.attention_mask,
                plain_values(prepared.values),
            ),
        )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _write_weights(path: Path, params: Params) -> dict[str, Any]:
    arrays = {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in flatten(params)}
    save_tensors(arrays, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
