"""The checkpoint directory that a local directory or the name of a bundled model stands for."""

from __future__ import annotations

import difflib
from pathlib import Path

from florence_jax.checkpoint.errors import CheckpointError
from florence_jax.checkpoint.native.manifest import is_saved
from florence_jax.checkpoint.pytorch.weight_files import WEIGHT_FILES

_ASSETS = Path(__file__).parents[1] / "assets"
# Models that the library carries, by the names under which they are loaded.
BUNDLED = {"shapes": _ASSETS / "shapes"}
_PUBLISHED = tuple(
    f"microsoft/Florence-2-{name}" for name in ("base", "base-ft", "large", "large-ft")
)
ACCEPTED = (
    "a model is given by a checkpoint's directory, a training run's, a PEFT adapter's, a Hugging "
    f"Face id of the form org/name, or the name of a bundled model ({', '.join(BUNDLED)})"
)


def model_directory(directory: Path, *, weights: bool = True) -> Path:
    """The checkpoint that an existing directory stands for: itself, or a training run's export.

    Args:
        weights: False where only the configuration, tokenizer and processor files are needed.

    Raises:
        CheckpointError: it is a run without an export, or exported programs.
    """
    if weights and next(directory.glob("*.stablehlo"), None) is not None:
        raise CheckpointError(
            f"{directory} holds exported programs, not a checkpoint: load them with "
            "florence_jax.load_exported, or name the checkpoint that they were exported from"
        )
    if has_weights(directory):
        return directory
    if (directory / "checkpoints").is_dir():
        return _of_run(directory, weights)
    if directory.parent.name == "checkpoints" and (directory / "state").is_dir():
        run, step = directory.parents[1], directory.name.rpartition("_")[2].lstrip("0") or "0"
        raise CheckpointError(
            f"{directory} is a training checkpoint, with the optimizer's state and without a "
            f"config.json: export it first, python -m train.export {run} --step {step} --out DIR"
        )
    return directory


def has_weights(directory: Path) -> bool:
    """Whether `directory` holds a checkpoint's weights, in our format or in PyTorch's."""
    return is_saved(directory) or any((directory / name).exists() for name in WEIGHT_FILES)


def unknown_model(source: str | Path) -> CheckpointError:
    """The error for a name that is no model: what is accepted, and what was probably meant."""
    meant = _similar(str(source))
    hint = f"; did you mean {meant!r}?" if meant else ""
    return CheckpointError(
        f"{source} is neither an existing directory nor a Hugging Face id of the form "
        f"org/name{hint} ({ACCEPTED})"
    )


def similar_directory(source: str | Path) -> str | None:
    """An existing directory whose path is nearly `source`; None where there is none."""
    path = Path(source).expanduser()
    try:
        beside = {str(one.name): one for one in path.parent.iterdir() if one.is_dir()}
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.7)
    return str(path.parent / close[0]) if close else None


def _similar(source: str) -> str | None:
    if found := similar_directory(source):
        return found
    known = {name.casefold(): name for name in (*BUNDLED, *_PUBLISHED)}
    known |= {name.rpartition("/")[2].casefold(): name for name in _PUBLISHED}
    close = difflib.get_close_matches(source.casefold(), known, n=1, cutoff=0.75)
    return known[close[0]] if close else None


def _of_run(run: Path, weights: bool) -> Path:
    export, processor = run / "export", run / "processor"
    if (export / "config.json").is_file():
        return export
    if not weights and processor.is_dir():
        return processor
    raise CheckpointError(
        f"{run} is a training run that has no export yet: write one from its newest checkpoint "
        f"with python -m train.export {run}"
    )
