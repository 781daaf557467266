"""Match the tensors of a bare DaViT's file to parameters, and read its sizes off the tensors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, sample
from florence_jax.checkpoint.plan import LazyTensor, Source
from florence_jax.checkpoint.pytorch.bin_reader import open_torch
from florence_jax.checkpoint.pytorch.key_map import Shape
from florence_jax.checkpoint.pytorch.tower_names import (
    TowerStyle,
    find_style,
    tower_name,
    tower_transform,
)
from florence_jax.checkpoint.pytorch.weights import open_safetensors, open_weights
from florence_jax.checkpoint.repository import contained_file, find_weights
from florence_jax.config import DaViTConfig

OPENERS = {
    ".safetensors": open_safetensors,
    **dict.fromkeys((".bin", ".pth", ".pt"), functools.partial(open_torch, nested=True)),
}
# Of every published DaViT.
_HEAD_DIM = 32


class TowerFile(NamedTuple):
    """The tensors of a bare DaViT, listed and not read.

    Attributes:
        label: the file or directory, for messages.
        style: how the tensors are named.
        tensors: name -> tensor.
    """

    label: str
    style: TowerStyle
    tensors: Mapping[str, LazyTensor]

    @property
    def num_classes(self) -> int:
        """Rows of the classifier; 0 where there is none."""
        head = self.tensors.get(tower_name("head/fc/kernel", self.style) or "")
        return 0 if head is None or not head.shape else head.shape[0]


def open_tower(path: Path) -> TowerFile:
    """List the tensors of a file, or of the best weight file of a directory.

    Raises:
        CheckpointError: there are no weights, a file is damaged, or it holds no bare DaViT.
    """
    if path.is_dir():
        tensors = open_weights(find_weights(path))
    else:
        opener = OPENERS.get(path.suffix)
        if opener is None:
            raise CheckpointError(f"{path} is no weight file: expected {', '.join(OPENERS)}")
        tensors = opener(contained_file(path.parent, path.name), str(path))
    problems = ErrorCollector()
    by_name: dict[str, LazyTensor] = {}
    for tensor in tensors:
        if by_name.setdefault(tensor.name, tensor) is not tensor:
            problems.add("tensors stored twice", tensor.name, f"in {tensor.file}")
    problems.raise_if_any(str(path))
    style = find_style(by_name)
    if not by_name:
        raise CheckpointError(f"{path} holds no tensors: expected those of a DaViT")
    if style is None:
        raise CheckpointError(
            f"{path} holds no bare DaViT in timm's or the original repository's naming "
            f"({len(by_name)} tensors): {sample(by_name)}. For a Florence-2, pass the directory "
            "with its config.json"
        )
    return TowerFile(str(path), style, by_name)


def infer_vision(file: TowerFile) -> DaViTConfig:
    """The sizes of a tower, read off its tensors.

    Tensors do not tell the width of heads and windows nor the kind of channel attention. Heads are
    32 wide in every published DaViT. A tower that halves maps by 3 x 3 convolutions is
    Florence-2's, with windows of 12; one that does so by 2 x 2 is the paper's, with windows of 7.

    Raises:
        CheckpointError: the tensors are those of no published kind of DaViT.
    """

    def shape(path: str) -> Shape:
        tensor = file.tensors.get(tower_name(path, file.style) or "")
        return () if tensor is None else tensor.shape

    stages = 0
    while shape(f"vision_tower/stages/{stages}/embed/conv/kernel"):
        stages += 1
    kernels = [shape(f"vision_tower/stages/{stage}/embed/conv/kernel") for stage in range(stages)]
    block = "vision_tower/stages/0/blocks/0/spatial"
    hidden = shape(f"{block}/mlp/fc1/bias")
    depths = tuple(_depth(file, stage) for stage in range(stages))
    sizes = tuple(kernel[-1] for kernel in kernels)
    dims = tuple(kernel[0] for kernel in kernels)
    plain = all(len(k) == 4 and all(k) for k in kernels) and len(hidden) == 1 and all(depths)
    halving = set(sizes[1:])
    if not plain or sizes[0] != 7 or halving not in ({2}, {3}) or any(d % _HEAD_DIM for d in dims):
        raise CheckpointError(
            f"{file.label}: widths {list(dims)}, depths {list(depths)} and patches {list(sizes)} "
            "are those of no published DaViT: pass config=BackboneConfig(...) with its sizes"
        )
    florence = halving == {3}
    heads = tuple(dim // _HEAD_DIM for dim in dims)
    return DaViTConfig(
        embed_dims=dims,
        depths=depths,
        num_heads=heads,
        num_groups=heads,
        patch_sizes=sizes,
        patch_strides=(4, *[2] * (stages - 1)),
        patch_paddings=(3, *[1 if florence else 0] * (stages - 1)),
        patch_prenorm=(False, *[True] * (stages - 1)),
        window_size=12 if florence else 7,
        mlp_ratio=hidden[0] / dims[0],
        qkv_bias=bool(shape(f"{block}/window_attn/qkv/bias")),
        in_channels=kernels[0][1],
        channel_attn_v2=florence,
        pad_to_stride=not florence,
    )


def match_tower(file: TowerFile, expected: Mapping[str, Shape]) -> dict[str, Source]:
    """The tensor of each parameter, by path.

    The head may be absent as a whole, or its classifier, and so may norms of feature maps. A
    missing tensor of the tower or of a head that is there, an unexpected one and one of another
    shape are errors.

    Args:
        file: the tensors.
        expected: path -> shape of every parameter.

    Raises:
        CheckpointError: one error with every problem.
    """
    name_of = functools.partial(tower_name, style=file.style)
    stored = {path for path in expected if name_of(path) in file.tensors}
    parts = ["vision_tower/"]
    if any(path.startswith("head/") for path in stored):
        parts.append("head/norm/")
    if any(path.startswith("head/fc/") for path in stored):
        parts.append("head/fc/")
    return match_tensors(
        file.tensors,
        expected,
        name_of,
        label=f"{file.label} ({file.style.naming} naming)",
        needed=lambda path: path.startswith(tuple(parts)),
    )


def match_tensors(
    tensors: Mapping[str, LazyTensor],
    expected: Mapping[str, Shape],
    name_of: Callable[[str], str | None],
    *,
    label: str,
    needed: Callable[[str], bool],
) -> dict[str, Source]:
    """The tensor of each parameter of a tower with heads, by path.

    Args:
        tensors: name -> tensor.
        expected: path -> shape of every parameter.
        name_of: the name of a parameter's tensor; None where the naming has none.
        label: the file or directory, for messages.
        needed: whether a path must have a tensor.

    Raises:
        CheckpointError: missing, unexpected and misshapen tensors, in one error.
    """
    problems = ErrorCollector()
    sources: dict[str, Source] = {}
    unused = dict(tensors)
    for path, shape in expected.items():
        name = name_of(path)
        tensor = None if name is None else unused.pop(name, None)
        if tensor is None:
            if needed(path):
                problems.add("missing tensors", name or path)
            continue
        source = Source(tensor, tower_transform(path, shape))
        if source.shape != shape:
            wanted = list(source.stored_shape(shape))
            problems.add(
                "tensors of the wrong shape",
                tensor.name,
                f"is {list(tensor.shape)}, expected {wanted}",
            )
        elif not tensor.is_readable:
            problems.add("tensors of an unsupported dtype", tensor.name, str(tensor.dtype))
        sources[path] = source
    for name in unused:
        problems.add("unexpected tensors", name)
    problems.raise_if_any(f"{label} does not fit the config")
    return sources


def _depth(file: TowerFile, stage: int) -> int:
    blocks = f"stages.{stage}.blocks" if file.style.naming == "timm" else f"main_blocks.{stage}"
    pattern = re.compile(rf"{re.escape(file.style.prefix + blocks)}\.(\d+)\.")
    return len({found[1] for name in file.tensors if (found := pattern.match(name))})
