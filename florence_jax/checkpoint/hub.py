"""Resolve a model's name to the local directory of a checkpoint.

The name is a local directory, that of a bundled model, or a Hugging Face id, which is downloaded to
the cache.
"""

import difflib
import re
from pathlib import Path

from florence_jax.checkpoint.errors import CheckpointError
from florence_jax.checkpoint.repository import ADAPTER_CONFIG, ARRAYS, MANIFEST, WEIGHT_FILES

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
# Data only, by name: a repository's *.py (remote code) is never even downloaded.
METADATA_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "post_processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_SAFETENSORS = (
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
)
_SAVED = (MANIFEST, f"{ARRAYS}/*")
_ADAPTER = (ADAPTER_CONFIG, "adapter_model.safetensors")
_TORCH = (
    "pytorch_model.bin",
    "pytorch_model-?????-of-?????.bin",
    "pytorch_model.bin.index.json",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def resolve(source: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """The local directory of a checkpoint, downloaded to Hugging Face's cache if need be.

    A PEFT adapter's directory is returned as it is: `florence_jax.adapters.resolve_model` also
    merges it into its base. "shapes" is always the bundled model; a directory of that name is
    "./shapes".

    Args:
        source: the name of a bundled model ("shapes"); a directory of a checkpoint or of a training
            run (its export); or a hub id "org/name".
        revision: branch, tag or commit of a hub id.
        weights: False downloads the configuration, tokenizer and processor files alone.

    Raises:
        CheckpointError: there is no such directory or id, or it cannot be downloaded.
    """
    bundled = BUNDLED.get(source) if isinstance(source, str) else None
    path = bundled or Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r} was given, but {path} is a local directory: revisions "
                "exist only for Hugging Face ids"
            )
        return _model_directory(path, weights)
    if path.exists():
        raise CheckpointError(
            f"{path} is a file; pass the directory that holds it ({path.parent}), which must also "
            "hold config.json"
        )
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise _unknown_model(source)
    if not weights:
        return _download(source, revision, METADATA_FILES)
    directory = _download(source, revision, (*METADATA_FILES, *_SAFETENSORS, *_SAVED, *_ADAPTER))
    if not any((directory / name).exists() for name in (*WEIGHT_FILES, MANIFEST, ADAPTER_CONFIG)):
        directory = _download(source, revision, (*METADATA_FILES, *_TORCH))
    return _model_directory(directory, weights=True)


def _model_directory(directory: Path, weights: bool) -> Path:
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
        export, processor = directory / "export", directory / "processor"
        if (export / "config.json").is_file():
            return export
        if not weights and processor.is_dir():
            return processor
        raise CheckpointError(
            f"{directory} is a training run that has no export yet: write one from its newest "
            f"checkpoint with python -m train.export {directory}"
        )
    if directory.parent.name == "checkpoints" and (directory / "state").is_dir():
        run, step = directory.parents[1], directory.name.rpartition("_")[2].lstrip("0") or "0"
        raise CheckpointError(
            f"{directory} is a training checkpoint, with the optimizer's state and without a "
            f"config.json: export it first, python -m train.export {run} --step {step} --out DIR"
        )
    return directory


def has_weights(directory: Path) -> bool:
    """Whether `directory` holds a checkpoint's weights, in our format or in PyTorch's."""
    return (directory / ARRAYS).is_dir() or any((directory / n).exists() for n in WEIGHT_FILES)


def _download(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns)
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        meant = _similar_directory(repository)
        local = f" (did you mean {meant}?)" if meant else ""
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot get {repository}{at} from Hugging Face ({first_line.rstrip('.')}), and it is "
            f"no local directory{local}; a directory with config.json and model.safetensors works "
            "without network. HF_HOME says where the cache is, and HF_HUB_OFFLINE=1 uses only what "
            "is in it"
        ) from error


def _unknown_model(source: str | Path) -> CheckpointError:
    """The error for a name that is no model: what is accepted, and what was probably meant."""
    meant = _similar(str(source))
    hint = f"; did you mean {meant!r}?" if meant else ""
    return CheckpointError(
        f"{source} is neither an existing directory nor a Hugging Face id of the form "
        f"org/name{hint} ({ACCEPTED})"
    )


def _similar_directory(source: str | Path) -> str | None:
    """An existing directory whose path is nearly `source`; None where there is none."""
    path = Path(source).expanduser()
    try:
        beside = {str(one.name): one for one in path.parent.iterdir() if one.is_dir()}
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.7)
    return str(path.parent / close[0]) if close else None


def _similar(source: str) -> str | None:
    if found := _similar_directory(source):
        return found
    known = {name.casefold(): name for name in (*BUNDLED, *_PUBLISHED)}
    known |= {name.rpartition("/")[2].casefold(): name for name in _PUBLISHED}
    close = difflib.get_close_matches(source.casefold(), known, n=1, cutoff=0.75)
    return known[close[0]] if close else None
