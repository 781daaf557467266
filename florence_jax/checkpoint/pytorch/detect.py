"""Detect a checkpoint's naming and foreign prefix, and the parameter that each tensor fills."""

import collections
import dataclasses
import re
from collections.abc import Sequence

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, sample
from florence_jax.checkpoint.plan import Source
from florence_jax.checkpoint.pytorch.key_map import NAMINGS, Naming, ignored, match_name
from florence_jax.checkpoint.pytorch.lazy_tensor import LazyTensor

# Segments that torch's wrappers (torch.compile, FSDP, activation checkpointing) insert anywhere.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# The longest foreign prefix that is looked for: untrusted names may have any length.
_MAX_PREFIX_SEGMENTS = 6
# Below this share of known names it is another model, and a list of 600 names helps nobody.
_MIN_KNOWN = 0.1


@dataclasses.dataclass(frozen=True)
class DetectedCheckpoint:
    """The tensors of a checkpoint by our parameter path.

    Attributes:
        naming: the naming that the tensors have.
        sources: path in our tree (or key_map's name of a table's duplicate) -> tensor.
        ignored: names in the file -> why they are not read.
        warnings: prefixes and wrapper segments that were removed, one sentence each.
    """

    naming: Naming
    sources: dict[str, Source]
    ignored: dict[str, str]
    warnings: tuple[str, ...]


def detect_checkpoint(
    tensors: Sequence[LazyTensor], problems: ErrorCollector, ignore: Sequence[str] = ()
) -> DetectedCheckpoint:
    """Give each tensor its parameter; unexpected and duplicate ones go into `problems`.

    Args:
        tensors: the tensors of all files.
        problems: collects what does not fit.
        ignore: regular expressions for names to leave out, each matched against the whole name.

    Raises:
        CheckpointError: the names are not those of a Florence-2 at all.
    """
    plain = {tensor.name: _without_wrappers(tensor.name) for tensor in tensors}
    naming, prefix = _naming_and_prefix(list(plain.values()))
    sources: dict[str, Source] = {}
    left_out: dict[str, str] = {}
    unused = dict.fromkeys(ignore)
    for tensor in tensors:
        pattern = next((p for p in ignore if re.fullmatch(p, tensor.name)), None)
        if pattern is not None:
            unused.pop(pattern, None)
            left_out[tensor.name] = f"asked for by ignore={pattern!r}"
            continue
        name = plain[tensor.name]
        inner = name.removeprefix(prefix)
        match = match_name(inner, naming) if name.startswith(prefix) else None
        skipped = ignored(inner, naming)
        if match is not None:
            source = Source(tensor, match, match.rule.transform(naming))
            first = sources.setdefault(match.path, source)
            if first is not source:
                problems.add(
                    "tensors stored twice",
                    tensor.name,
                    f"in {tensor.file}; {first.tensor.name} in {first.tensor.file} fills "
                    f"{match.path} already",
                )
        elif skipped is not None:
            left_out[tensor.name] = skipped.reason
        else:
            problems.add("unexpected tensors", tensor.name)
            problems.hint(
                "if the file carries more than a Florence-2, leave the rest out by name: "
                'ignore=["REGEX"]'
            )
    for pattern in unused:
        problems.add("ignore patterns that match no tensor", pattern)
    return DetectedCheckpoint(naming, sources, left_out, tuple(_warnings(plain, prefix)))


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
    if not votes or max(votes.values()) < _MIN_KNOWN * len(names):
        raise CheckpointError(_not_a_florence(names))
    return min(votes, key=lambda found: (-votes[found], len(found[1])))


def _not_a_florence(names: Sequence[str]) -> str:
    message = (
        f"these are not the tensors of a Florence-2 checkpoint ({len(names)} tensors, almost none "
        f"of them known in the original or the native naming): {sample(names)}"
    )
    if any("lora_" in name for name in names):
        message += ". This is a LoRA adapter: merge it with python -m convert.merge_lora"
    return message


def _warnings(plain: dict[str, str], prefix: str) -> list[str]:
    found = []
    wrapped = [name for name, inner in plain.items() if name != inner]
    if wrapped:
        found.append(f"wrapper segments removed from {len(wrapped)} names: {sample(wrapped, 1)}")
    if prefix:
        found.append(f"foreign prefix {prefix!r} removed from every name")
    return found
