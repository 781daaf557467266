"""Convert checkpoints between PyTorch's formats and this library's, in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from florence_jax.adapters import resolve_model
from florence_jax.checkpoint import LoadPlan, Manifest, plan_checkpoint, torch_tensors
from florence_jax.checkpoint.json_files import (
    decoding_settings,
    dump_json,
    torch_config,
    with_rows,
)
from florence_jax.checkpoint.load import checked_dtype, contiguous, leaf_dtype
from florence_jax.checkpoint.native.save import save_sources
from florence_jax.checkpoint.param_tree import unflatten
from florence_jax.checkpoint.pytorch.key_map import (
    DECODER_TOKENS,
    ENCODER_TOKENS,
    LM_HEAD,
    LOGITS_BIAS_PATH,
    SHARED,
    Naming,
    match_name,
    torch_name,
)
from florence_jax.checkpoint.pytorch.save import resized, write_torch
from florence_jax.checkpoint.repository import (
    MAX_METADATA_BYTES,
    contained_bytes,
    has_file,
    read_json_object,
)
from florence_jax.config import Florence2Config
from florence_jax.processing import load_tokenizer
from florence_jax.runtime.atomic_dir import check_apart
from florence_jax.runtime.terminal_bar import terminal_bar

TiedNames = Literal["source", "once", "all"]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion: what was read and what was written."""

    plan: LoadPlan
    manifest: Manifest

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters written."""
        return sum(parameter.nbytes for parameter in self.manifest.parameters)


@dataclasses.dataclass(frozen=True)
class Export:
    """The result of a conversion: what was read and what was written.

    Attributes:
        plan: the source.
        shapes: name -> shape of every tensor written.
        nbytes: their size.
        dtypes: their dtypes.
        files: the files written.
        notes: what the reader of the result should know, one sentence each.
    """

    plan: LoadPlan
    shapes: dict[str, tuple[int, ...]]
    nbytes: int
    dtypes: frozenset[str]
    files: tuple[str, ...]
    notes: tuple[str, ...]


def from_torch(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    """Convert one checkpoint; its parameters are in host memory while Orbax writes them.

    Args:
        source: directory or hub id of a checkpoint in either naming, or one in our format.
        destination: directory to write.
        dtype: "float32", "bfloat16" or "float16"; None keeps each tensor's own.
        revision: branch, tag or commit of a hub id.
        ignore: regular expressions for names of tensors to leave out.
        overwrite: replace an existing checkpoint.
        progress: show progress bars on stderr.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    target, destination = checked_dtype(dtype), Path(destination)
    plan = _plan(source, destination, revision, ignore, progress)
    for entry in plan.sources.values():
        leaf_dtype(entry, target)  # refuses a dtype that parameters do not have
    origin = plan.origin
    if target is not None:
        extra = dict.fromkeys(origin.extra, target.name)
        origin = dataclasses.replace(origin, extra=extra)
    manifest = save_sources(
        destination,
        plan.config,
        plan.sources,
        dtype=target,
        files=plan.repository.directory,
        origin=origin,
        extra_files={"generation_config.json": dump_json(decoding_settings(plan.repository))},
        overwrite=overwrite,
        progress=progress,
    )
    return Conversion(plan, manifest)


