"""Add a LoRA adapter to a model: to its parameters, merged or beside them, or to its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from florence_jax.adapters.adapter import Adapter, LowRank
from florence_jax.adapters.peft import read_adapter
from florence_jax.checkpoint import Report, plan_checkpoint, resolve
from florence_jax.checkpoint.errors import ErrorCollector
from florence_jax.checkpoint.load import checked_dtype, leaf_dtype
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.pytorch.key_map import (
    DECODER_TOKENS,
    ENCODER_TOKENS,
    LM_HEAD,
    LOGITS_BIAS_PATH,
    SHARED,
    Naming,
)
from florence_jax.checkpoint.pytorch.save import save_torch
from florence_jax.config import Florence2Config
from florence_jax.runtime.atomic_dir import check_apart
from florence_jax.runtime.terminal_bar import terminal_bar


class Merged(NamedTuple):
    """A model with an adapter added: parameters, config, and notes on what merging decided."""

    params: dict[str, Any]
    config: Florence2Config
    notes: tuple[str, ...]


def merge(
    params: Mapping[str, Any],
    config: Florence2Config,
    adapter: Adapter,
    *,
    dtype: Any = None,
    keep_low_rank: bool = False,
    progress: bool = False,
) -> Merged:
    """Add `adapter` to `params`.

    Sums are taken in float32 and rounded once. A tied `lm_head` that the adapter changes becomes a
    leaf of its own: the embeddings keep their values, as they did in training.

    Args:
        params: nested dict of arrays, as `load_checkpoint` returns it; not modified.
        config: the model's.
        adapter: the updates.
        dtype: of every parameter of the result; None keeps each one's.
        keep_low_rank: leave the kernels of linear layers as they are, and put the factors beside
            them as `adapter/a` and `adapter/b` (which carries the scale): the model then adds
            their product, `Linear.adapter`. Updates of `lm_head` and of biases are added even so.
        progress: show a progress bar on stderr.

    Returns:
        (params, config, notes); `config` says whether `lm_head` is tied after merging.

    Raises:
        CheckpointError: lists every weight that the model lacks, whose shape differs, or whose
            values do not allow the merge.
    """
    target = None if dtype is None else np.dtype(dtype)
    work = _Merge(params, config, adapter, target, keep_low_rank)
    work.replace()
    for path in terminal_bar(adapter.modules, desc="merging", unit="weight", shown=progress):
        work.add(path)
    return work.finish()


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """The result of a merge: what was read, decided and written.

    Attributes:
        adapter: the adapter.
        base: what loading the base model found.
        naming: of the tensors written.
        tensors: their number.
        nbytes: their size.
        dtypes: their dtypes.
        notes: what merging decided, one sentence each.
    """

    adapter: Adapter
    base: Report
    naming: Naming
    tensors: int
    nbytes: int
    dtypes: frozenset[str]
    notes: tuple[str, ...]


def merge_lora(
    adapter: str | Path,
    base: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    naming: Naming | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> MergeReport:
    """Merge one adapter and write the model; weights that no update touches are never copied.

    Args:
        adapter: directory of a PEFT adapter.
        base: directory or hub id of the base model, in either naming or in our format.
        destination: directory to write.
        dtype: "float32", "bfloat16" or "float16"; None keeps each parameter's own.
        naming: of the tensors and config.json to write; None is the base model's.
        revision: branch, tag or commit of a hub id.
        overwrite: replace an existing checkpoint.
        progress: show progress bars on stderr.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    target = checked_dtype(dtype)
    updates = read_adapter(adapter)
    directory, destination = resolve(base, revision), Path(destination).expanduser()
    for source in (directory, Path(adapter).expanduser()):
        check_apart(source, destination)
    plan = plan_checkpoint(directory, verify=True, progress=progress)
    for source in plan.sources.values():
        leaf_dtype(source, target)  # refuses a dtype that parameters do not have
    params = unflatten({path: source.view() for path, source in plan.sources.items()})
    merged = merge(params, plan.config, updates, dtype=target, progress=progress)
    naming = naming or plan.report.naming
    written = save_torch(
        destination,
        merged.config,
        merged.params,
        naming,
        files=directory,
        pad_image_row=False,
        overwrite=overwrite,
    )
    return MergeReport(
        adapter=updates,
        base=plan.report,
        naming=naming,
        tensors=len(written),
        nbytes=sum(array.nbytes for array in written.values()),
        dtypes=frozenset(array.dtype.name for array in written.values()),
        notes=merged.notes,
    )


