"""Convert our parameters to torch tensors of either naming: the key map in reverse."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from florence_jax.checkpoint.errors import ErrorCollector
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.key_map import (
    LM_HEAD,
    LOGITS_BIAS_PATH,
    RULES,
    SHARED,
    Match,
    Naming,
    match_path,
)


def torch_tensors(
    params: Mapping[str, Any], naming: Naming, *, tied_names: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of `params` under its name in `naming`, one at a time, in the same dtype.

    The arrays are views in torch's layout, often not contiguous: copy before writing their bytes.
    The original naming always has `final_logits_bias`: zeros where the parameters have none.

    Args:
        params: nested dict of arrays, as `load_checkpoint` returns it.
        naming: "original" or "native".
        tied_names: also give the token table under its other names (`embed_tokens`, and `lm_head`
            in a tied model), as a `.bin` and a strict `load_state_dict` have them; safetensors
            files have it once.

    Raises:
        CheckpointError: lists the parameters without a name in `naming`, before any is given.
    """
    leaves = dict(flatten(params))
    matches = _matches(leaves, naming)
    return _tensors(leaves, matches, naming, tied_names)


def _matches(leaves: Mapping[str, Any], naming: Naming) -> dict[str, Match]:
    problems = ErrorCollector()
    matches: dict[str, Match] = {}
    for path in leaves:
        match = match_path(path)
        if match is None:
            problems.add("parameters that are not a Florence-2's", path)
        elif match.name(naming) is None:
            problems.add(f"parameters that the {naming} model has no tensor for", path)
            problems.hint("use the original naming, or set the parameter to zero and drop it")
        else:
            matches[path] = match
    if SHARED not in leaves:
        problems.add("missing parameters", SHARED)
    problems.raise_if_any(f"the parameters have no {naming} form")
    return matches


def _tensors(
    leaves: Mapping[str, Any], matches: dict[str, Match], naming: Naming, tied_names: bool
) -> Iterator[tuple[str, np.ndarray]]:
    for path, match in matches.items():
        yield _named(match, naming, np.asarray(leaves[path]))
    table = np.asarray(leaves[SHARED])
    bias = match_path(LOGITS_BIAS_PATH)
    if bias is not None and LOGITS_BIAS_PATH not in leaves and bias.name(naming) is not None:
        yield _named(bias, naming, np.zeros(table.shape[:1], table.dtype))
    if tied_names:
        for rule in RULES:
            if rule.duplicate_of_shared and not (rule.ours == LM_HEAD and LM_HEAD in leaves):
                yield _named(Match(rule, ()), naming, table)


def _named(match: Match, naming: Naming, array: np.ndarray) -> tuple[str, np.ndarray]:
    name = match.name(naming)
    assert name is not None  # _matches has refused parameters without one
    return name, match.rule.transform(naming).to_torch(array)
