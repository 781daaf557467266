"""What somebody may have meant: near misses of settings' names and of values of choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# What other trainers call these settings.
_ELSEWHERE = {
    "lr": "learning_rate",
    "max_steps": "steps",
    "num_steps": "steps",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "output_dir": "directory",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "max_grad_norm": "clip_norm",
    "grad_clip": "clip_norm",
    "num_workers": "workers",
    "r": "rank",
    "lora_alpha": "alpha",
    "adam": "adamw",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
}


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ " (did you mean ...?)" for the choice that is most like a word; empty if none is.

    Args:
        word: what was written.
        choices: what could have been, perhaps with dots between parts ("optimizer.clip_norm"): a
            word may leave out or mistake all but the last part.
    """
    found = nearest(word, list(choices))
    return f" (did you mean {found}?)" if found else ""


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """The choice that is most like a word, or None."""
    last = word.rpartition(".")[2]
    for name in (last, _ELSEWHERE.get(last)):
        if name in choices:
            return name
        same = [choice for choice in choices if choice.rpartition(".")[2] == name]
        if same:
            # Of equal names the one whose parents are most alike.
            return max(same, key=lambda choice: _alike(word, choice))
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.75)
    if close:
        return lower[close[0]]
    parts = {choice.rpartition(".")[2].lower(): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(last.lower(), parts, n=1, cutoff=0.7)
    return parts[close[0]] if close else None


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
