"""The files of a checkpoint directory: safe opening, strict JSON, configuration and weight files.

A checkpoint directory is untrusted: an index file or a symlink may point anywhere. Nothing outside
the directory is ever opened, with one exception: a snapshot in Hugging Face's cache is made of
symlinks into the `blobs` folder of the same cached repository.
"""

import contextlib
import dataclasses
import json
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from florence_jax.checkpoint.errors import CheckpointError, ErrorCollector, clip, sample
from florence_jax.hf_config import config_warnings
from florence_jax.runtime.atomic_dir import DirectoryError, atomic_directory

# A checkpoint that `save_checkpoint` wrote: its arrays, its manifest and the manifest's format, and
# the section that it adds to config.json.
ARRAYS = "params"
MANIFEST = "manifest.json"
FORMAT = "florence-jax checkpoint"
SECTION = "florence_jax"
ADAPTER_CONFIG = "adapter_config.json"

# Weights of a PyTorch checkpoint in order of preference, which is transformers' own.
WEIGHT_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_INDEX = ".index.json"

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# The fast tokenizer's file, or the slow one's pair.
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# The key of the stage widths in the original and the native dialect. A derived model may have any
# name as long as its image encoder is Florence-2's.
_DAVIT_WIDTHS = ("dim_embed", "embed_dim")
# Decoding settings for which readers assume different defaults.
DECODING_KEYS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
    *("num_beams", "early_stopping", "no_repeat_ngram_size", "length_penalty"),
)

# Published configs are under 10 kB and the published indices under 200 kB.
_MAX_JSON_BYTES = 8 << 20
# The published tokenizers have under 4 MB; these are copied and never parsed here.
MAX_METADATA_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class RepositoryConfig:
    """The configuration files of a checkpoint directory, unchanged.

    Attributes:
        directory: the checkpoint directory.
        config: config.json, in either dialect; see `Florence2Config.from_hf`.
        generation: generation_config.json, None where there is none.
        preprocessor: preprocessor_config.json, or processor_config.json's, None where absent.
        has_tokenizer: tokenizer.json, or vocab.json with merges.txt, is there.
    """

    directory: Path
    config: dict[str, Any]
    generation: dict[str, Any] | None
    preprocessor: dict[str, Any] | None
    has_tokenizer: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """Odd but harmless contents of these files, one sentence each."""
        found = [f"config.json: {warning}" for warning in config_warnings(self.config)]
        text, generation = self.config.get("text_config"), self.generation or {}
        text = text if isinstance(text, dict) else {}
        for key in DECODING_KEYS:
            if key in generation and key in text and generation[key] != text[key]:
                found.append(
                    f"generation_config.json: {key} is {clip(repr(generation[key]))}, text_config "
                    f"says {clip(repr(text[key]))}"
                )
        model_type = self.config.get("model_type")
        if model_type != "florence2":
            found.append(
                f"config.json: model_type is {clip(repr(model_type))} instead of 'florence2'"
            )
        if not self.has_tokenizer:
            found.append("no tokenizer files: the base model's tokenizer applies")
        if self.preprocessor is None:
            found.append("no preprocessor_config.json: the base model's preprocessing applies")
        return tuple(found)


def read_manifest(directory: Path) -> tuple[bytes, Any] | None:
    """The manifest of a checkpoint that `save_checkpoint` wrote: its content, and its JSON value.

    Returns:
        (content, value), neither of them verified; None for any other checkpoint.

    Raises:
        CheckpointError: the manifest is missing, though the arrays are there, or is not JSON.
    """
    if not is_saved(directory):
        return None
    try:
        content = contained_bytes(directory, MANIFEST, _MAX_JSON_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory / MANIFEST} is missing: without it nothing says whether the checkpoint is "
            "whole. Copy or convert the checkpoint again"
        ) from error
    return content, parse_json(content, str(directory / MANIFEST))


def is_saved(directory: Path) -> bool:
    """Whether `save_checkpoint` wrote this directory, judged by what is left of it.

    Raises:
        CheckpointError: its manifest.json leaves the directory or is no regular file.
    """
    if (directory / ARRAYS).is_dir():
        return True
    try:
        manifest = contained_file(directory, MANIFEST)
    except FileNotFoundError:
        return False
    with manifest.open("rb") as file:
        return f'"{FORMAT}"'.encode() in file.read(1 << 20)