def to_torch(
    source: str | Path,
    destination: str | Path,
    *,
    naming: Naming,
    dtype: str | None = None,
    vocab_size: int | None = None,
    tied_names: TiedNames = "source",
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Export:
    """Export one checkpoint; tensors that need no change are never copied to memory.

    Args:
        source: directory or hub id, in this library's format or in either published naming.
        destination: directory to write.
        naming: "native" for transformers' class, "original" for Microsoft's code.
        dtype: "float32", "bfloat16" or "float16"; None keeps each tensor's own.
        vocab_size: rows of the token table; None keeps them.
        tied_names: names under which a tied token table is written (`florence-jax convert --help`).
        revision: branch, tag or commit of a hub id.
        overwrite: replace an existing checkpoint.
        progress: show progress bars on stderr.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    target, destination = checked_dtype(dtype), Path(destination)
    plan = _plan(source, destination, revision, (), progress)
    repository, directory = plan.repository, plan.repository.directory
    rows = plan.config.text.vocab_size if vocab_size is None else vocab_size
    if rows != plan.config.text.vocab_size:
        _check_rows(rows, directory)
    config = with_rows(plan.config, rows)
    if naming == "native" and "image_token_id" not in repository.config:
        config = dataclasses.replace(config, image_token_id=_image_token(directory, config))
    tensors = _tensors(plan, naming, target, rows, tied_names, progress)
    dtypes = frozenset(array.dtype.name for array in tensors.values())
    ties = _ties_embed_tokens(plan, naming, tensors)
    json_files = torch_config(repository, config, naming, dtypes, ties_embed_tokens=ties)
    files = write_torch(destination, tensors, json_files, files=directory, overwrite=overwrite)
    return Export(
        plan=plan,
        shapes={name: array.shape for name, array in tensors.items()},
        nbytes=sum(array.nbytes for array in tensors.values()),
        dtypes=dtypes,
        files=files,
        notes=tuple(_notes(plan, repository.config, naming, config, directory)),
    )


def _plan(
    source: str | Path,
    destination: Path,
    revision: str | None,
    ignore: Sequence[str],
    progress: bool,
) -> LoadPlan:
    directory = resolve_model(source, revision)
    check_apart(directory, destination)
    return plan_checkpoint(directory, ignore=ignore, verify=True, progress=progress)


def _check_rows(rows: int, directory: Path) -> None:
    """Raise ValueError if tokens of `directory`'s tokenizer, where it has one, get no row."""
    try:
        tokens = load_tokenizer(directory).vocab_size
    except FileNotFoundError:
        return
    if rows < tokens:
        raise ValueError(
            f"a vocabulary of {rows} has no rows for the last {tokens - rows} of the {tokens} "
            f"tokens of the tokenizer in {directory}: choose at least {tokens}"
        )


def _tensors(
    plan: LoadPlan,
    naming: Naming,
    target: np.dtype | None,
    rows: int,
    tied_names: TiedNames,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Every tensor to be written, contiguous: a view of the source's file wherever that will do."""
    views = {path: source.view() for path, source in plan.sources.items()}
    for path in (SHARED, LM_HEAD, LOGITS_BIAS_PATH):
        if path in views and len(views[path]) != rows:
            views[path] = resized(views[path], rows)
    wanted = _table_names(plan, naming, tied_names)
    tensors = {}
    with terminal_bar(total=len(views), desc="reading", unit="tensor", shown=progress) as bar:
        for name, view in torch_tensors(unflatten(views), naming, tied_names=True):
            match = match_name(name, naming)
            assert match is not None  # torch_tensors takes its names from the same table
            own = match.path in plan.sources and match.path != SHARED
            if not own and wanted is not None and name not in wanted:
                continue
            source = plan.sources[match.path if own else SHARED]
            dtype = leaf_dtype(source, target)
            if not own and target is None and wanted is not None:
                dtype = np.dtype(wanted[name] or dtype)
            tensors[name] = contiguous(source, view, dtype)
            bar.update()
    return tensors


def _table_names(
    plan: LoadPlan, naming: Naming, tied_names: TiedNames
) -> Mapping[str, str | None] | None:
    """Names of the token table and of a zero output bias -> dtype, where the source tells it.

    None stands for every name that there is.
    """
    if tied_names == "all":
        return None
    extra = plan.origin.extra
    has_table = any(not name.endswith(LOGITS_BIAS_PATH) for name in extra)
    embed_tokens = [_name(path, naming) for path in (ENCODER_TOKENS, DECODER_TOKENS)]
    untied = not plan.config.tie_word_embeddings
    if tied_names == "source" and plan.origin.naming == naming and has_table:
        names = dict(extra)
        wanted = {_name(SHARED, naming), embed_tokens[1]}
        if untied and naming == "original" and not wanted <= names.keys():
            # Told not to tie lm_head, the original ties nothing: these would start as random rows.
            # transformers ties them by a flag of their own, see `torch_config`.
            dtype = next(iter(names.values()))
            names |= {name: dtype for name in (*wanted, *embed_tokens) if name not in names}
        return names
    names = [_name(SHARED, naming), *(embed_tokens if untied else [])]
    if naming == "original":
        names.append(_name(LOGITS_BIAS_PATH, naming))
    return dict.fromkeys(names)


def _name(path: str, naming: Naming) -> str:
    name = torch_name(path, naming)
    assert name is not None, path
    return name


def _ties_embed_tokens(plan: LoadPlan, naming: Naming, names: Iterable[str]) -> bool:
    """The value of `text_config.tie_word_embeddings`: whether embed_tokens are tied to `shared`.

    In the original it decides about lm_head, too. transformers 5 asks the top level for lm_head;
    versions before ask here, so that False is right for all of them where every name is written.
    """
    paths = (SHARED, ENCODER_TOKENS, DECODER_TOKENS)
    complete = {_name(path, naming) for path in paths} <= set(names)
    return plan.config.tie_word_embeddings or (naming == "native" and not complete)


def _image_token(directory: Path, config: Florence2Config) -> int:
    """The id of `<image>`, whose embeddings transformers replaces by the image's.

    By name; where the tokenizer has none, the usual one unless another token has it, as where
    tokens were added to the original's.
    """
    added: dict[str, int] = {}
    if has_file(directory, "tokenizer.json"):
        entries = read_json_object(directory, "tokenizer.json") or {}
        added = {entry["content"]: entry["id"] for entry in entries.get("added_tokens") or []}
    elif has_file(directory, "added_tokens.json"):
        added = read_json_object(directory, "added_tokens.json") or {}
    taken = config.image_token_id in added.values()
    return added.get("<image>", max(added.values()) + 1 if taken else config.image_token_id)


def _notes(
    plan: LoadPlan,
    published: dict[str, Any],
    naming: Naming,
    config: Florence2Config,
    directory: Path,
) -> Iterator[str]:
    before, rows, image = plan.config.text.vocab_size, config.text.vocab_size, config.image_token_id
    if rows > before:
        yield f"vocabulary: {rows - before} rows added to {before}, each the mean of the others"
    elif rows < before:
        yield f"vocabulary: the last {before - rows} of {before} rows removed"
    if naming == "native" and image >= rows:
        enough = max(51328, -(-(image + 1) // 64) * 64)
        yield (
            f"transformers looks up <image>, token {image}, which a vocabulary of {rows} lacks: "
            f"pass --vocab-size {enough}, as the published native checkpoints have, to run it on "
            "images"
        )
    if naming == "native" and has_file(directory, "tokenizer.json"):
        tokenizer = contained_bytes(directory, "tokenizer.json", MAX_METADATA_BYTES)
        if b'"<image>"' not in tokenizer and image != plan.config.image_token_id:
            yield (
                f"the tokenizer has tokens of its own and no <image>, which transformers needs: "
                f"add it as the next one, token {image}"
            )
        elif b'"<image>"' not in tokenizer:
            yield (
                "the tokenizer is the original's, without <image> and the location tokens that "
                "transformers' processor needs: take the tokenizer and processor files of "
                "florence-community/Florence-2-base"
            )
    if naming == "original" and published.get("auto_map"):
        yield (
            "config.json keeps auto_map: copy the *.py files that it names beside it to load this "
            "with the original's remote code"
        )
