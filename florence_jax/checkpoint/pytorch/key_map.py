"""The table of tensor names: original <-> florence_jax <-> native, with each tensor's transform.

"original" is the naming of Microsoft's published checkpoints; "native" is that of transformers'
built-in `Florence2ForConditionalGeneration`. Both were taken from the published files' key lists.
A name is looked up by its skeleton (numeric segments replaced by a placeholder), so a match is
exact, and no two rules can claim the same tensor.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

Naming = Literal["original", "native"]
NAMINGS: tuple[Naming, Naming] = ("original", "native")
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """The layout of a torch tensor: a transposition, after a leading 1 is dropped if there is one.

    Every transform is an exact, invertible view: nothing is copied or rounded, and a reader can
    transform a file mapping and then fetch only the slice that it needs.

    Attributes:
        layout: what it does, for messages.
        axes: for each of our dimensions, the torch dimension it comes from.
        leading_one: the torch tensor has one more leading dimension, of size 1.
    """

    layout: str
    axes: tuple[int, ...]
    leading_one: bool = False

    def shape_to_ours(self, shape: Shape) -> Shape | None:
        """Our shape of a torch tensor of `shape`; None where this transform cannot apply."""
        if self.leading_one:
            if shape[:1] != (1,):
                return None
            shape = shape[1:]
        if len(shape) != len(self.axes):
            return None
        return tuple(shape[axis] for axis in self.axes)

    def shape_to_torch(self, shape: Shape) -> Shape:
        """The torch shape of one of our tensors; `shape` has `len(axes)` dimensions."""
        torch_shape = tuple(shape[self.axes.index(axis)] for axis in range(len(self.axes)))
        return (1, *torch_shape) if self.leading_one else torch_shape

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """A view of a torch-layout array in our layout."""
        return np.transpose(array[0] if self.leading_one else array, self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """A view of one of our arrays in torch's layout."""
        array = np.transpose(array, tuple(self.axes.index(axis) for axis in range(len(self.axes))))
        return array[None] if self.leading_one else array


VECTOR = Transform("[n]", (0,))
TABLE = Transform("[rows, width]", (0, 1))
LINEAR = Transform("[out, in] -> [in, out]", (1, 0))
CONV = Transform("[O, I, kh, kw] -> [kh, kw, I, O]", (2, 3, 1, 0))
LOGITS_BIAS = Transform("[1, V] -> [V]", (0,), leading_one=True)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor under its three names; `{}` stands for a layer number.

    Attributes:
        ours: path in the parameter tree, joined by "/".
        original: name in the original naming.
        native: name in the native naming, None where that class has no such tensor.
        from_original: transform from the original tensor to ours.
        from_native: transform from the native tensor to ours; None where it is the same.
    """

    ours: str
    original: str
    native: str | None
    from_original: Transform
    from_native: Transform | None = None

    def pattern(self, naming: Naming) -> str | None:
        """This tensor's name in `naming`, with `{}` for layer numbers."""
        return self.original if naming == "original" else self.native

    def transform(self, naming: Naming) -> Transform:
        """The transform from a tensor in `naming` to ours."""
        return (naming == "native" and self.from_native) or self.from_original


@dataclasses.dataclass(frozen=True)
class Match:
    """A concrete tensor that a rule claims: the rule and its layer numbers."""

    rule: Rule
    numbers: tuple[str, ...]

    @property
    def path(self) -> str:
        """Path in our parameter tree, for example "encoder/layers/0/fc1/kernel"."""
        return self.rule.ours.format(*self.numbers)

    def name(self, naming: Naming) -> str | None:
        """Name in `naming`, None where that class has no such tensor."""
        pattern = self.rule.pattern(naming)
        return None if pattern is None else pattern.format(*self.numbers)


@dataclasses.dataclass(frozen=True)
class Ignored:
    """A tensor that neither reference model reads, and why."""

    pattern: str
    naming: Naming
    reason: str


SHARED = "shared/embedding"
ENCODER_TOKENS = "encoder/embed_tokens"  # no leaf of its own: see match.py
DECODER_TOKENS = "decoder/embed_tokens"  # no leaf of its own
LM_HEAD = "lm_head/embedding"  # a leaf when config.tie_word_embeddings is False
LOGITS_BIAS_PATH = "final_logits_bias"  # a leaf when config.final_logits_bias is True

