"""Exported programs: reading them, and running them with jax and none of the model's code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from safetensors import SafetensorError, safe_open

from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.config import Florence2Config
from florence_jax.export.manifest import (
    CONFIG,
    WEIGHTS,
    ArtifactError,
    Generator,
    Manifest,
    plain_values,
    read_artifact,
    weights_sha256,
)
from florence_jax.generation import Constraint, GenerateOutput, GenerationConfig, make_plan
from florence_jax.generation.decode_config import DecodeStatic
from florence_jax.generation.inputs import check_prompt, pad_prompt
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.quantization import quantized
from florence_jax.runtime.text_file import TextFileError, check_regular


def load_programs(
    directory: Path, weights: str | Path | Mapping[str, Any] | None
) -> ExportedPrograms:
    """The programs of a directory with their weights; see `florence_jax.load_exported`.

    Raises:
        ArtifactError: the directory is damaged, is for another platform, or the weights are missing
            or others.
    """
    manifest, contents = read_artifact(directory)
    platform = jax.export.default_export_platform()
    if platform not in manifest.platforms:
        raise ArtifactError(
            f"{directory} was exported for {', '.join(manifest.platforms)}, and jax runs on "
            f"{platform} here: export it with platforms that include {platform!r}, or choose "
            "another by JAX_PLATFORMS"
        )
    return ExportedPrograms(
        manifest=manifest,
        config=Florence2Config.from_hf(json.loads(contents[CONFIG])),
        params=_weights(directory, manifest, weights),
        contents=contents,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedPrograms:
    """The compiled functions of a directory, as `florence_jax.inference.engine` takes them."""

    manifest: Manifest
    config: Florence2Config
    params: Any = field(repr=False)
    contents: Mapping[str, bytes] = field(repr=False)
    _loaded: dict[str, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        made = self.manifest
        return (
            f"ExportedPrograms({self.config.describe()}, {made.dtype}"
            f"{', ' + made.quantize if made.quantize else ''}, for {', '.join(made.platforms)}: "
            f"{len(made.encoders)} encoders, {len(made.generators)} generators)"
        )

    @property
    def matmul_precision(self) -> MatmulPrecision:
        return self.manifest.matmul_precision

    @property
    def device_count(self) -> int:
        return 1

    def batch_buckets(self, batch_size: int) -> tuple[int, ...]:
        sizes = sorted({encoder.batch for encoder in self.manifest.encoders})
        return tuple(size for size in sizes if size <= batch_size) or (sizes[0],)

    def encode(self, pixel_values: np.ndarray | jax.Array) -> tuple[jax.Array, ...]:
        batch, height, width, _ = pixel_values.shape
        for encoder in self.manifest.encoders:
            if (encoder.batch, encoder.image_size) == (batch, (height, width)):
                return self._run(encoder.file)(self.params, pixel_values)
        sizes = sorted({encoder.image_size for encoder in self.manifest.encoders})
        raise ArtifactError(
            f"no encoder was exported for images of {height}x{width} pixels, only for "
            f"{', '.join(f'{rows}x{columns}' for rows, columns in sizes)}: export it with this size"
        )

    def generate(
        self,
        image_features: jax.Array,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        settings: GenerationConfig,
        constraint: Constraint | None = None,
        rng: jax.Array | None = None,
    ) -> GenerateOutput:
        if rng is not None:
            raise ArtifactError(
                "exported programs take no random key: ask them with do_sample=False, or load the "
                "checkpoint itself to sample"
            )
        plan, values = make_plan(settings, self.config.text, constraint)
        ids, mask = check_prompt(
            input_ids, attention_mask, plan.pad_token_id, self.config.text.vocab_size
        )
        table = None if constraint is None else np.shape(constraint.next_state)
        batch, image_tokens, _ = image_features.shape
        generator = self._generator(batch, image_tokens, ids.shape[1], plan, table)
        ids, mask = pad_prompt(ids, mask, generator.prompt_tokens, plan.pad_token_id)
        output = self._run(generator.file)(
            self.params,
            image_features,
            ids,
            mask,
            plain_values(values.with_room(generator.plan.buffers)),
        )
        return GenerateOutput(**output)

    def _generator(
        self,
        batch: int,
        image_tokens: int,
        prompt_tokens: int,
        plan: DecodeStatic,
        table: tuple[int, ...] | None,
    ) -> Generator:
        """The smallest program with room for all of it."""

        def fits(generator: Generator) -> bool:
            own, wanted = generator.plan, plan.buffers
            return (
                generator.batch == batch
                and generator.constraint == table
                and self.config.num_image_tokens(*generator.image_size) == image_tokens
                and generator.prompt_tokens >= prompt_tokens
                and own.buffers[: len(wanted)] == wanted
                and dataclasses.replace(own, buffers=wanted) == plan
            )

        fitting = [generator for generator in self.manifest.generators if fits(generator)]
        if not fitting:
            raise ArtifactError(
                f"no program was exported for {batch} prompts of {prompt_tokens} tokens about "
                f"{image_tokens} image tokens, decoded by {plan}{_confined(table)}. There are:\n"
                + "\n".join(f"  {generator}" for generator in self.manifest.generators)
                + "\nExport one for it, or ask within these"
            )
        return min(fitting, key=lambda found: (found.prompt_tokens, len(found.plan.buffers)))

    def _run(self, file: str) -> Callable[..., Any]:
        if file not in self._loaded:
            try:
                exported = jax.export.deserialize(bytearray(self.contents[file]))
            except Exception as error:
                # jax reports a format that it does not know in many ways.
                raise ArtifactError(
                    f"{file} was exported by jax {self.manifest.made_with['jax']} and jax "
                    f"{jax.__version__} cannot read it ({error}): export again"
                ) from error
            self._loaded[file] = jax.jit(exported.call)
        return self._loaded[file]


def _confined(table: tuple[int, ...] | None) -> str:
    if table is None:
        return ""
    return f" and confined by a table of {table[0]} states and {table[1]} classes of tokens"


def _weights(
    directory: Path, manifest: Manifest, given: str | Path | Mapping[str, Any] | None
) -> Any:
    """The parameters as they were exported, on the device."""
    if given is None and WEIGHTS not in manifest.files:
        raise ArtifactError(
            f"{directory} holds no weights: pass weights=, the checkpoint that it was exported "
            "from, or export it with include_weights=True"
        )
    if given is None:
        params = _included(directory / WEIGHTS)
    elif isinstance(given, Mapping):
        params = given
    else:
        from florence_jax.adapters import resolve_model
        from florence_jax.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(resolve_model(given), dtype=manifest.dtype)
        params = quantized(checkpoint.params, manifest.quantize)
    digest = weights_sha256(params)
    if digest != manifest.weights_sha256:
        raise ArtifactError(
            f"these are not the weights that {directory} was exported with: their sha256 is "
            f"{digest} in {manifest.dtype}, the manifest says {manifest.weights_sha256}. Pass the "
            "checkpoint that it was exported from, or export this one"
        )
    return params


def _included(path: Path) -> dict[str, Any]:
    try:
        check_regular(path)
        with safe_open(path, "numpy") as file:
            names = file.keys()
            return unflatten({name: jax.device_put(file.get_tensor(name)) for name in names})
    except (OSError, TextFileError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} is missing or damaged ({error}): copy or export it again"
        ) from error
