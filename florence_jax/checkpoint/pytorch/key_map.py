"""The one table of names: original <-> florence_jax <-> native, with each tensor's transform.

"original" is the naming of Microsoft's published checkpoints; "native" is that of transformers'
built-in `Florence2ForConditionalGeneration`. Both were taken from the published files' key lists.
A name is looked up by its skeleton (numeric segments replaced by a placeholder), so a match is
exact and no two rules can claim the same tensor.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from florence_jax.checkpoint.pytorch.transforms import (
    CONV,
    LINEAR,
    LOGITS_BIAS,
    TABLE,
    VECTOR,
    Transform,
)

Naming = Literal["original", "native"]
NAMINGS: tuple[Naming, Naming] = ("original", "native")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of tensor under its three names; `{}` stands for a layer number.

    Attributes:
        ours: path in the parameter tree, joined by "/".
        original: name in the original naming.
        native: name in the native naming, None where that class has no such tensor.
        from_original: transform from the original tensor to ours.
        from_native: transform from the native tensor to ours.
        duplicate_of_shared: in a tied model this is one more name of `shared/embedding`.
    """

    ours: str
    original: str
    native: str | None
    from_original: Transform
    from_native: Transform
    duplicate_of_shared: bool = False

    def pattern(self, naming: Naming) -> str | None:
        """This tensor's name in `naming`, with `{}` for layer numbers."""
        return self.original if naming == "original" else self.native

    def transform(self, naming: Naming) -> Transform:
        """The transform from a tensor in `naming` to ours."""
        return self.from_original if naming == "original" else self.from_native


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
    """A tensor that neither reference reads, and why."""

    pattern: str
    naming: Naming
    reason: str


SHARED = "shared/embedding"
ENCODER_TOKENS = "encoder/embed_tokens"  # no leaf of its own: see tied_embeddings.py
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
_PROJECTOR = "model.multi_modal_projector"

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

# (ours, original, native, from original, from native)
_SINGLES = (
    # The original keeps a bare parameter P[C, D] and computes x @ P; the native, a Linear [D, C].
    (
        "projector/proj/kernel",
        "image_projection",
        f"{_PROJECTOR}.image_projection.weight",
        TABLE,
        LINEAR,
    ),
    (
        "projector/norm/scale",
        "image_proj_norm.weight",
        f"{_PROJECTOR}.image_proj_norm.weight",
        VECTOR,
        VECTOR,
    ),
    (
        "projector/norm/bias",
        "image_proj_norm.bias",
        f"{_PROJECTOR}.image_proj_norm.bias",
        VECTOR,
        VECTOR,
    ),
    (
        "projector/row_positions",
        "image_pos_embed.row_embeddings.weight",
        f"{_PROJECTOR}.image_position_embed.row_embeddings.weight",
        TABLE,
        TABLE,
    ),
    (
        "projector/column_positions",
        "image_pos_embed.column_embeddings.weight",
        f"{_PROJECTOR}.image_position_embed.column_embeddings.weight",
        TABLE,
        TABLE,
    ),
    (
        "projector/temporal_positions",
        "visual_temporal_embed.pos_idx_to_embed",
        f"{_PROJECTOR}.visual_temporal_embed.pos_idx_to_embed",
        TABLE,
        TABLE,
    ),
    (
        LOGITS_BIAS_PATH,
        "language_model.final_logits_bias",
        None,
        LOGITS_BIAS,
        LOGITS_BIAS,
    ),
    (SHARED, f"{_BART}.shared.weight", "model.language_model.shared.weight", TABLE, TABLE),
)

# (ours, original, native): further names of the token table.
_SHARED_DUPLICATES = (
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
                    ours=f"{ours}/{our_module}{our_leaf}",
                    original=f"{original}.{original_module}{torch_leaf}",
                    native=f"{native}.{native_module}{torch_leaf}",
                    from_original=transform,
                    from_native=transform,
                )
    for ours, original, native, from_original, from_native in _SINGLES:
        yield Rule(ours, original, native, from_original, from_native)
    for ours, original, native in _SHARED_DUPLICATES:
        yield Rule(ours, original, native, TABLE, TABLE, duplicate_of_shared=True)


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


_BY_NAME = {naming: _index((rule.pattern(naming), rule) for rule in RULES) for naming in NAMINGS}
_BY_PATH = _index((rule.ours, rule) for rule in RULES)
_IGNORED = {(rule.naming, rule.pattern): rule for rule in IGNORED}


def skeleton(name: str) -> str:
    """`name` with every numeric segment replaced by `{}`."""
    return _NUMBER.sub("{}", name)


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
    """Why the torch tensor `name` is not read; None where it is."""
    return _IGNORED.get((naming, name))
