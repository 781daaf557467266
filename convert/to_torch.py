"""A checkpoint in any format to a PyTorch directory that transformers reads.

python -m convert.to_torch SRC DEST --naming native|original
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from convert.command import (
    add_dtype,
    add_revision,
    add_writing_options,
    as_size,
    check_apart,
    copy_metadata,
    guarded,
    program_parser,
)
from convert.vocabulary import check_rows, resized
from florence_jax.checkpoint import LoadPlan, plan_checkpoint, read_config, resolve, torch_tensors
from florence_jax.checkpoint.files import (
    MAX_METADATA_BYTES,
    checkpoint_directory,
    contained_bytes,
    has_file,
    read_json_object,
)
from florence_jax.checkpoint.param_tree import insert
from florence_jax.checkpoint.pytorch.config_files import torch_config, with_rows
from florence_jax.checkpoint.pytorch.key_map import (
    DECODER_TOKENS,
    ENCODER_TOKENS,
    LM_HEAD,
    LOGITS_BIAS_PATH,
    SHARED,
    Naming,
    match_name,
    match_path,
)
from florence_jax.checkpoint.pytorch.read_tensor import checked_dtype, fetch, leaf_dtype
from florence_jax.checkpoint.pytorch.safetensors_writer import save_tensors
from florence_jax.config import Florence2Config

_PROGRAM = "convert.to_torch"
_WEIGHTS = "model.safetensors"
_JSON_FILES = ("config.json", "generation_config.json")
TiedNames = Literal["source", "once", "all"]

_EPILOG = """\
examples:
  for transformers' own class (florence-community's naming):
    python -m convert.to_torch mine/ mine-torch/ --naming native
  for the original code of microsoft/Florence-2-*, back to the very tensors it came from:
    python -m convert.to_torch mine/ mine-original/ --naming original
  an original checkpoint for transformers, which needs a row for <image> (id 51289):
    python -m convert.to_torch microsoft/Florence-2-base-ft base-native/ --naming native \\
        --vocab-size 51328

SRC is what convert.from_torch or florence_jax.checkpoint.save_checkpoint wrote, or any published
directory or hub id. DEST gets model.safetensors, config.json and generation_config.json in the
dialect of the naming, and SRC's tokenizer and processor files. It appears when it is complete.

Token table: PyTorch knows it under up to four names. --tied-names source (the default) writes the
names that the PyTorch file had which SRC came from, so that the way there and back gives the same
tensors; where SRC came from another naming or from training, and with `once`, there is one name,
as in published safetensors files. `all` writes every name of the class's state_dict, for a strict
load_state_dict. An lm_head with values of its own is always written, and then so are the
embed_tokens, which PyTorch may not tie then; only names of a file in transformers' naming stay as
they were, with text_config.tie_word_embeddings true.

Output bias: the original naming always has `final_logits_bias`, of zeros where SRC has none; in
transformers' naming there is none, and an output bias that is not zero is refused.