# The leaves of each kind of module: (our leaf, torch leaf, transform).
_LEAVES = {
    "linear": (("/kernel", ".weight", LINEAR), ("/bias", ".bias", VECTOR)),
    "conv": (("/kernel", ".weight", CONV), ("/bias", ".bias", VECTOR)),
    "norm": (("/scale", ".weight", VECTOR), ("/bias", ".bias", VECTOR)),
    "table": (("", ".weight", TABLE),),
}

# Rows are (kind, our module, original module, native module), relative to their group.
_PATCH_EMBED = (
    ("conv", "conv", "proj", "conv"),
    ("norm", "norm", "norm", "norm"),
)


def _davit_block(attention: str) -> tuple[tuple[str, str, str, str], ...]:
    return (
        ("conv", "conv1", "conv1.fn.dw", "conv1"),
        ("norm", "norm1", f"{attention}.norm", "norm1"),
        ("linear", f"{attention}/qkv", f"{attention}.fn.qkv", f"{attention}.qkv"),
        ("linear", f"{attention}/proj", f"{attention}.fn.proj", f"{attention}.proj"),
        ("conv", "conv2", "conv2.fn.dw", "conv2"),
        ("norm", "norm2", "ffn.norm", "norm2"),
        ("linear", "mlp/fc1", "ffn.fn.net.fc1", "ffn.fc1"),
        ("linear", "mlp/fc2", "ffn.fn.net.fc2", "ffn.fc2"),
    )


def _attention(ours: str, theirs: str) -> tuple[tuple[str, str, str, str], ...]:
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return tuple(("linear", f"{ours}/{p}", f"{theirs}.{p}", f"{theirs}.{p}") for p in projections)


_STACK = (
    ("table", "positions", "embed_positions", "embed_positions"),
    ("norm", "embedding_norm", "layernorm_embedding", "layernorm_embedding"),
)
_ENCODER_LAYER = (
    *_attention("self_attn", "self_attn"),
    ("norm", "self_attn_norm", "self_attn_layer_norm", "self_attn_layer_norm"),
    ("linear", "fc1", "fc1", "fc1"),
    ("linear", "fc2", "fc2", "fc2"),
    ("norm", "final_norm", "final_layer_norm", "final_layer_norm"),
)
_DECODER_LAYER = (
    *_ENCODER_LAYER,
    *_attention("cross_attn", "encoder_attn"),
    ("norm", "cross_attn_norm", "encoder_attn_layer_norm", "encoder_attn_layer_norm"),
)

_DAVIT = "vision_tower.blocks.{}.{}"
_BART = "language_model.model"

# (our group, original group, native group, rows)
_GROUPS = (
    (
        "vision_tower/stages/{}/embed",
        "vision_tower.convs.{}",
        "model.vision_tower.convs.{}",
        _PATCH_EMBED,
    ),
    (
        "vision_tower/stages/{}/blocks/{}/spatial",
        f"{_DAVIT}.spatial_block",
        f"model.{_DAVIT}.spatial_block",
        _davit_block("window_attn"),
    ),
    (
        "vision_tower/stages/{}/blocks/{}/channel",
        f"{_DAVIT}.channel_block",
        f"model.{_DAVIT}.channel_block",
        _davit_block("channel_attn"),
    ),
    ("encoder", f"{_BART}.encoder", "model.language_model.encoder", _STACK),
    (
        "encoder/layers/{}",
        f"{_BART}.encoder.layers.{{}}",
        "model.language_model.encoder.layers.{}",
        _ENCODER_LAYER,
    ),
    ("decoder", f"{_BART}.decoder", "model.language_model.decoder", _STACK),
    (
        "decoder/layers/{}",
        f"{_BART}.decoder.layers.{{}}",
        "model.language_model.decoder.layers.{}",
        _DECODER_LAYER,
    ),
)

# The projector: (ours, original, native, from original, from native where it differs). The original
# keeps a bare parameter P[C, D] and computes x @ P; the native, a Linear [D, C].
_PROJECTOR = (
    ("proj/kernel", "image_projection", "image_projection.weight", TABLE, LINEAR),
    ("norm/scale", "image_proj_norm.weight", "image_proj_norm.weight", VECTOR),
    ("norm/bias", "image_proj_norm.bias", "image_proj_norm.bias", VECTOR),
    *(
        (
            f"{axis}_positions",
            f"image_pos_embed.{axis}_embeddings.weight",
            f"image_position_embed.{axis}_embeddings.weight",
            TABLE,
        )
        for axis in ("row", "column")
    ),
    ("temporal_positions", *["visual_temporal_embed.pos_idx_to_embed"] * 2, TABLE),
)

