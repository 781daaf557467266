"""Match a PyTorch checkpoint's tensors to the parameters of its config; nothing is allocated yet.

Names come first: the naming, a foreign prefix, and the parameter of each tensor. Embeddings follow,
because one token table may have up to four names. Both reference classes embed the prompt and the
decoder's input with `shared` (the decoder through `decoder.embed_tokens`) and hand the encoder
ready-made embeddings, so `encoder.embed_tokens` is never read: training under FSDP or DeepSpeed,
which separates the four, leaves it stale. Like transformers 5, this library ties only tables of
equal values, whatever config.json says.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, sample
from florence_jax.checkpoint.param_tree import check_sources
from florence_jax.checkpoint.plan import LazyTensor, LoadPlan, Report, Source, SourceFormat
from florence_jax.checkpoint.pytorch.key_map import (
    DUPLICATE_PATHS,
    ENCODER_TOKENS,
    LM_HEAD,
    LOGITS_BIAS_PATH,
    NAMINGS,
    SHARED,
    TABLE_PATHS,
    Naming,
    Shape,
    ignored,
    match_name,
    torch_name,
)
from florence_jax.checkpoint.repository import RepositoryConfig, WeightFiles
from florence_jax.config import Florence2Config

# Segments that torch's wrappers (torch.compile, FSDP, activation checkpointing) insert anywhere.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# The longest foreign prefix that is looked for: untrusted names may have any length.
_MAX_PREFIX_SEGMENTS = 6
# Below this share of known names it is another model, and a list of 600 names helps nobody.
_MIN_KNOWN = 0.1
# Where `shared` itself is absent, the first of these that is present is the token table: the order
# in which transformers looks for a substitute.
_TOKEN_TABLES = (SHARED, *DUPLICATE_PATHS)
# The published vocabulary, and the same padded to a multiple of 64 by the native conversion.
_PUBLISHED_VOCABULARIES = (51289, 51328)
# Elements compared or tested at a time: a table of 50 M elements then takes a few MB of memory.
_CHUNK_ELEMENTS = 1 << 20


@dataclasses.dataclass
class _Findings:
    """Decisions of matching; see the attributes of `Report`."""

    tied: list[str] = dataclasses.field(default_factory=list)
    untied: list[str] = dataclasses.field(default_factory=list)
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)


def match_weights(
    repository: RepositoryConfig,
    config: Florence2Config,
    files: WeightFiles,
    tensors: Sequence[LazyTensor],
    ignore: Sequence[str] = (),
) -> LoadPlan:
    """Match `tensors` to the parameters of `config`; only the values of token tables are read.

    Args:
        repository: the configuration files.
        config: the model that they describe.
        files: the weight files.
        tensors: the tensors of all weight files.
        ignore: regular expressions for tensors to leave out (each matches a whole name).

    Raises:
        CheckpointError: one error with every problem: missing, unexpected or duplicate tensors,
            wrong shapes and dtypes, sizes on which config.json and the tensors disagree.
    """
    problems, findings = ErrorCollector(), _Findings(warnings=list(repository.warnings))
    naming, found = _parameters(tensors, ignore, problems, findings)
    declared_tied = repository.config.get("tie_word_embeddings", True) is not False
    sources, config = _tie(found, config, declared_tied, problems, findings)
    # Names of the token table and of a zero output bias, which are no parameters of their own.
    extra = {
        name: found[path].tensor.dtype.name
        for name, path in TABLE_PATHS[naming].items()
        if path in found
        and (
            found[path] is sources.get(SHARED)
            or found[path].tensor.name in findings.tied
            or (path == LOGITS_BIAS_PATH and path not in sources)
        )
    }
    report = Report(
        source=str(repository.directory),
        files=tuple(files.paths),
        naming=naming,
        parameters=sum(math.prod(source.tensor.shape) for source in sources.values()),
        stored_dtypes=dict(collections.Counter(str(tensor.dtype) for tensor in tensors)),
        tied=tuple(findings.tied),
        untied=tuple(findings.untied),
        ignored=findings.ignored,
        warnings=(
            *findings.warnings,
            *(f"{name} is there too and was not read" for name in files.unused),
        ),
    )
    origin = SourceFormat(naming=naming, vocab_size=config.text.vocab_size, extra=extra)
    for source in found.values():
        if not source.tensor.is_readable:
            name, dtype = source.tensor.name, str(source.tensor.dtype)
            problems.add("tensors of an unsupported dtype", name, dtype)
            problems.hint(
                "float32, float16 and bfloat16 are read (float64 with an explicit dtype): use the "
                "unquantised checkpoint"
            )
    check_sources(config, sources, problems, functools.partial(torch_name, naming=naming))
    problems.raise_if_any(f"{report.source} ({naming} naming) does not fit its config.json")
    return LoadPlan(repository, config, sources, report, origin)


def _parameters(
    tensors: Sequence[LazyTensor],
    ignore: Sequence[str],
    problems: ErrorCollector,
    findings: _Findings,
) -> tuple[Naming, dict[str, Source]]:
    """The naming of the tensors, and path in our tree -> the tensor with that parameter's name.

    Paths include those of the token table's further names. Unexpected and duplicate tensors are
    recorded in `problems`.

    Raises:
        CheckpointError: the names are not those of a Florence-2 at all.
    """
    plain = {tensor.name: _without_wrappers(tensor.name) for tensor in tensors}
    naming, prefix = _naming_and_prefix(list(plain.values()))
    wrapped = [name for name, inner in plain.items() if name != inner]
    if wrapped:
        findings.warnings.append(
            f"wrapper segments removed from {len(wrapped)} names: {sample(wrapped, 1)}"
        )
    if prefix:
        findings.warnings.append(f"foreign prefix {prefix!r} removed from every name")
    sources: dict[str, Source] = {}
    unused = dict.fromkeys(ignore)
    for tensor in tensors:
        pattern = next((p for p in ignore if re.fullmatch(p, tensor.name)), None)
        if pattern is not None:
            unused.pop(pattern, None)
            findings.ignored[tensor.name] = f"asked for by ignore={pattern!r}"
            continue
        name = plain[tensor.name]
        inner = name.removeprefix(prefix)
        match = match_name(inner, naming) if name.startswith(prefix) else None
        skipped = ignored(inner, naming)
        if match is not None:
            source = Source(tensor, match.rule.transform(naming))
            first = sources.setdefault(match.path, source)
            if first is not source:
                problems.add(
                    "tensors stored twice",
                    tensor.name,
                    f"in {tensor.file}; {first.tensor.name} in {first.tensor.file} fills "
                    f"{match.path} already",
                )
        elif skipped is not None:
            findings.ignored[tensor.name] = skipped.reason
        else:
            problems.add("unexpected tensors", tensor.name)
            problems.hint(
                "if the file carries more than a Florence-2, leave the rest out by name: "
                'ignore=["REGEX"]'
            )
    for pattern in unused:
        problems.add("ignore patterns that match no tensor", pattern)
    return naming, sources


def _without_wrappers(name: str) -> str:
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


def _naming_and_prefix(names: Sequence[str]) -> tuple[Naming, str]:
    """The naming and prefix under which most names are known; the shortest prefix on a tie."""
    votes: collections.Counter[tuple[Naming, str]] = collections.Counter()
    for name in names:
        inner, prefix = name, ""
        for _ in range(_MAX_PREFIX_SEGMENTS + 1):
            for naming in NAMINGS:
                if match_name(inner, naming) is not None:
                    votes[naming, prefix] += 1
            segment, dot, inner = inner.partition(".")
            if not dot:
                break
            prefix += segment + dot
    if votes and max(votes.values()) >= _MIN_KNOWN * len(names):
        return min(votes, key=lambda found: (-votes[found], len(found[1])))
    message = (
        f"these are not the tensors of a Florence-2 checkpoint ({len(names)} tensors, almost none "
        f"of them known in the original or the native naming): {sample(names)}"
    )
    if any("lora_" in name for name in names):
        message += ". This is a LoRA adapter: merge it with python -m convert.merge_lora"
    raise CheckpointError(message)


def _tie(
    found: Mapping[str, Source],
    config: Florence2Config,
    declared_tied: bool,
    problems: ErrorCollector,
    findings: _Findings,
) -> tuple[dict[str, Source], Florence2Config]:
    """Compare the embedding tables' values and tie those that are equal.

    Args:
        found: every recognised tensor, by our path.
        config: sizes from config.json.
        declared_tied: the value of config.json's `tie_word_embeddings`.
        problems: collects tables that cannot be represented.
        findings: collects what is decided.

    Returns:
        The tensors without duplicates of the token table and without a zero output bias, and the
        config with the vocabulary, `tie_word_embeddings` and `final_logits_bias` of the tensors.
    """
    kept = dict(found)
    tables = {path: kept.pop(path) for path in _TOKEN_TABLES if path in kept}
    is_tied = True
    if _comparable(tables, problems):
        (origin, table), *others = tables.items()
        kept[SHARED] = table
        label = table.tensor.name
        if origin != SHARED:
            findings.tied.append(label)
            findings.warnings.append(f"no `shared` table; {label} takes its place")
        for path, source in others:
            name = source.tensor.name
            if _same_values(table.tensor, source.tensor):
                findings.tied.append(name)
            elif path == LM_HEAD:
                is_tied = False
                kept[LM_HEAD] = source
                findings.untied.append(f"{name} differs from {label}; both are kept")
            elif path == ENCODER_TOKENS:
                findings.ignored[name] = (
                    f"differs from {label}, but neither reference model reads it"
                )
            else:
                detail = f"its values are not those of {label}"
                problems.add("token tables that differ", name, detail)
                problems.hint(
                    "the model has one token table for prompt and decoder: if training separated "
                    "them by accident, remove the stale one from the file"
                )
        if is_tied != declared_tied:
            where = "equals the token table" if LM_HEAD in tables else "is not in the files"
            findings.warnings.append(
                f"config.json: tie_word_embeddings is false, but lm_head {where}: it is tied"
                if is_tied
                else "config.json: tie_word_embeddings is true, but lm_head differs: it is kept"
            )
        config = _with_rows(config, table.tensor.shape[0], findings)
    elif tables:
        kept[SHARED] = next(iter(tables.values()))
    bias = kept.get(LOGITS_BIAS_PATH)
    if bias is not None and bias.tensor.is_readable and _is_zero(bias.tensor):
        findings.ignored[bias.tensor.name] = "all zero"
        del kept[LOGITS_BIAS_PATH]
    elif bias is not None:
        findings.untied.append(f"{bias.tensor.name} is not zero; it is added to the logits")
    flags = {"tie_word_embeddings": is_tied, "final_logits_bias": LOGITS_BIAS_PATH in kept}
    return kept, dataclasses.replace(config, **flags)


def _comparable(tables: Mapping[str, Source], problems: ErrorCollector) -> bool:
    """Whether there is a table, and all are readable and of the same two-dimensional shape."""
    if not tables or not all(source.tensor.is_readable for source in tables.values()):
        return False  # missing tensors and unsupported dtypes are recorded elsewhere
    shapes = {source.tensor.shape for source in tables.values()}
    if len(shapes) == 1 and len(next(iter(shapes))) == 2:
        return True
    for source in tables.values():
        shape = str(list(source.tensor.shape))
        problems.add("token tables whose shapes disagree", source.tensor.name, shape)
    problems.hint(
        "resize every token table to one vocabulary (transformers' resize_token_embeddings does)"
    )
    return False


def _with_rows(config: Florence2Config, rows: int, findings: _Findings) -> Florence2Config:
    """`config` with a vocabulary of `rows`."""
    declared = config.text.vocab_size
    if rows > _PUBLISHED_VOCABULARIES[0] and rows not in _PUBLISHED_VOCABULARIES:
        extra = rows - _PUBLISHED_VOCABULARIES[0]
        findings.warnings.append(f"vocabulary of {rows}: {extra} more than the published model's")
    if rows != declared:
        findings.warnings.append(
            f"config.json: text_config.vocab_size is {declared}, every token table has {rows} "
            f"rows: {rows} is used; correct config.json to silence this"
        )
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=rows))


def _same_values(left: LazyTensor, right: LazyTensor) -> bool:
    """Whether two tables of one shape hold the same values; bit for bit where they share a dtype.

    Tables of different dtypes are compared in float32, which holds every float16 and bfloat16.
    """
    a, b = left.view(), right.view()
    if a.__array_interface__ == b.__array_interface__:  # two names of one torch storage
        return True

    def comparable(chunk: np.ndarray) -> np.ndarray:
        if left.dtype == right.dtype:
            return np.ascontiguousarray(chunk).view(np.uint8)
        return chunk.astype(np.float32)

    return all(
        np.array_equal(comparable(a[rows]), comparable(b[rows])) for rows in _row_chunks(left.shape)
    )


def _is_zero(tensor: LazyTensor) -> bool:
    array = tensor.view()
    return not any(np.any(array[rows]) for rows in _row_chunks(tensor.shape))


def _row_chunks(shape: Shape) -> list[slice]:
    width = max(math.prod(shape[1:]), 1)
    step = max(_CHUNK_ELEMENTS // width, 1)
    return [slice(start, start + step) for start in range(0, shape[0], step)]
