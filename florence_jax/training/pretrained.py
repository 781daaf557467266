"""The model that a run starts from: config, tokenizer, processor files and first parameters."""

import dataclasses
import functools
import inspect
import json
import pkgutil
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from florence_jax.adapters import resolve_model
from florence_jax.checkpoint import load_checkpoint, plan_checkpoint
from florence_jax.checkpoint.hub import METADATA_FILES
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.config import PRESETS, BartConfig, Florence2Config
from florence_jax.inference.declared_tasks import own_tasks
from florence_jax.model import Model
from florence_jax.model.bart import POSITION_OFFSET
from florence_jax.model.layers import INIT_STD, normal_of_shape
from florence_jax.processing import (
    FlorenceTokenizer,
    ImageConfig,
    demo_tokenizer,
    load_tokenizer,
)
from florence_jax.runtime.text_file import MAX_SETTINGS_BYTES, read_json
from florence_jax.sharding import ParamSharding
from florence_jax.training.config import EvaluationConfig, ModelConfig, TrainConfig
from florence_jax.training.config_loader import from_tree, to_tree
from florence_jax.training.data.storage import is_url
from florence_jax.training.state import Flat

_SIZES = "florence2_config.json"
_TABLE = "shared/embedding"
_AXES = ("projector/column_positions", "projector/row_positions")
_SEQUENCE = "encoder/positions"
_KEY = "/k_proj/"
_BRANCH = re.compile(r"vision_tower/.*(attn/proj|/fc2)/kernel")


@dataclass(frozen=True, kw_only=True)
class PretrainedFiles:
    """A model without its weights, and the other files that a checkpoint of it needs.

    Attributes:
        config: The model's sizes.
        files: Directory of the tokenizer's and the processor's files, which an export copies.
        tokenizer: The tokenizer in `files`.
        image: How images become pixels, at the size that the run trains with.
    """

    config: Florence2Config
    files: Path
    tokenizer: FlorenceTokenizer
    image: ImageConfig

    @functools.cached_property
    def image_tokens(self) -> int:
        """Tokens of one image."""
        return self.config.num_image_tokens(*self.image.size)

    @functools.cached_property
    def tasks(self) -> frozenset[str]:
        """Tasks that the model declares beside the 15."""
        return own_tasks(self.files)


def prepare_pretrained(config: TrainConfig, files: Path) -> PretrainedFiles:
    """Write the files that the run needs beside weights into `files`, and read them back.

    Raises:
        CheckpointError, ValueError: there is no such checkpoint or processor, or tokenizer and
            model do not belong together.
    """
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    model, size = config.model, config.data.image_size
    sizes, processor = _model_config(model), model.processor
    writes = processor == "bytes" or _names_function(processor)
    if writes and size is None:
        raise ValueError(f"model.processor={processor} needs data.image_size, (height, width)")
    if model.start:
        _copy(resolve_model(model.start, model.revision), files)
    if processor and not writes:
        _copy(resolve_model(processor, weights=False), files, without=("config.json",))
    size = size or ImageConfig.from_hf(_read_preprocessor(files)).size
    image_tokens = sizes.num_image_tokens(*size)
    if processor == "bytes":
        demo_tokenizer().save(files)
    elif writes:
        _imported(processor)(files, image_size=size, image_tokens=image_tokens)
    tokens = load_tokenizer(files).vocab_size
    if writes:
        text = dataclasses.replace(sizes.text, vocab_size=tokens + 1)
        sizes = dataclasses.replace(sizes, text=text, image_token_id=tokens)
    if writes or not model.start:
        _write_generation_config(config.evaluation, sizes.text, files)
    _write_image_size(files, size, image_tokens)
    if tokens > sizes.text.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokens - sizes.text.vocab_size} tokens more than the model's "
            f"table of {sizes.text.vocab_size}: they do not belong together"
        )
    (files / _SIZES).write_text(json.dumps(to_tree(sizes), indent=1))
    return read_pretrained(files)


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


def _model_config(model: ModelConfig) -> Florence2Config:
    """The sizes of the checkpoint that the run starts from, or of its random weights."""
    if model.start:
        return plan_checkpoint(resolve_model(model.start, model.revision)).config
    if isinstance(model.architecture, str):
        return PRESETS[model.architecture]()
    assert model.architecture is not None
    return model.architecture


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


def _write_generation_config(config: EvaluationConfig, text: BartConfig, files: Path) -> None:
    """Write the generation config of a model trained from scratch: that of its evaluation."""
    content: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("num_beams", "no_repeat_ngram_size", "max_new_tokens")
    }
    if config.num_beams > 1:
        content["early_stopping"] = True
    # transformers takes them from here alone.
    names = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    content |= {name: getattr(text, name) for name in names}
    content |= {
        "forced_bos_token_id": text.bos_token_id,
        "forced_eos_token_id": text.eos_token_id,
    }
    (files / "generation_config.json").write_text(json.dumps(content, indent=1))


