"""`Florence2Pipeline.save_pretrained`: a pipeline as a checkpoint directory."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tokenizers import Tokenizer

from florence_jax.checkpoint import read_config, save_checkpoint
from florence_jax.checkpoint.hub import METADATA_FILES
from florence_jax.checkpoint.json_files import (
    IMAGE_TOKEN,
    dump_json,
    post_processor_config,
    settings_json,
    tokenizer_config,
)
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.pytorch.save import save_torch
from florence_jax.generation import GenerationConfig
from florence_jax.model.handle import adapted_modules
from florence_jax.processing import FlorenceTokenizer, ImageConfig, load_tokenizer
from florence_jax.processing.vocabulary import add_special_tokens
from florence_jax.quantization import quantized_modules

if TYPE_CHECKING:
    from florence_jax.inference.pipeline import Florence2Pipeline

SaveFormat = Literal["jax", "native", "original"]

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt"),
)


def save_pipeline(
    pipeline: Florence2Pipeline, directory: Path, format: SaveFormat, *, overwrite: bool
) -> None:
    """See `Florence2Pipeline.save_pretrained`."""
    if format not in get_args(SaveFormat):
        raise ValueError(
            f'format is {format!r}, expected "jax" (this library\'s own), "native" (transformers) '
            'or "original" (Microsoft\'s code)'
        )
    if quantized_modules(pipeline.params):
        raise ValueError(
            "int8 weights cannot be saved, they are rounded: load the checkpoint without "
            "quantize= and save that"
        )
    if adapted_modules(pipeline.params):
        raise ValueError(
            "the adapter is kept beside the weights, and a checkpoint has no place for it: load it "
            "with merge_adapter=True and save that"
        )
    model, params = pipeline.model, pipeline.params
    if model.layout is not None:
        params = unflatten(model.layout.to_true_shape(dict(flatten(params))))
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        _write_files(pipeline, files, for_transformers=format == "native")
        if format == "jax":
            save_checkpoint(directory, model.config, params, files=files, overwrite=overwrite)
        else:
            save_torch(directory, model.config, params, format, files=files, overwrite=overwrite)


def _write_files(pipeline: Florence2Pipeline, files: Path, *, for_transformers: bool) -> None:
    """Everything beside the weights: the files that the pipeline was loaded from, with what it
    does otherwise."""
    _copy(pipeline.source, files, METADATA_FILES)
    if pipeline.tokenizer_source != pipeline.source:
        for name in _TOKENIZER_FILES:
            (files / name).unlink(missing_ok=True)
        _copy(pipeline.tokenizer_source, files, _TOKENIZER_FILES)
    if not (files / "config.json").is_file():
        _dump(files / "config.json", pipeline.model.config.to_hf("native"))
    saved = read_config(files)
    if not _same_tokenizer(pipeline.tokenizer, files):
        pipeline.tokenizer.save(files)
    if GenerationConfig.from_hf(saved.config, saved.generation) != pipeline.generation:
        settings = {**(saved.generation or {}), **settings_json(pipeline.generation)}
        _dump(files / "generation_config.json", settings)
    if (
        saved.preprocessor is None
        or ImageConfig.from_hf(saved.preprocessor) != pipeline.image_config
    ):
        _write_image_processor(pipeline, files)
    if for_transformers:
        _complete_for_transformers(pipeline, files)


def _copy(source: Path | None, files: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, files / name)


def _same_tokenizer(tokenizer: FlorenceTokenizer, files: Path) -> bool:
    try:
        return load_tokenizer(files).sha256() == tokenizer.sha256()
    except FileNotFoundError:
        return False


def _image_settings(pipeline: Florence2Pipeline) -> dict[str, Any]:
    config = pipeline.image_config
    return config.to_hf(pipeline.model.config.num_image_tokens(*config.size))


def _write_image_processor(pipeline: Florence2Pipeline, files: Path) -> None:
    settings = _image_settings(pipeline)
    _dump(files / "preprocessor_config.json", settings | {"processor_class": "Florence2Processor"})
    whole = files / "processor_config.json"
    if whole.is_file():
        _dump(whole, json.loads(whole.read_text("utf-8")) | {"image_processor": settings})


def _complete_for_transformers(pipeline: Florence2Pipeline, files: Path) -> None:
    """Add what transformers' Florence2Processor reads and the original repositories lack:
    a tokenizer with all tokens and `<image>`, and a processor_config.json."""
    backend = _with_image_token(pipeline, files)
    if backend is not None:
        for name in _TOKENIZER_FILES:
            (files / name).unlink(missing_ok=True)
        backend.save(str(files / "tokenizer.json"))
        positions = pipeline.model.config.text.max_position_embeddings
        _dump(files / "tokenizer_config.json", tokenizer_config(positions))
    whole = files / "processor_config.json"
    if backend is not None or not whole.is_file():
        fields = json.loads(whole.read_text("utf-8")) if whole.is_file() else {}
        fields.pop("auto_map", None)
        _dump(
            whole,
            fields
            | {
                "image_processor": _image_settings(pipeline),
                "num_additional_image_tokens": 0,
                "post_processor_config": post_processor_config(),
                "processor_class": "Florence2Processor",
            },
        )
        _write_image_processor(pipeline, files)


def _with_image_token(pipeline: Florence2Pipeline, files: Path) -> Tokenizer | None:
    """The tokenizer with `<image>` at the model's id; None where the files have it already.

    Raises:
        ValueError: the model's image token is not the next one after the tokenizer's.
    """
    path = files / "tokenizer.json"
    if path.is_file() and Tokenizer.from_file(str(path)).token_to_id(IMAGE_TOKEN) is not None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        backend = Tokenizer.from_file(str(pipeline.tokenizer.save(folder)))
    add_special_tokens(backend, (IMAGE_TOKEN,))
    wanted, found = pipeline.model.config.image_token_id, backend.token_to_id(IMAGE_TOKEN)
    if found != wanted:
        raise ValueError(
            f"transformers needs the token {IMAGE_TOKEN} at id {wanted}, and the tokenizer would "
            f'give it {found}: save in format="original" or "jax", or take the tokenizer files of '
            "florence-community/Florence-2-base (processor=)"
        )
    return backend


def _dump(path: Path, fields: Any) -> None:
    path.write_bytes(dump_json(fields))