def is_adapter(directory: Path) -> bool:
    """Whether `directory` holds a PEFT adapter."""
    return has_file(directory, ADAPTER_CONFIG)


def read_config(directory: str | Path) -> RepositoryConfig:
    """Read the configuration files of a checkpoint directory; its weights are not touched.

    Raises:
        CheckpointError: config.json is missing or not a Florence-2's, or a JSON file is malformed.
    """
    directory = Path(directory)
    config = read_json_object(directory, "config.json")
    if config is None and is_adapter(directory):
        raise CheckpointError(
            f"{directory} is a PEFT adapter: load it with florence_jax.load or Florence2Pipeline, "
            "or merge it with python -m convert.merge_lora"
        )
    if config is None:
        raise CheckpointError(
            f"{directory} has no config.json, which gives the model's sizes: download it from the "
            "repository that the weights come from (the base model's, for a fine-tune)"
        )
    model_type, vision = config.get("model_type"), config.get("vision_config")
    is_davit = isinstance(vision, dict) and not vision.keys().isdisjoint(_DAVIT_WIDTHS)
    if model_type not in (None, "", "florence2") and not is_davit:
        raise CheckpointError(
            f"{directory / 'config.json'}: model_type is {clip(repr(model_type))}, expected "
            "'florence2': this is another model's checkpoint"
        )
    processors = [read_json_object(directory, name) for name in PROCESSOR_FILES]
    # The tokenizer's reader opens it too: refused here where it leads out of the directory.
    has_file(directory, "added_tokens.json")
    return RepositoryConfig(
        directory,
        config,
        generation=read_json_object(directory, "generation_config.json"),
        preprocessor=next((found for found in processors if found is not None), None),
        has_tokenizer=any(all(has_file(directory, n) for n in names) for names in _TOKENIZERS),
    )


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The weight files of a PyTorch checkpoint, found and not opened.

    Attributes:
        directory: the checkpoint directory.
        chosen: the file with all weights, or the index of several.
        paths: name of each file -> its real path.
        index: name of each tensor -> name of its file, as the index says; None without index.
        unused: weight files present and passed over for the chosen one.
    """

    directory: Path
    chosen: str
    paths: dict[str, Path]
    index: dict[str, str] | None
    unused: tuple[str, ...]


def find_weights(directory: Path) -> WeightFiles:
    """The best weight file of `directory`, or the shards that the best index names.

    Raises:
        CheckpointError: there are no weights, or a shard is missing or unsafe.
    """
    present = [name for name in WEIGHT_FILES if has_file(directory, name)]
    if not present:
        names = sorted(path.name for path in directory.iterdir())
        message = (
            f"{directory} holds no weights: expected one of {', '.join(WEIGHT_FILES)}; "
            f"it holds {sample(names, 12) or 'nothing'}"
        )
        if any(name.endswith((".safetensors", ".bin")) for name in names):
            message += ". Rename the file that holds the whole model to one of the expected names"
        raise CheckpointError(message)
    chosen, unused = present[0], tuple(present[1:])
    if not chosen.endswith(_INDEX):
        paths = {chosen: contained_file(directory, chosen)}
        return WeightFiles(directory, chosen, paths, None, unused)
    label = str(directory / chosen)
    shard_of = (read_json_object(directory, chosen) or {}).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(f, str) for f in shard_of.values()):
        raise CheckpointError(f"{label}: weight_map must map tensor names to file names")
    problems = ErrorCollector()
    paths = {}
    # An index names shards of its own format only. Every name is checked before any is opened.
    suffix = Path(chosen.removesuffix(_INDEX)).suffix
    for shard in sorted(set(shard_of.values())):
        if not shard.endswith(suffix):
            problems.add(f"shards whose name does not end in {suffix}", shard)
            continue
        try:
            paths[shard] = contained_file(directory, shard)
        except FileNotFoundError:
            problems.add("shards that the index names and the directory lacks", shard)
            problems.hint("download the missing shards again")
        except CheckpointError as error:
            problems.add("refused shards", shard, str(error))
    problems.raise_if_any(label)
    return WeightFiles(directory, chosen, paths, shard_of, unused)


def read_json_object(directory: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in file `name` of `directory`; None where there is no such file.

    Raises:
        CheckpointError: the file leaves the directory, is over 8 MiB or is not a JSON object.
    """
    try:
        content = contained_bytes(directory, name, _MAX_JSON_BYTES)
    except FileNotFoundError:
        return None
    value = parse_json(content, str(directory / name))
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{directory / name} holds a JSON {type(value).__name__}, expected an object"
        )
    return value


