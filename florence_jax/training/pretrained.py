"""The model that a run starts from: its config, tokenizer, processor files and parameters."""

import dataclasses
import inspect
import json
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from florence_jax.adapters import resolve_model
from florence_jax.checkpoint import load_checkpoint, plan_checkpoint
from florence_jax.checkpoint.hub import METADATA_FILES
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.config import PRESETS, BartConfig, Florence2Config
from florence_jax.model import Model
from florence_jax.processing import (
    FlorenceTokenizer,
    ImageConfig,
    demo_tokenizer,
    load_tokenizer,
)
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.sharding import ParamSharding
from florence_jax.training.config import TrainConfig
from florence_jax.training.config_loader import from_tree, to_tree
from florence_jax.training.data.storage import is_url
from florence_jax.training.init_params import scratch_parameters

_SIZES = "florence2_config.json"


@dataclass(frozen=True, kw_only=True)
class PretrainedFiles:
    """A model without its weights, and the other files that a checkpoint of it needs.

    Attributes:
        config: the model's sizes.
        files: directory of the tokenizer's and the processor's files, which an export copies.
        tokenizer: the tokenizer in `files`.
        image: how images become pixels, at the size that the run trains with.
    """

    config: Florence2Config
    files: Path
    tokenizer: FlorenceTokenizer
    image: ImageConfig


def prepare_pretrained(config: TrainConfig, files: Path) -> PretrainedFiles:
    """Write the files that the run needs beside weights into `files`, and read them back.

    Raises:
        CheckpointError, ValueError: there is no such checkpoint or processor, or texts are longer
            than the model's position table.
    """
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    model = config.model
    if model.start:
        source = resolve_model(model.start, model.revision)
        sizes = plan_checkpoint(source).config
        _copy(source, files)
    else:
        sizes = model.architecture
        if isinstance(sizes, str):
            sizes = PRESETS[sizes]()
        assert sizes is not None
    sizes = _with_processor(config, sizes, files)
    (files / _SIZES).write_text(json.dumps(to_tree(sizes), indent=1))
    pretrained = read_pretrained(files)
    _check_lengths(config, pretrained)
    return pretrained


def read_pretrained(files: Path) -> PretrainedFiles:
    """The files that `prepare_pretrained` wrote into `files`."""
    return PretrainedFiles(
        config=from_tree(Florence2Config, read_json(files / _SIZES, max_bytes=MAX_SETTINGS_BYTES)),
        files=files,
        tokenizer=load_tokenizer(files),
        image=ImageConfig.from_hf(
            read_json(files / "preprocessor_config.json", max_bytes=MAX_SETTINGS_BYTES)
        ),
    )


def load_parameters(
    config: TrainConfig, pretrained: PretrainedFiles, layout: ParamSharding | None = None
) -> dict[str, jax.Array]:
    """The first parameters by path, float32: the checkpoint's, or random ones.

    With a layout, each parameter is created in its sharding: no host and no device ever holds the
    whole model.
    """
    model = config.model
    sharding = None if layout is None else layout.true_sharding
    if model.start:
        source = resolve_model(model.start, model.revision)
        return dict(flatten(load_checkpoint(source, "float32", sharding).params))

    def init() -> dict[str, jax.Array]:
        params = dict(flatten(Model(config=pretrained.config).init(jax.random.key(config.seed))))
        if model.from_scratch:
            ids = [pretrained.tokenizer.loc_id(place) for place in range(1000)]
            grid = pretrained.config.vision.grid(*pretrained.image.size)
            key = jax.random.fold_in(jax.random.key(config.seed), 2)
            params = scratch_parameters(params, ids, grid, key)
        return params

    if sharding is None:
        return init()
    return jax.jit(init, out_shardings={path: sharding(path) for path in jax.eval_shape(init)})()


def _with_processor(config: TrainConfig, sizes: Florence2Config, files: Path) -> Florence2Config:
    """Write tokenizer and processor into `files`; returns the sizes with their vocabulary."""
    processor, size = config.model.processor, config.data.image_size
    if processor == "bytes" or _names_function(processor):
        if size is None:
            raise ValueError(f"model.processor={processor} needs data.image_size, (height, width)")
        if processor == "bytes":
            demo_tokenizer().save(files)
        else:
            write = _imported(processor)
            write(files, image_size=size, image_tokens=sizes.num_image_tokens(*size))
        tokens = load_tokenizer(files).vocab_size
        sizes = dataclasses.replace(
            sizes,
            text=dataclasses.replace(sizes.text, vocab_size=tokens + 1),
            image_token_id=tokens,
        )
        _decode_as_evaluated(config, sizes.text, files)
    elif processor:
        _copy(resolve_model(processor, weights=False), files, without=("config.json",))
        if not config.model.start:
            _decode_as_evaluated(config, sizes.text, files)
    _set_image_size(files, sizes, size)
    missing = load_tokenizer(files).vocab_size - sizes.text.vocab_size
    if missing > 0:
        raise ValueError(
            f"the tokenizer has {missing} tokens more than the model's table of "
            f"{sizes.text.vocab_size}: they do not belong together"
        )
    return sizes


