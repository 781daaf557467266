"""Where a checkpoint is: a local directory, or a Hugging Face id downloaded to the cache."""

import re
from pathlib import Path

from florence_jax.checkpoint.errors import CheckpointError
from florence_jax.checkpoint.model_directory import (
    BUNDLED,
    model_directory,
    similar_directory,
    unknown_model,
)
from florence_jax.checkpoint.native.manifest import MANIFEST
from florence_jax.checkpoint.pytorch.weight_files import WEIGHT_FILES

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
_SAVED = (MANIFEST, "params/*")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
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
        return model_directory(path, weights=weights)
    if path.exists():
        raise CheckpointError(
            f"{path} is a file; pass the directory that holds it ({path.parent}), which must also "
            "hold config.json"
        )
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        raise unknown_model(source)
    if not weights:
        return _download(source, revision, METADATA_FILES)
    directory = _download(source, revision, (*METADATA_FILES, *_SAFETENSORS, *_SAVED, *_ADAPTER))
    if not any((directory / name).exists() for name in (*WEIGHT_FILES, MANIFEST, _ADAPTER[0])):
        directory = _download(source, revision, (*METADATA_FILES, *_TORCH))
    return model_directory(directory)


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
        meant = similar_directory(repository)
        local = f" (did you mean {meant}?)" if meant else ""
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot get {repository}{at} from Hugging Face ({first_line.rstrip('.')}), and it is "
            f"no local directory{local}; a directory with config.json and model.safetensors works "
            "without network. HF_HOME says where the cache is, and HF_HUB_OFFLINE=1 uses only what "
            "is in it"
        ) from error