def contained_bytes(directory: Path, name: str, max_bytes: int) -> bytes:
    """The content of the regular file `name` of `directory`.

    Raises:
        CheckpointError: as `contained_file`, or it is larger than `max_bytes`.
        FileNotFoundError: there is no such file.
    """
    path = contained_file(directory, name)
    if path.stat().st_size > max_bytes:
        raise CheckpointError(
            f"{directory / name} is larger than {max_bytes} bytes: at most {max_bytes} are read, "
            "and no published file of that name has as many"
        )
    return path.read_bytes()


def contained_file(directory: Path, name: str) -> Path:
    """The real path of the regular file `name` of `directory`.

    Args:
        directory: the checkpoint directory.
        name: a relative file name, possibly from an untrusted index.

    Raises:
        CheckpointError: the name or its symlinks leave the directory, or it is no regular file.
        FileNotFoundError: there is no such file.
    """
    parts = PurePosixPath(name).parts
    unsafe = (
        not name
        or "\0" in name
        or "\\" in name
        or name.startswith("/")
        or PureWindowsPath(name).drive
        or ".." in parts
    )
    if unsafe:
        raise CheckpointError(
            f"{directory}: refused the file name {clip(name)!r}: it must be a relative path inside "
            "the checkpoint directory"
        )
    root = directory.resolve()
    try:
        # strict: also raises FileNotFoundError for a dangling symlink.
        real = (root / name).resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError, UnicodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CheckpointError(f"{directory}: cannot open {clip(name)!r}: {error}") from error
    if not real.is_relative_to(root) and not _is_hub_cache_blob(root, real):
        raise CheckpointError(
            f"{directory}: refused {clip(name)!r}: it is a symlink to {real}, outside the "
            "checkpoint directory. If you trust it, replace the link by the file, or load the "
            "directory that holds it"
        )
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{directory}: {clip(name)!r} is not a regular file")
    return real


def has_file(directory: Path, name: str) -> bool:
    """Whether `directory` has a file `name`; raises CheckpointError as `contained_file` does."""
    try:
        contained_file(directory, name)
    except FileNotFoundError:
        return False
    return True


def _is_hub_cache_blob(root: Path, real: Path) -> bool:
    """Whether `real` is a blob of the cached repository that the snapshot `root` belongs to.

    In `models--org--name`, `snapshots/<commit>/<file>` links to `../../blobs/<hash>`.
    """
    repository = root.parent.parent
    return (
        root.parent.name == "snapshots"
        and repository.name.startswith("models--")
        and real.parent == repository / "blobs"
    )


def parse_json(text: bytes, what: str) -> Any:
    """Strict JSON: UTF-8 (a byte-order mark is skipped), no duplicate keys, no runaway nesting.

    Raises:
        CheckpointError: `what` is not such JSON.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not valid JSON: {clip(str(error))}. Is the download complete?"
        ) from error


def _without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {clip(key)!r}")
        result[key] = value
    return result


@contextlib.contextmanager
def checkpoint_directory(
    destination: Path, *, overwrite: bool = False, marker: str = "config.json"
) -> Iterator[Path]:
    """`atomic_directory` for a checkpoint or an adapter.

    Raises:
        CheckpointError: where `atomic_directory` raises DirectoryError.
    """
    try:
        with atomic_directory(destination, overwrite=overwrite, marker=marker) as new:
            yield new
    except DirectoryError as error:
        raise CheckpointError(str(error)) from error
