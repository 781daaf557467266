"""Read and write PEFT adapter directories, in either naming of the model's modules.

An adapter's tensors are called `base_model.model.<module>.lora_A.weight` and so on, where <module>
is the name in the model that PEFT wrapped: Microsoft's original class or transformers' native one.
The names come from the checkpoint's key table: <module> plus ".weight" is the adapted tensor.
"""

import collections
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from florence_jax.adapters.adapter import Adapter, LowRank
from florence_jax.adapters.peft_config import LoraSettings, read_settings
from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, sample
from florence_jax.checkpoint.plan import LazyTensor
from florence_jax.checkpoint.pytorch.key_map import (
    CONV,
    LINEAR,
    LM_HEAD,
    NAMINGS,
    Match,
    Naming,
    ignored,
    match_name,
    match_path,
)
from florence_jax.checkpoint.pytorch.save import save_tensors
from florence_jax.checkpoint.pytorch.weights import open_tensors
from florence_jax.checkpoint.repository import (
    ADAPTER_CONFIG,
    checkpoint_directory,
    contained_file,
    has_file,
    read_json_object,
)

WEIGHTS_FILE = "adapter_model.safetensors"
TORCH_WEIGHTS_FILE = "adapter_model.bin"

_PREFIX = "base_model.model."
# What follows <module> in a tensor's name. A name with none of them is a whole tensor of the model.
_A, _B, _B_BIAS, _BASE = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".base_layer.weight"
_BASE_LAYER = ".base_layer."
_REFUSED_PARTS = {
    ".lora_embedding_": (
        "LoRA on embeddings",
        "the token table has several names in PyTorch and one here, and each would get an update "
        "of its own: train the adapter without shared and embed_tokens",
    ),
    ".lora_magnitude_vector": ("DoRA magnitudes", "DoRA is not plain LoRA: merge it with PEFT"),
    ".token_adapter.": ("retrained token rows", "trainable_token_indices: merge it with PEFT"),
}


def read_adapter(directory: str | Path) -> Adapter:
    """Read a PEFT LoRA adapter trained on either naming.

    Args:
        directory: holds adapter_config.json and adapter_model.safetensors (or `.bin`, which is
            read by torch with `weights_only=True`).

    Raises:
        CheckpointError: one error with every setting and tensor that is not plain LoRA on linear
            layers of a Florence-2, and what to do.
    """
    directory = Path(directory).expanduser()
    config = read_json_object(directory, ADAPTER_CONFIG) if directory.is_dir() else None
    if config is None:
        what = f"has no {ADAPTER_CONFIG}" if directory.is_dir() else "is no directory"
        raise CheckpointError(
            f"{directory} {what}; expected the directory of a PEFT adapter. To get one from "
            "Hugging Face: hf download ORG/NAME --local-dir DIR"
        )
    problems = ErrorCollector()
    settings = read_settings(config, str(directory / ADAPTER_CONFIG), problems)
    parts, plain = _sorted_by_module(_open(directory), problems)
    names = [*(f"{module}.weight" for module in parts), *plain]
    naming = _naming(names, str(directory))
    modules = {}
    for module, tensors in parts.items():
        match = match_name(f"{module}.weight", naming)
        if match is None:
            problems.add("modules that a Florence-2 does not have", module)
        elif _is_linear(match, naming, module, problems):
            update = _low_rank(module, tensors, match, naming, settings, problems)
            if update is not None:
                modules[match.path] = update
    replaced = {}
    for name, tensor in plain.items():
        match = match_name(name, naming)
        if match is not None:
            replaced[match.path] = match.rule.transform(naming).to_ours(_copy(tensor, problems))
        elif ignored(name, naming) is None:
            problems.add("tensors that a Florence-2 does not have", name)
    problems.raise_if_any(f"{directory} is not an adapter that can be merged into a Florence-2")
    return Adapter(
        modules=modules,
        replaced=replaced,
        use_rslora=settings.use_rslora,
        naming=naming,
        peft_config=config,
        notes=(*settings.notes, *_notes(config, settings, parts)),
    )


