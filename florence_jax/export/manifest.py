"""The manifest of exported programs: the files of their directory, and checks that it is whole.

    manifest.json       what follows, the sizes and sha256 of every file, and its own sha256
    config.json         the model's sizes, as transformers writes them
    tokenizer.json      the tokenizer
    processor_config.json  only where the checkpoint declares tasks of its own
    *.stablehlo         one serialised `jax.export.Exported` per bucket of shapes
    weights.safetensors only where they were included

Programs take the weights as arguments. Without them, the directory says by a sha256 over every
parameter which weights it was made for; damage and mix-ups are noticed, and that is all: it is no
signature. Nothing here imports the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from florence_jax.checkpoint.param_tree import flatten
from florence_jax.generation import Constraint, DecodeParams, DecodeStatic, GenerationConfig
from florence_jax.generation.optional_processors import OptionalValues, SequenceBias
from florence_jax.matmul_precision import MatmulPrecision
from florence_jax.processing import ImageConfig
from florence_jax.processing.tasks import Compat
from florence_jax.quantization import Quantization
from florence_jax.runtime.error_text import error_text
from florence_jax.runtime.jsonl import sealed_json
from florence_jax.runtime.text_file import TextFileError, parse_json, read_bytes

MANIFEST = "manifest.json"
CONFIG = "config.json"
PROCESSOR = "processor_config.json"
WEIGHTS = "weights.safetensors"
FORMAT = "florence-jax exported programs"
VERSION = 2
_MAX_MANIFEST_BYTES = 8 << 20
# A program has a few MB: weights are its arguments.
_MAX_FILE_BYTES = 1 << 30


class ArtifactError(ValueError):
    """Exported programs that cannot be written, loaded or asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The file of a program that encodes `batch` images of `image_size` (height, width) pixels."""

    file: str
    batch: int
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Generator:
    """The file of a program that answers `batch` prompts, padded to `prompt_tokens`, about images
    of `image_size`."""

    file: str
    batch: int
    image_size: tuple[int, int]
    prompt_tokens: int
    plan: DecodeStatic
    # The states and classes of the tables that it takes; None: it does not constrain.
    constraint: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a directory of exported programs.

    Attributes:
        made_with: versions of florence_jax and jax.
        platforms: as `jax.export` calls them: "cpu", "cuda", "rocm", "tpu".
        dtype: of activations, and of weights that are not quantised.
        matmul_precision: how float32 is multiplied, see `florence_jax.model.Model`.
        quantize: how weights are, see `florence_jax.quantization`.
        image, generation, compat: the pipeline's settings.
        weights_sha256: `weights_sha256` of the parameters.
        encoders, generators: the programs.
        files: every file's size and sha256, by name; this one's left out.
    """

    made_with: Mapping[str, str]
    platforms: tuple[str, ...]
    dtype: str
    matmul_precision: MatmulPrecision
    quantize: Quantization | None
    image: ImageConfig
    generation: GenerationConfig
    compat: Compat
    weights_sha256: str
    encoders: tuple[Encoder, ...]
    generators: tuple[Generator, ...]
    files: Mapping[str, Mapping[str, Any]]

    def encode(self) -> bytes:
        """JSON that ends with its own digest."""
        return sealed_json({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)})


def file_entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def is_artifact(directory: Path) -> bool:
    """Does `directory` claim to hold exported programs?"""
    path = directory / MANIFEST
    # A pipe would be waited for, and a saved checkpoint's reader says what is wrong with it.
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(_MAX_MANIFEST_BYTES)
    except OSError:
        return False


def read_artifact(directory: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and every file but the weights, compared with it.

    Raises:
        ArtifactError: something is missing, damaged, edited, or of a newer format.
    """
    manifest = _read_manifest(directory)
    contents = {}
    for name, entry in manifest.files.items():
        if Path(name).name != name:
            raise ArtifactError(f"{directory / MANIFEST} names the file {name!r}, outside of it")
        if name == WEIGHTS:
            continue
        size = entry.get("bytes") if isinstance(entry, Mapping) else None
        if not isinstance(size, int) or size > _MAX_FILE_BYTES:
            raise ArtifactError(
                f"{directory / MANIFEST} says that {name!r:.100} has {size!r:.100} bytes; at most "
                f"{_MAX_FILE_BYTES} are read"
            )
        try:
            content = read_bytes(directory / name, max_bytes=max(size, 0))
        except (OSError, TextFileError) as error:
            raise ArtifactError(
                f"{directory / name} cannot be read or does not have the size that {MANIFEST} says "
                f"({error_text(error)}): copy or export it again"
            ) from error
        if file_entry(content) != entry:
            raise ArtifactError(
                f"{directory / name} is damaged or was changed: it does not have the size and "
                f"sha256 that {MANIFEST} says. Copy or export it again"
            )
        contents[name] = content
    return manifest, contents


def weights_sha256(params: Mapping[str, Any]) -> str:
    """One digest over every parameter's path, dtype, shape and bytes, in the order of paths.

    It is of the arrays as they are in memory, and so the same however a checkpoint is stored.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params)):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{path} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def plain_values(values: DecodeParams) -> dict[str, Any]:
    """The traced half of the settings as a program takes it."""
    plain = {name: value for name, value in values._asdict().items() if value is not None}
    if values.constraint is not None:
        plain["constraint"] = values.constraint._asdict()
    if values.optional is not None:
        plain["optional"] = {
            name: value._asdict() if isinstance(value, SequenceBias) else value
            for name, value in values.optional._asdict().items()
            if value is not None
        }
    return plain


def decoding_values(plain: Mapping[str, Any]) -> DecodeParams:
    """The inverse of `plain_values`."""
    values = DecodeParams(**plain)
    if values.constraint is not None:
        values = values._replace(constraint=Constraint(**plain["constraint"]))
    if values.optional is not None:
        settings: dict[str, Any] = {
            name: SequenceBias(**value) if isinstance(value, Mapping) else value
            for name, value in plain["optional"].items()
        }
        values = values._replace(optional=OptionalValues(**settings))
    return values


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    try:
        fields = parse_json(read_bytes(path, max_bytes=_MAX_MANIFEST_BYTES), str(path))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}): {directory} is no directory of exported programs, "
            "or not a whole one"
        ) from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ArtifactError(f"{path} does not belong to exported programs, or is damaged")
    if fields.get("version") != VERSION:
        raise ArtifactError(
            f"{path} is of version {fields.get('version')!r}; this release reads version {VERSION}"
        )
    digest = fields.pop("sha256", None)
    if json.loads(sealed_json(fields))["sha256"] != digest:
        raise ArtifactError(
            f"{path} is damaged or was edited: it does not have the sha256 that it ends with. "
            "Copy or export it again"
        )
    try:
        return _parse(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} was written by florence_jax {fields.get('made_with')}, and this release "
            f"cannot use it ({error!r}): export again"
        ) from error


def _parse(fields: dict[str, Any]) -> Manifest:
    own = {field.name: fields[field.name] for field in dataclasses.fields(Manifest)}
    own["platforms"] = tuple(own["platforms"])
    own["image"] = ImageConfig(**_tuples(own["image"]))
    own["generation"] = GenerationConfig(**own["generation"])
    own["encoders"] = tuple(Encoder(**_tuples(entry)) for entry in own["encoders"])
    own["generators"] = tuple(
        Generator(**_tuples(entry | {"plan": DecodeStatic(**_tuples(entry["plan"]))}))
        for entry in own["generators"]
    )
    return Manifest(**own)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone; every sequence here is a tuple."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
