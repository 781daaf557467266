"""Our own adapter file: low-rank factors under the names of the parameter tree.

One safetensors file. For each adapted weight, at its path in the parameter tree:

    encoder/layers/0/fc1/kernel/a    float[in, r]
    encoder/layers/0/fc1/kernel/b    float[r, out]

so that the tensors of a nested dict `{"encoder": {"layers": {"0": {"fc1": {"kernel": {"a": ...,
"b": ...}}}}}}`, joined by "/", are the file's tensors. Metadata (all strings, as safetensors has
them):

    format      "florence-jax-lora-1"
    alpha       the scale's numerator, for example "16"; the scale is alpha / r
    use_rslora  "true" where the scale is alpha / sqrt(r); may be left out
    alphas      JSON {path: alpha} of weights whose alpha differs; may be left out

What only adapters from PEFT have travels along, so that they come back byte for byte: `b_bias` and
`base` beside `a` and `b`, whole parameters under their own path, and the metadata `naming` and
`peft_config`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from florence_jax.adapters.adapter import Adapter, LowRank
from florence_jax.adapters.peft import is_adapter, read_peft
from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, clip
from florence_jax.checkpoint.files import parse_json
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.checkpoint.pytorch.key_map import LM_HEAD, NAMINGS, Naming, match_path
from florence_jax.checkpoint.pytorch.safetensors_reader import open_safetensors
from florence_jax.checkpoint.pytorch.safetensors_writer import save_tensors
from florence_jax.checkpoint.pytorch.transforms import LINEAR

FORMAT = "florence-jax-lora-1"
_PARTS = ("a", "b", "b_bias", "base")


def read_adapter(source: str | Path) -> Adapter:
    """Read a PEFT adapter directory, or a file in our format.

    Raises:
        CheckpointError: it is neither, or it is an adapter of another kind or model.
    """
    path = Path(source).expanduser()
    if path.is_dir() and is_adapter(path):
        return read_peft(path)
    if path.is_file():
        return read_lora(path)
    what = "has no adapter_config.json" if path.is_dir() else "does not exist"
    raise CheckpointError(
        f"{path} {what}; expected the directory of a PEFT adapter, or a .safetensors file of "
        "low-rank factors. To get one from Hugging Face: hf download ORG/NAME --local-dir DIR"
    )


def adapter_from_factors(
    factors: Mapping[str, Any],
    alpha: float,
    *,
    use_rslora: bool = False,
    alphas: Mapping[str, float] | None = None,
) -> Adapter:
    """An adapter of arrays by name, as the module's docstring lists them.

    Args:
        factors: nested dict of arrays, or a flat one with "/" in its keys.
        alpha: the scale's numerator.
        use_rslora: the scale is alpha / sqrt(r).
        alphas: path -> alpha, where it differs.

    Raises:
        CheckpointError: lists names that are no factors of a linear layer, and shapes that do not
            belong together.
    """
    problems = ErrorCollector()
    parts: dict[str, dict[str, np.ndarray]] = {}
    replaced: dict[str, np.ndarray] = {}
    for name, leaf in flatten(factors):
        path, _, part = name.rpartition("/")
        match = match_path(path)
        if part in _PARTS and match is not None:
            if match.rule.from_native is LINEAR or path == LM_HEAD:
                parts.setdefault(path, {})[part] = np.asarray(leaf)
            else:
                problems.add("low-rank factors of weights that are not linear", name)
        elif match_path(name) is not None:
            replaced[name] = np.asarray(leaf)
        else:
            problems.add("names that are not a Florence-2's", name)
            problems.hint(
                'expected the path of a weight and "/a" or "/b": encoder/layers/0/fc1/kernel/a'
            )
    modules = {}
    for path, found in parts.items():
        a, b = found.get("a"), found.get("b")
        if a is None or b is None:
            problems.add("missing factors", f"{path}/{'a' if a is None else 'b'}")
        elif a.ndim != 2 or b.ndim != 2 or not a.shape[1] == b.shape[0] > 0:
            problems.add(
                "factors of the wrong shape",
                path,
                f"a is {list(a.shape)} and b {list(b.shape)}, expected [in, r] and [r, out]",
            )
        else:
            modules[path] = LowRank(**found, alpha=(alphas or {}).get(path, alpha))
    if not modules and not replaced:
        problems.add("missing factors", "there are none")
    problems.raise_if_any("these are not the low-rank factors of a Florence-2")
    return Adapter(modules=modules, replaced=replaced, use_rslora=use_rslora)


def lora_tensors(adapter: Adapter) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """`adapter` as the tensors and the metadata of our file."""
    tensors: dict[str, np.ndarray] = dict(adapter.replaced)
    for path, update in adapter.modules.items():
        found = {name: getattr(update, name) for name in _PARTS}
        tensors |= {f"{path}/{name}": array for name, array in found.items() if array is not None}
    alphas = {path: update.alpha for path, update in adapter.modules.items()}
    alpha = max(set(alphas.values()), key=list(alphas.values()).count) if alphas else 1
    metadata = {"format": FORMAT, "alpha": json.dumps(alpha)}
    other = {path: value for path, value in alphas.items() if value != alpha}
    if other:
        metadata["alphas"] = json.dumps(other, sort_keys=True)
    if adapter.use_rslora:
        metadata["use_rslora"] = "true"
    if adapter.naming is not None:
        metadata["naming"] = adapter.naming
    if adapter.peft_config is not None:
        metadata["peft_config"] = json.dumps(adapter.peft_config)
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata


def write_lora(path: str | Path, adapter: Adapter) -> None:
    """Write `adapter` to the file `path`, all of it or nothing; an existing file is replaced."""
    path = Path(path)
    tensors, metadata = lora_tensors(adapter)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_tensors(tensors, aside, metadata)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_lora(path: str | Path) -> Adapter:
    """Read a file that `write_lora`, or a trainer, wrote.

    Raises:
        CheckpointError: it is not such a file.
    """
    path = Path(path)
    stored = open_safetensors(path, str(path))
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: its metadata says format {clip(repr(metadata.get('format')))}, expected "
            f"{FORMAT!r}: it is not a file of low-rank factors (a PEFT adapter is given by its "
            "directory)"
        )
    alpha = _json(path, metadata, "alpha", int | float)
    alphas = _json(path, metadata, "alphas", dict) if "alphas" in metadata else {}
    wrong = [key for key, value in alphas.items() if not isinstance(value, int | float)]
    if wrong:
        raise CheckpointError(f"{path}: alphas[{clip(wrong[0])!r}] in its metadata is no number")
    unreadable = [tensor for tensor in stored if not tensor.is_readable]
    if unreadable:
        raise CheckpointError(
            f"{path}: {clip(unreadable[0].name)} is {unreadable[0].dtype}, expected floating point"
        )
    adapter = adapter_from_factors(
        {tensor.name: np.array(tensor.view()) for tensor in stored},
        alpha,
        use_rslora=metadata.get("use_rslora") == "true",
        alphas=alphas,
    )
    naming: Naming | None = next((n for n in NAMINGS if n == metadata.get("naming")), None)
    peft_config = _json(path, metadata, "peft_config", dict) if "peft_config" in metadata else None
    return Adapter(
        modules=adapter.modules,
        replaced=adapter.replaced,
        use_rslora=adapter.use_rslora,
        naming=naming,
        peft_config=peft_config,
    )


def _json(path: Path, metadata: Mapping[str, str], name: str, kind: Any) -> Any:
    if name not in metadata:
        raise CheckpointError(f"{path}: its metadata lacks {name}")
    value = parse_json(metadata[name].encode(), f"{name} in the metadata of {path}")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(f"{path}: {name} in its metadata is {clip(metadata[name])!r}")
    return value