def _names_function(processor: str) -> bool:
    return ":" in processor and not is_url(processor) and not Path(processor).exists()


def _imported(name: str) -> Callable[..., object]:
    """The function "module:function", which writes a processor.

    Raises:
        ValueError: there is none, or it does not take what a writer of processors takes.
    """
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model.processor={name} cannot be imported: {error}") from None
    # The name may come from a file: nothing is called that was not written for this.
    parameters = inspect.signature(function).parameters if inspect.isfunction(function) else {}
    if not {"image_size", "image_tokens"} <= parameters.keys():
        raise ValueError(
            f"model.processor={name} is no function (directory, *, image_size, image_tokens) that "
            "writes a processor: name one, or a directory or hub id of a processor"
        )
    return function


def _copy(source: Path, files: Path, without: tuple[str, ...] = ()) -> None:
    for name in METADATA_FILES:
        if name not in without and (source / name).is_file():
            shutil.copyfile(source / name, files / name)


def _decode_as_evaluated(config: TrainConfig, text: BartConfig, files: Path) -> None:
    """Write the generation config of a model trained from scratch: that of its evaluation."""
    names = ("num_beams", "no_repeat_ngram_size", "max_new_tokens")
    content = {name: getattr(config.evaluation, name) for name in names}
    if config.evaluation.num_beams > 1:
        content["early_stopping"] = True
    # transformers takes them from here alone.
    names = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    content |= {name: getattr(text, name) for name in names}
    content |= {
        "forced_bos_token_id": text.bos_token_id,
        "forced_eos_token_id": text.eos_token_id,
    }
    (files / "generation_config.json").write_text(json.dumps(content, indent=1))


def _set_image_size(files: Path, sizes: Florence2Config, size: tuple[int, int] | None) -> None:
    """Write the image size of the run into the processor's files: the model answers best there."""
    content: dict[str, Any] = dict(read_preprocessor(files) or {})
    image = ImageConfig.from_hf(content)
    if size is not None:
        image = dataclasses.replace(image, size=tuple(size))
    height, width = image.size
    inner = dict(content.get("image_processor", content))
    inner |= {
        "size": {"height": height, "width": width},
        "crop_size": {"height": height, "width": width},
        "image_seq_length": sizes.num_image_tokens(height, width),
        "do_resize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
        "resample": image.resample,
    }
    (files / "preprocessor_config.json").write_text(json.dumps(inner, indent=1))
    whole = files / "processor_config.json"
    if whole.is_file():
        outer = read_json(whole, max_bytes=MAX_SETTINGS_BYTES)
        if "image_processor" in outer:
            whole.write_text(json.dumps({**outer, "image_processor": inner}, indent=1))


def read_preprocessor(files: Path) -> dict[str, Any] | None:
    """The image processor's settings, wherever the repository keeps them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (files / name).is_file():
            return read_json(files / name, max_bytes=MAX_SETTINGS_BYTES)
    return None


def _check_lengths(config: TrainConfig, pretrained: PretrainedFiles) -> None:
    """Raise where an image's tokens and a text do not fit the position table."""
    positions = pretrained.config.text.max_position_embeddings
    image_tokens = pretrained.config.num_image_tokens(*pretrained.image.size)
    if image_tokens > positions - 2:
        height, width = pretrained.image.size
        raise ValueError(
            f"a picture of {height} x {width} pixels is {image_tokens} tokens, which leaves no "
            f"room for a prompt in the model's {positions} positions: lower data.image_size"
        )
    for name, taken in (("max_prompt", image_tokens), ("max_labels", 0)):
        length = getattr(config.data, name)
        if length is not None and taken + length > positions:
            raise ValueError(
                f"data.{name}={length} tokens, with {taken} of the picture, are more than the "
                f"model's {positions} positions: set it to {positions - taken} at most, or leave "
                "it out"
            )
