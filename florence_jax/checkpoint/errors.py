"""Collect every problem of a checkpoint and raise them as one readable error."""

from collections.abc import Iterable

from florence_jax.checkpoint.pytorch.key_map import skeleton

_SHOWN_PER_HEADING = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message lists every problem found and what to do."""


class ErrorCollector:
    """Problems under headings, in the order found; `raise_if_any` turns them into one error."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[str, str]]] = {}
        self._hints: list[str] = []

    def add(self, heading: str, name: str, detail: str = "") -> None:
        """Record that the tensor or file `name` has the problem `heading`, with its detail."""
        self._found.setdefault(heading, []).append((name, detail))

    def hint(self, text: str) -> None:
        """Add a likely cause or a remedy; the same text is said once."""
        if text not in self._hints:
            self._hints.append(text)

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self, subject: str) -> None:
        """Raise one CheckpointError about `subject` if anything was recorded."""
        if not self._found:
            return
        count = sum(len(entries) for entries in self._found.values())
        lines = [f"{subject}: {count} problem{'s' if count > 1 else ''}"]
        for heading, entries in self._found.items():
            lines.append(f"  {heading} ({len(entries)}):")
            lines += [f"    {line}" for line in _shortened(entries)]
        lines += [f"  -> {text}" for text in self._hints]
        raise CheckpointError("\n".join(lines))


def _shortened(entries: list[tuple[str, str]]) -> list[str]:
    """One line per kind of tensor: layer numbers collapse to "{}", with one full example."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, detail in entries:
        kinds.setdefault(skeleton(name), []).append((name, detail))
    lines = []
    for kind, members in list(kinds.items())[:_SHOWN_PER_HEADING]:
        name, detail = members[0]
        label = clip(name) if len(members) == 1 else f"{clip(kind)} (x{len(members)})"
        example = "" if len(members) == 1 or not detail else f"{clip(name)}: "
        lines.append(f"{label}: {example}{detail}" if detail else label)
    rest = sum(len(members) for members in list(kinds.values())[_SHOWN_PER_HEADING:])
    if rest:
        lines.append(f"... and {rest} more")
    return lines


def clip(text: str, limit: int = 160) -> str:
    """`text`, cut to `limit` characters: names come from untrusted files and may be huge."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def sample(names: Iterable[str], shown: int = 5) -> str:
    """The first few `names`, joined by commas, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(clip(name) for name in names[:shown]) + rest