# (ours, original, native): the token table and, in a tied model, its further names.
_TOKEN_TABLES = (
    (SHARED, f"{_BART}.shared.weight", "model.language_model.shared.weight"),
    (
        ENCODER_TOKENS,
        f"{_BART}.encoder.embed_tokens.weight",
        "model.language_model.encoder.embed_tokens.weight",
    ),
    (
        DECODER_TOKENS,
        f"{_BART}.decoder.embed_tokens.weight",
        "model.language_model.decoder.embed_tokens.weight",
    ),
    (LM_HEAD, "language_model.lm_head.weight", "lm_head.weight"),
)


def _rules() -> Iterator[Rule]:
    for ours, original, native, rows in _GROUPS:
        for kind, our_module, original_module, native_module in rows:
            for our_leaf, torch_leaf, transform in _LEAVES[kind]:
                yield Rule(
                    f"{ours}/{our_module}{our_leaf}",
                    f"{original}.{original_module}{torch_leaf}",
                    f"{native}.{native_module}{torch_leaf}",
                    transform,
                )
    for ours, original, native, *transforms in _PROJECTOR:
        yield Rule(
            f"projector/{ours}", original, f"model.multi_modal_projector.{native}", *transforms
        )
    yield Rule(LOGITS_BIAS_PATH, "language_model.final_logits_bias", None, LOGITS_BIAS)
    for ours, original, native in _TOKEN_TABLES:
        yield Rule(ours, original, native, TABLE)


RULES: tuple[Rule, ...] = tuple(_rules())

# DaViT's classifier head: the original class deletes it after construction, so only files that
# were saved from a bare DaViT carry it.
IGNORED: tuple[Ignored, ...] = tuple(
    Ignored(f"vision_tower.{module}.{leaf}", "original", "DaViT classifier head, never read")
    for module in ("head", "norms")
    for leaf in ("weight", "bias")
)

# Leading zeros stay as they are, so that "layers.00" matches nothing instead of aliasing layer 0.
_NUMBER = re.compile(r"(?<![^./])(0|[1-9][0-9]*)(?![^./])")


def _index(patterns: Iterable[tuple[str | None, Rule]]) -> dict[str, Rule]:
    index: dict[str, Rule] = {}
    for pattern, rule in patterns:
        if pattern is None:
            continue
        if pattern in index:
            raise AssertionError(f"two rules claim {pattern!r}: {index[pattern]} and {rule}")
        index[pattern] = rule
    return index


# The paths that hold the token table once more in a tied model.
DUPLICATE_PATHS = (DECODER_TOKENS, ENCODER_TOKENS, LM_HEAD)
_TABLES = (SHARED, *DUPLICATE_PATHS, LOGITS_BIAS_PATH)
# Names of tensors that may hold the token table or an output bias -> path. A file may have more of
# these than there are parameters.
TABLE_PATHS: dict[Naming, dict[str, str]] = {
    naming: {
        name: rule.ours
        for rule in RULES
        if rule.ours in _TABLES and (name := rule.pattern(naming)) is not None
    }
    for naming in NAMINGS
}
_BY_NAME = {naming: _index((rule.pattern(naming), rule) for rule in RULES) for naming in NAMINGS}
_BY_PATH = _index((rule.ours, rule) for rule in RULES)
_IGNORED = {(rule.naming, rule.pattern): rule for rule in IGNORED}


def skeleton(name: str) -> str:
    """`name` with every numeric segment replaced by `{}`."""
    return _NUMBER.sub("{}", name)


def torch_name(path: str, naming: Naming) -> str | None:
    """The name in `naming` of our parameter `path`; None where that class has no such tensor.

    Raises:
        KeyError: no rule claims `path`.
    """
    match = match_path(path)
    if match is None:
        raise KeyError(f"key_map.py has no rule for the parameter {path!r}")
    return match.name(naming)


def match_name(name: str, naming: Naming) -> Match | None:
    """The rule that claims the torch tensor `name` in `naming`, or None."""
    return _match(name, _BY_NAME[naming])


def match_path(path: str) -> Match | None:
    """The rule that claims our parameter `path` ("encoder/layers/0/fc1/kernel"), or None."""
    return _match(path, _BY_PATH)


def _match(name: str, index: dict[str, Rule]) -> Match | None:
    # A name that spells the placeholder itself must not pass for one with a layer number.
    rule = None if "{" in name else index.get(skeleton(name))
    return None if rule is None else Match(rule, tuple(_NUMBER.findall(name)))


def ignored(name: str, naming: Naming) -> Ignored | None:
    """The entry for a torch tensor that is never read; None for any other name."""
    return _IGNORED.get((naming, name))