Vocabulary: rows are added or removed only by --vocab-size. Added rows are the mean of the others.
"""


@dataclasses.dataclass(frozen=True)
class Export:
    """What was read and written.

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
        tied_names: names under which a tied token table is written (see --help).
        revision: branch, tag or commit of a hub id.
        overwrite: replace an existing checkpoint.
        progress: show progress bars on stderr.

    Raises:
        CheckpointError, ConfigError, ValueError: what is wrong, and what to do.
    """
    target = None if dtype is None else checked_dtype(dtype)
    directory = resolve(source, revision=revision)
    check_apart(directory, Path(destination))
    plan = plan_checkpoint(directory, verify=True, progress=progress)
    repository = read_config(directory)
    rows = plan.config.text.vocab_size if vocab_size is None else vocab_size
    if rows != plan.config.text.vocab_size:
        check_rows(rows, directory)
    config = with_rows(plan.config, rows)
    if naming == "native" and "image_token_id" not in repository.config:
        config = dataclasses.replace(config, image_token_id=_image_token(directory, config))
    tensors = _tensors(plan, naming, target, rows, tied_names, progress)
    dtypes = frozenset(array.dtype.name for array in tensors.values())
    json_files = dict(
        zip(
            _JSON_FILES,
            torch_config(
                repository,
                config,
                naming,
                dtypes,
                ties_embed_tokens=_ties_embed_tokens(plan, naming, tensors),
            ),
            strict=True,
        )
    )
    with checkpoint_directory(Path(destination), overwrite=overwrite) as new:
        copy_metadata(directory, new)
        for name, content in json_files.items():
            (new / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, new / _WEIGHTS, {"format": "pt"})
        files = tuple(sorted(path.name for path in new.iterdir()))
    return Export(
        plan=plan,
        shapes={name: array.shape for name, array in tensors.items()},
        nbytes=sum(array.nbytes for array in tensors.values()),
        dtypes=dtypes,
        files=files,
        notes=tuple(_notes(plan, repository.config, naming, config, directory)),
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
    params: dict[str, Any] = {}
    for path, entry in plan.sources.items():
        view = entry.transform.to_ours(entry.tensor.view())
        if path in (SHARED, LM_HEAD, LOGITS_BIAS_PATH) and len(view) != rows:
            view = resized(view, rows)
        insert(params, path, view)
    wanted = _table_names(plan, naming, tied_names)
    tensors = {}
    with tqdm(
        total=len(plan.sources), desc="reading", unit="tensor", disable=not progress
    ) as progress_bar:
        for name, view in torch_tensors(params, naming, tied_names=True):
            match = match_name(name, naming)
            assert match is not None  # torch_tensors takes its names from the same table
            own = match.path in plan.sources and match.path != SHARED
            if not own and wanted is not None and name not in wanted:
                continue
            entry = plan.sources[match.path if own else SHARED]
            dtype = leaf_dtype(entry, target)
            if not own and target is None and wanted is not None:
                dtype = np.dtype(wanted[name] or dtype)
            unchanged = view.dtype == dtype and view.flags.c_contiguous
            tensors[name] = view if unchanged else fetch(entry, view, dtype)
            progress_bar.update()
    return tensors


def _table_names(
    plan: LoadPlan, naming: Naming, tied_names: TiedNames
) -> dict[str, str | None] | None:
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
    match = match_path(path)
    name = None if match is None else match.name(naming)
    assert name is not None, path
    return name


def _ties_embed_tokens(plan: LoadPlan, naming: Naming, names: Iterable[str]) -> bool:
    """What `text_config.tie_word_embeddings` says: are the embed_tokens tied to `shared`?

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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    return guarded(_PROGRAM, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    export = to_torch(
        options.source,
        options.destination,
        naming=options.naming,
        dtype=options.dtype,
        vocab_size=options.vocab_size,
        tied_names=options.tied_names,
        revision=options.revision,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    if not options.quiet:
        seconds = time.monotonic() - started
        lines = [
            f"read {export.plan.report}",
            f"wrote {options.destination}: {len(export.shapes)} tensors in the {options.naming} "
            f"naming, {', '.join(sorted(export.dtypes))}, {as_size(export.nbytes)}, in "
            f"{seconds:.1f} s",
            f"  files: {', '.join(export.files)}",
        ]
        print("\n".join([*lines, *(f"  note: {note}" for note in export.notes)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(_PROGRAM, "Export a Florence-2 checkpoint to PyTorch.", _EPILOG)
    parser.add_argument("source", metavar="SRC", help="checkpoint directory or hub id")
    parser.add_argument("destination", metavar="DEST", help="directory to write")
    parser.add_argument(
        "--naming",
        choices=("native", "original"),
        required=True,
        help="native: transformers' own class; original: Microsoft's code",
    )
    add_dtype(parser, "of every tensor (default: each as it is stored)")
    parser.add_argument(
        "--vocab-size", type=int, metavar="ROWS", help="pad or cut the token table to ROWS"
    )
    parser.add_argument(
        "--tied-names",
        choices=("source", "once", "all"),
        default="source",
        help="names of a tied token table (default: %(default)s)",
    )
    add_revision(parser)
    add_writing_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