class _Merge:
    """The state of one merge, which collects every problem before it returns a result."""

    def __init__(
        self,
        params: Mapping[str, Any],
        config: Florence2Config,
        adapter: Adapter,
        dtype: np.dtype | None,
        keep_low_rank: bool,
    ):
        self.adapter, self.config, self.dtype = adapter, config, dtype
        self.keep_low_rank = keep_low_rank
        self.leaves = dict(flatten(params))
        self.problems = ErrorCollector()
        self.notes = list(adapter.notes)
        # While merging there is always a head; in a tied model it starts as the table itself.
        self.leaves.setdefault(LM_HEAD, self.leaves[SHARED])

    def replace(self) -> None:
        """Put the adapter's whole parameters in place of the model's."""
        replaced = dict(self.adapter.replaced)
        if replaced.pop(ENCODER_TOKENS, None) is not None:
            self.notes.append("encoder.embed_tokens is left out: neither reference model reads it")
        self._check_tables(replaced.get(SHARED), replaced.pop(DECODER_TOKENS, None))
        bias = replaced.get(LOGITS_BIAS_PATH)
        if bias is not None and LOGITS_BIAS_PATH not in self.leaves:
            if bias.shape == (self.config.text.vocab_size,) and bias.any():
                self.leaves[LOGITS_BIAS_PATH] = np.zeros_like(bias)
                self.config = dataclasses.replace(self.config, final_logits_bias=True)
            else:
                del replaced[LOGITS_BIAS_PATH]
        for path, array in replaced.items():
            leaf = self._leaf(path)
            if leaf is None:
                continue
            if array.shape != leaf.shape:
                self._wrong_shape(path, list(array.shape), list(leaf.shape))
            else:
                self._store(path, array.astype(np.float32), leaf.dtype)

    def _check_tables(self, shared: np.ndarray | None, decoder: np.ndarray | None) -> None:
        """Refuse two token tables: the model embeds prompt and decoder tokens with one."""
        if shared is None and decoder is None:
            return
        table = np.asarray(self.leaves[SHARED])
        if not np.array_equal(
            table if shared is None else shared, table if decoder is None else decoder
        ):
            self.problems.add(
                "token tables that differ after merging",
                "shared and decoder.embed_tokens",
                "modules_to_save trained one of them, or both apart",
            )
            self.problems.hint(
                "the model has one token table for prompt and decoder: train with PEFT's "
                "ensure_weight_tying=True, or leave the token tables out of modules_to_save"
            )

    def add(self, path: str) -> None:
        """Add one module's low-rank update to its weight, and its bias to the bias."""
        update, scale = self.adapter.modules[path], self.adapter.scale(path)
        leaf = self._leaf(path)
        if leaf is None:
            return
        is_table = path == LM_HEAD  # [out, in], where kernels are [in, out]
        shape = (update.a.shape[0], update.b.shape[1])
        shape = shape[::-1] if is_table else shape
        if shape != leaf.shape:
            self._wrong_shape(path, list(shape), list(leaf.shape))
            return
        if update.base is not None and not _agree(update.base, np.asarray(leaf)):
            self.problems.add(
                "weights that are not those the adapter was trained on",
                path,
                "the adapter's file repeats its base weight, and the model's has other values",
            )
            self.problems.hint("merge into the base model that adapter_config.json names")
            return
        if self.keep_low_rank and not is_table:
            self._put_beside(path.removesuffix("/kernel"), update, scale)
        else:
            # [out, in], as a file's rows are: the sum then runs through memory in order.
            delta = update.b.T.astype(np.float32) @ update.a.T.astype(np.float32)
            delta *= np.float32(scale)
            total = np.asarray(leaf).astype(np.float32) + (delta if is_table else delta.T)
            self._store(path, total, leaf.dtype)
        if update.b_bias is None:
            return
        bias_path = path.removesuffix("/kernel") + "/bias"
        bias = self._leaf(bias_path)
        if bias is not None and bias.shape != update.b_bias.shape:
            self._wrong_shape(bias_path, list(update.b_bias.shape), list(bias.shape))
        elif bias is not None:
            total = np.asarray(bias).astype(np.float32)
            total += update.b_bias.astype(np.float32) * np.float32(scale)
            self._store(bias_path, total, bias.dtype)

    def _put_beside(self, module: str, update: LowRank, scale: float) -> None:
        a, b = update.a.astype(np.float32), update.b.astype(np.float32) * np.float32(scale)
        for name, factor in (("a", a), ("b", b)):
            self._store(f"{module}/adapter/{name}", factor, factor.dtype)

    def finish(self) -> Merged:
        """The merged model; raises CheckpointError with every problem found."""
        self.problems.raise_if_any("the adapter cannot be merged into this model")
        head = self.leaves.pop(LM_HEAD)
        shared = self.leaves[SHARED]
        tied = head is shared or (
            self.config.tie_word_embeddings and np.array_equal(np.asarray(head), np.asarray(shared))
        )
        if not tied:
            self.leaves[LM_HEAD] = head
        if self.config.tie_word_embeddings and not tied:
            self.notes.append(
                "lm_head was tied to the token table and is now a weight of its own: the adapter "
                "changes one of the two (PEFT's merge_and_unload would change both)"
            )
        config = dataclasses.replace(self.config, tie_word_embeddings=tied)
        if self.dtype is not None:
            self.leaves = {p: self._cast(p, leaf, self.dtype) for p, leaf in self.leaves.items()}
        # A narrow dtype may not hold parameters that no update touched.
        self.problems.raise_if_any("the merged model cannot be written")
        return Merged(unflatten(self.leaves), config, tuple(self.notes))

    def _leaf(self, path: str) -> Any | None:
        leaf = self.leaves.get(path)
        if leaf is None:
            self.problems.add("weights that the adapter changes and the model lacks", path)
            self.problems.hint("is this the base model that adapter_config.json names?")
        return leaf

    def _wrong_shape(self, path: str, given: list[int], expected: list[int]) -> None:
        self.problems.add(
            "shapes that differ", path, f"the adapter has {given}, the model has {expected}"
        )
        if path in (LM_HEAD, SHARED):
            self.problems.hint(
                "transformers pads the vocabulary of 51289 to 51328: use the base model in the "
                "naming that the adapter was trained on"
            )

    def _store(self, path: str, array: np.ndarray, dtype: np.dtype) -> None:
        if not np.isfinite(array).all():
            self.problems.add("weights that are not finite after merging", path)
            self.problems.hint("training diverged: use an earlier checkpoint of the adapter")
            return
        self.leaves[path] = self._cast(path, array, self.dtype or dtype)

    def _cast(self, path: str, leaf: Any, dtype: np.dtype) -> np.ndarray:
        with np.errstate(over="ignore"):  # judged here, by name
            array = np.asarray(leaf).astype(dtype, copy=False)
        if dtype == np.float16 and np.isinf(array).any():
            self.problems.add("values beyond float16's 65504", path)
            self.problems.hint("write bfloat16 or float32: --dtype")
        return array


def _agree(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether these are one weight, perhaps rounded from one dtype to the other."""
    return left.shape == right.shape and (
        np.array_equal(left.astype(right.dtype), right)
        or np.array_equal(right.astype(left.dtype), left)
    )