def write_eos_bias(config: EvaluationConfig, eos_id: int, files: Path) -> None:
    """Write the bias of the run's answers into the generation config in `files`."""
    bias = config.sequence_bias(eos_id)
    if bias:
        path = files / "generation_config.json"
        content = read_json(path, max_bytes=MAX_SETTINGS_BYTES) if path.exists() else {}
        others = [one for one in content.get("sequence_bias") or () if one[0] != [eos_id]]
        content["sequence_bias"] = [*others, *bias]
        path.write_text(json.dumps(content, indent=1))


def _write_image_size(files: Path, size: tuple[int, int], image_tokens: int) -> None:
    """Write the image size of the run into the processor's files: the model answers best there."""
    content = _read_preprocessor(files)
    image = ImageConfig.from_hf(content)
    height, width = size
    inner = dict(content.get("image_processor", content))
    inner |= {
        "size": {"height": height, "width": width},
        "crop_size": {"height": height, "width": width},
        "image_seq_length": image_tokens,
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


def _read_preprocessor(files: Path) -> dict[str, Any]:
    """The image processor's settings, wherever the repository keeps them; empty for none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (files / name).is_file():
            return dict(read_json(files / name, max_bytes=MAX_SETTINGS_BYTES))
    return {}


def scratch_parameters(
    params: Flat, location_ids: Sequence[int], grid: tuple[int, int], key: jax.Array
) -> Flat:
    """The reference's random parameters with those drawn anew that a small model cannot start from.

    The reference draws kernels from N(0, 0.02), which suits a width of 768 and weights that a
    checkpoint replaces. A narrow model that starts so learns its labels' frequencies first and, in
    doing so, turns its faint image tokens into a constant, which it does not come back from (seen
    at a width of 192: after 1,000 steps they differed by 2 % between images). Three things differ:

    - Kernels keep the variance of what passes through them, N(0, 1 / fan-in). Those that end the
      image encoder's N branches have N times less: the sum of all branches weighs as much as what
      entered the first. Depthwise kernels stay small; drawn like the others, 24 of them in a row
      spread each cell over its neighbours, and colours were learnt three times as slowly.
    - Location tokens, the image encoder's row and column positions and the text encoder's positions
      of image tokens start as the same waves over the image's side, half a period to 100 long.
      Drawn independently, a thousand location tokens have to learn one by one that `<loc_500>` lies
      beside `<loc_501>`; now what is learnt of one place holds, less and less, around it.
    - Keys of the text encoder and decoder start as their queries: like attends to like
      (https://arxiv.org/abs/2305.09828), a location token to the cells of its row and column.

    Args:
        params: Parameters by path.
        location_ids: Token ids of `<loc_0>` to `<loc_999>`.
        grid: (rows, columns) of the image encoder's output at the size that is trained at.
        key: Key that the kernels are drawn from.
    """
    drawn = _kernels(params, key)
    alike = {path: drawn[path.replace("/k_proj/", "/q_proj/")] for path in drawn if _KEY in path}
    return {**params, **drawn, **alike, **_places(params, location_ids, grid)}


def _kernels(params: Flat, key: jax.Array) -> Flat:
    paths = sorted(path for path in params if path.endswith("/kernel"))
    branches = sum(1 for path in paths if _BRANCH.fullmatch(path))
    drawn = {}
    for number, path in enumerate(paths):
        shape = params[path].shape
        if len(shape) == 4 and shape[2] == 1:
            continue
        # All axes but the last lead to an output, in a convolution too.
        variance = 1 / np.prod(shape[:-1])
        if _BRANCH.fullmatch(path):
            variance /= branches
        normal = normal_of_shape(jax.random.fold_in(key, number), shape)
        drawn[path] = normal * np.sqrt(variance)
    return drawn


def _places(params: Flat, location_ids: Sequence[int], grid: tuple[int, int]) -> Flat:
    table = params[_TABLE]
    count, dim = len(location_ids), table.shape[1]
    # Once for x and once for y: a location token does not say which of them it is.
    waves = _waves((np.arange(count) + 0.5) / count, dim // 2)
    # Waves have a mean square of 1/2.
    rows = np.sqrt(2) * INIT_STD * np.concatenate([waves, waves, waves[:, : dim % 2]], axis=1)
    ordered = {_TABLE: table.at[jnp.asarray(location_ids)].set(rows)}
    for path, cells in zip(_AXES, reversed(grid), strict=True):
        positions, width = params[path].shape
        places = (np.arange(positions) + 0.5) / cells
        # The positions' own scale is that of a standard normal.
        ordered[path] = jnp.asarray(np.sqrt(2) * _waves(places, width), jnp.float32)
    columns, lines = (
        np.sqrt(2) * _waves((np.arange(cells) + 0.5) / cells, dim // 2) for cells in reversed(grid)
    )
    cells = [[*x, *y, *x[: dim % 2]] for y in lines for x in columns]
    # Behind BART's two unused rows and the mean of all cells.
    first = POSITION_OFFSET + 1
    ordered[_SEQUENCE] = params[_SEQUENCE].at[first : first + len(cells)].set(jnp.asarray(cells))
    return ordered


def _waves(places: np.ndarray, dim: int) -> np.ndarray:
    """float64[N, dim] of places in 0..1: sines, then cosines, of periods in geometric order."""
    periods = np.geomspace(0.5, 100.0, (dim + 1) // 2)
    angles = 2 * np.pi * places[:, None] * periods
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :dim]