def write_adapter(
    directory: str | Path,
    adapter: Adapter,
    naming: Naming,
    *,
    base_model: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write `adapter` as a directory for `PeftModel.from_pretrained(model, directory)`.

    An adapter that was read in the same naming comes back byte for byte. One that was read in the
    other naming is the same adapter, under the other module names.

    Args:
        directory: where to; it appears as a whole when it is complete.
        adapter: the updates.
        naming: of the model that PEFT will load the adapter into: "native" for transformers'
            class, "original" for Microsoft's code.
        base_model: that model's directory or hub id, for adapter_config.json; None keeps the
            adapter's.
        revision: branch, tag or commit of `base_model`.
        overwrite: replace an existing adapter.

    Raises:
        CheckpointError: lists every weight that has no linear layer in `naming`; or the directory
            exists already, or the disk is full.
    """
    base = {"base_model_name_or_path": base_model, "revision": revision} if base_model else {}
    config, tensors = _peft_files(adapter, naming, base)
    destination = Path(directory).expanduser()
    with checkpoint_directory(destination, overwrite=overwrite, marker=ADAPTER_CONFIG) as new:
        # Both files as PEFT writes them.
        (new / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
        save_tensors(tensors, new / WEIGHTS_FILE, {"format": "pt"})


def _peft_files(
    adapter: Adapter, naming: Naming, base: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The content of adapter_config.json, and the tensors by name."""
    problems = ErrorCollector()
    tensors: dict[str, np.ndarray] = {}
    modules: dict[str, LowRank] = {}
    for path, update in adapter.modules.items():
        match = match_path(path)
        name = None if match is None else match.name(naming)
        if match is None or name is None or not name.endswith(".weight"):
            problems.add(f"weights without a linear layer in the {naming} naming", path)
            problems.hint(
                "PEFT adapts modules, and this is none there: export to the other naming, or train "
                "without it"
            )
            continue
        module = name.removesuffix(".weight")
        modules[module] = update
        tensors[f"{_PREFIX}{module}{_A}"] = update.a.T
        tensors[f"{_PREFIX}{module}{_B}"] = update.b.T
        if update.b_bias is not None:
            tensors[f"{_PREFIX}{module}{_B_BIAS}"] = update.b_bias
        if update.base is not None:
            weight = match.rule.transform(naming).to_torch(update.base)
            tensors[f"{_PREFIX}{module}{_BASE}"] = weight
    whole: dict[str, list[str]] = collections.defaultdict(list)
    for path, array in adapter.replaced.items():
        match = match_path(path)
        name = None if match is None else match.name(naming)
        if match is None or name is None or "." not in name:
            problems.add(f"parameters without a module in the {naming} naming", path)
            continue
        module, _, leaf = name.rpartition(".")
        if module in modules:
            name = f"{module}{_BASE_LAYER}{leaf}"
        else:
            whole[module].append(leaf)
        tensors[_PREFIX + name] = match.rule.transform(naming).to_torch(array)
    problems.raise_if_any(f"the adapter has no {naming} form in PEFT")
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return _config(adapter, naming, modules, whole, base), tensors


def _open(directory: Path) -> list[LazyTensor]:
    for name in (WEIGHTS_FILE, TORCH_WEIGHTS_FILE):
        if has_file(directory, name):
            return open_tensors(contained_file(directory, name), str(directory / name))
    raise CheckpointError(
        f"{directory} has {ADAPTER_CONFIG} but neither {WEIGHTS_FILE} nor {TORCH_WEIGHTS_FILE}: is "
        "the download complete?"
    )


def _sorted_by_module(
    tensors: Iterable[LazyTensor], problems: ErrorCollector
) -> tuple[dict[str, dict[str, LazyTensor]], dict[str, LazyTensor]]:
    """(module -> part -> tensor, name of a whole tensor of the model -> tensor)."""
    parts: dict[str, dict[str, LazyTensor]] = collections.defaultdict(dict)
    plain: dict[str, LazyTensor] = {}
    for tensor in tensors:
        name = tensor.name.removeprefix(_PREFIX)
        if name == tensor.name:
            problems.add(f"tensors whose name does not begin with {_PREFIX}", name)
            continue
        refused = next((why for part, why in _REFUSED_PARTS.items() if part in name), None)
        part = next((end for end in (_A, _B, _B_BIAS, _BASE) if name.endswith(end)), None)
        if refused is not None:
            problems.add(refused[0], name)
            problems.hint(refused[1])
        elif part is not None:
            parts[name.removesuffix(part)][part] = tensor
        elif ".lora_" in name:
            problems.add("tensors that plain LoRA does not have", name)
        else:
            plain[name.replace(_BASE_LAYER, ".")] = tensor
    return dict(parts), plain


def _naming(names: list[str], label: str) -> Naming:
    votes = {
        naming: sum(match_name(name, naming) is not None for name in names) for naming in NAMINGS
    }
    best = max(NAMINGS, key=lambda naming: votes[naming])
    if not votes[best]:
        raise CheckpointError(
            f"{label}: none of the adapter's {len(names)} modules is a linear layer of a "
            f"Florence-2, in the original or the native naming: {sample(names) or 'it has none'}"
        )
    return best


def _is_linear(match: Match, naming: Naming, module: str, problems: ErrorCollector) -> bool:
    transform = match.rule.transform(naming)
    if transform is LINEAR or match.path == LM_HEAD:
        return True
    if transform is CONV:
        problems.add("LoRA on convolutions", module)
        problems.hint(
            "a convolution's update is two convolutions, not a product of two matrices: train "
            "without it (in the original naming target 'fn.proj', since 'proj' also means "
            "vision_tower.convs.N.proj), or merge with PEFT and convert the merged model"
        )
    else:
        problems.add("LoRA on modules that are not linear", module)
    return False


def _low_rank(
    module: str,
    tensors: Mapping[str, LazyTensor],
    match: Match,
    naming: Naming,
    settings: LoraSettings,
    problems: ErrorCollector,
) -> LowRank | None:
    missing = [part for part in (_A, _B) if part not in tensors]
    if missing:
        for part in missing:
            problems.add("missing tensors", f"{_PREFIX}{module}{part}")
        return None
    a, b = tensors[_A], tensors[_B]
    ranks = settings.ranks_of(module)
    is_pair = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
    if not is_pair or a.shape[0] not in ranks:
        rank = " or ".join(map(str, dict.fromkeys(ranks)))
        problems.add(
            "factors of the wrong shape",
            module,
            f"lora_A is {list(a.shape)} and lora_B {list(b.shape)}, expected [r, in] and [out, r] "
            f"with r = {rank}, as adapter_config.json says",
        )
        return None
    base, b_bias = tensors.get(_BASE), tensors.get(_B_BIAS)
    return LowRank(
        a=_copy(a, problems).T,
        b=_copy(b, problems).T,
        alpha=settings.alphas_of(module)[0],
        b_bias=None if b_bias is None else _copy(b_bias, problems),
        base=None if base is None else match.rule.transform(naming).to_ours(_copy(base, problems)),
    )


def _copy(tensor: LazyTensor, problems: ErrorCollector) -> np.ndarray:
    if not tensor.is_readable:
        problems.add("tensors of an unsupported dtype", tensor.name, str(tensor.dtype))
    return np.array(tensor.view())


def _notes(config: Mapping[str, Any], settings: LoraSettings, modules: Iterable[str]) -> list[str]:
    targets = config.get("target_modules")
    notes = [
        f"target_modules names {target!r}, and no module of the adapter's tensors is called that"
        for target in (targets if isinstance(targets, list) else [])
        if not any(f".{module}".endswith(f".{target}") for module in modules)
    ]
    unclear = [module for module in modules if len(set(settings.alphas_of(module))) > 1]
    if unclear:
        notes.append(
            f"several entries of alpha_pattern match {sample(unclear, 2)}: the first in the file "
            "counts, as when PEFT loads it (PEFT sorts them when it saves)"
        )
    return notes


def _config(
    adapter: Adapter,
    naming: Naming,
    modules: Mapping[str, LowRank],
    whole: Mapping[str, list[str]],
    base: Mapping[str, Any],
) -> dict[str, Any]:
    found = {**(adapter.peft_config or {}), **base}
    if found and adapter.naming == naming:
        return found
    rank = _most_common([update.rank for update in modules.values()], 8)
    alpha = _most_common([update.alpha for update in modules.values()], 8)
    bias = found.get("bias") or "none"
    # Biases that `bias` explains are not modules to save.
    saved = [
        module for module, leaves in whole.items() if bias == "none" or set(leaves) != {"bias"}
    ]
    neutral = {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "task_type": None,
        "use_dora": False,
    }
    # Whole names, so that PEFT adapts exactly these modules; names of another class mean nothing.
    return {
        **neutral,
        **found,
        "alpha_pattern": {m: u.alpha for m, u in modules.items() if u.alpha != alpha},
        "auto_mapping": None,
        "exclude_modules": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_bias": any(update.b_bias is not None for update in modules.values()),
        "modules_to_save": sorted(saved) or None,
        "r": rank,
        "rank_pattern": {m: u.rank for m, u in modules.items() if u.rank != rank},
        "target_modules": sorted(modules),
        "use_rslora": adapter.use_rslora,
    }


def _most_common(values: list[Any], default: Any) -> Any:
    return collections.Counter(values).most_common(1)[0][0] if values else default
