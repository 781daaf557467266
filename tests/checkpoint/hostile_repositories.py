"""Checkpoint directories that someone with bad intentions could publish.

Each builder gets a directory that holds a sound tiny checkpoint with its tokenizer, and spoils it.
Beside it lie `secret.safetensors`, a sound weight file that is not the checkpoint's, and `trap`,
the path of a folder that no load may create.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from florence_jax.checkpoint.pytorch.weights import MAX_HEADER_BYTES
from florence_jax.processing import demo_tokenizer
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory

_WEIGHTS = "model.safetensors"
_BIN = "pytorch_model.bin"


@dataclass(frozen=True)
class Repository:
    """A directory to load, the trap, and what loading must say (None: it loads, harmless)."""

    directory: Path
    trap: Path
    expected: str | None


class Payload:
    """Unpickled without care, this makes the trap's folder."""

    def __init__(self, trap: Path):
        self.trap = str(trap)

    def __reduce__(self):
        return os.mkdir, (self.trap,)


def build(name: str, root: Path) -> Repository:
    """Repository `name` of `REPOSITORIES`, in a folder of its own under `root`."""
    home = root / name
    directory = write_directory(home / "checkpoint", tiny_tensors(), tiny_config())
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 64, "width": 64}})
    )
    demo_tokenizer().save(directory)
    write_directory(home, tiny_tensors(seed=1), tiny_config())
    (home / _WEIGHTS).rename(home / "secret.safetensors")
    (home / "config.json").rename(home / "secret.json")
    builder, expected = REPOSITORIES[name]
    builder(directory, home / "trap")
    return Repository(directory, home / "trap", expected)


def _bin(directory: Path, content: object) -> Path:
    (directory / _WEIGHTS).unlink()
    torch.save(content, directory / _BIN)
    return directory / _BIN


def _state() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in tiny_tensors().items()}


def _index(directory: Path, file: str) -> None:
    (directory / _WEIGHTS).unlink()
    weight_map = dict.fromkeys(tiny_tensors(), file)
    (directory / f"{_WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _header(directory: Path, text: bytes, data: bytes = b"") -> None:
    (directory / _WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)


def sound(directory: Path, trap: Path) -> None:
    """The yardstick: nothing is spoiled."""


def pickle_in_zip(directory: Path, trap: Path) -> None:
    _bin(directory, _state() | {"image_projection": Payload(trap)})


def pickle_bare(directory: Path, trap: Path) -> None:
    (directory / _WEIGHTS).unlink()
    (directory / _BIN).write_bytes(pickle.dumps(Payload(trap)))


def pickle_beside_safetensors(directory: Path, trap: Path) -> None:
    torch.save({"a": Payload(trap)}, directory / _BIN)
    (directory / "training_args.bin").write_bytes(pickle.dumps(Payload(trap)))
    (directory / "optimizer.pt").write_bytes(pickle.dumps(Payload(trap)))


def pickle_named_safetensors(directory: Path, trap: Path) -> None:
    torch.save({"a": Payload(trap)}, directory / _WEIGHTS)


def pickle_shard(directory: Path, trap: Path) -> None:
    _index(directory, "model-00001-of-00001.bin")
    torch.save({"a": Payload(trap)}, directory / "model-00001-of-00001.bin")


def zip_slip(directory: Path, trap: Path) -> None:
    path = _bin(directory, _state())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../trap/slipped", b"outside")
        archive.writestr(f"{trap}/slipped", b"outside")


def zip_bomb(directory: Path, trap: Path) -> None:
    (directory / _WEIGHTS).unlink()
    with zipfile.ZipFile(directory / _BIN, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (256 << 20))
        archive.writestr("archive/version", b"3\n")


def remote_code(directory: Path, trap: Path) -> None:
    code = f"import os\nos.mkdir({str(trap)!r})\n"
    for name in ("modeling_florence2", "configuration_florence2", "processing_florence2"):
        (directory / f"{name}.py").write_text(code)
    for name in ("__init__.py", "sitecustomize.py", "conftest.py", "json.py", "numpy.py"):
        (directory / name).write_text(code)
    auto_map = {
        "AutoConfig": "configuration_florence2.Florence2Config",
        "AutoModelForCausalLM": "modeling_florence2.Florence2ForConditionalGeneration",
    }
    _edit_config(directory, auto_map=auto_map, trust_remote_code=True)
    processor = {"size": {"height": 64, "width": 64}}
    processor["auto_map"] = {"AutoProcessor": "processing_florence2.Florence2Processor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))


def index_parent(directory: Path, trap: Path) -> None:
    _index(directory, "../secret.safetensors")


def index_absolute(directory: Path, trap: Path) -> None:
    _index(directory, str(directory.parent / "secret.safetensors"))


def index_through_folder(directory: Path, trap: Path) -> None:
    (directory / "shards").symlink_to("..")
    _index(directory, "shards/secret.safetensors")


def weights_link_out(directory: Path, trap: Path) -> None:
    (directory / _WEIGHTS).unlink()
    (directory / _WEIGHTS).symlink_to("../secret.safetensors")


def config_is_passwd(directory: Path, trap: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to("/etc/passwd")


def tokenizer_is_passwd(directory: Path, trap: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("/etc/passwd")


def circular_links(directory: Path, trap: Path) -> None:
    (directory / _WEIGHTS).unlink()
    (directory / _WEIGHTS).symlink_to("again")
    (directory / "again").symlink_to(_WEIGHTS)


def circular_manifest(directory: Path, trap: Path) -> None:
    (directory / "manifest.json").symlink_to("manifest.json")


def manifest_link_out(directory: Path, trap: Path) -> None:
    (directory.parent / "notes").write_text("a file of the user's")
    (directory / "manifest.json").symlink_to("../notes")


def folder_for_weights(directory: Path, trap: Path) -> None:
    (directory / _WEIGHTS).unlink()
    (directory / _WEIGHTS).mkdir()
    (directory / _WEIGHTS / _WEIGHTS).write_bytes(b"")


def pipe_for_config(directory: Path, trap: Path) -> None:
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")


def pipe_for_tokenizer(directory: Path, trap: Path) -> None:
    (directory / "tokenizer.json").unlink()
    os.mkfifo(directory / "tokenizer.json")


def endless_weights(directory: Path, trap: Path) -> None:
    (directory / _WEIGHTS).unlink()
    (directory / _WEIGHTS).symlink_to("/dev/zero")


def endless_generation_config(directory: Path, trap: Path) -> None:
    with (directory / "generation_config.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: no space on the disk


def endless_manifest(directory: Path, trap: Path) -> None:
    with (directory / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)


def endless_tokenizer(directory: Path, trap: Path) -> None:
    with (directory / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)


def giant_shape(directory: Path, trap: Path) -> None:
    entry = {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 1 << 82]}
    _header(directory, json.dumps({"image_projection": entry}).encode())


def giant_header(directory: Path, trap: Path) -> None:
    with (directory / _WEIGHTS).open("wb") as file:
        file.write((1 << 39).to_bytes(8, "little"))
        file.truncate(1 << 40)


def largest_header(directory: Path, trap: Path) -> None:
    text = b'{"a": [' + b"[]," * ((MAX_HEADER_BYTES - 32) // 3) + b"[]]}"
    _header(directory, text)


def duplicate_tensors(directory: Path, trap: Path) -> None:
    entry = b'{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    _header(directory, b'{"a": ' + entry + b', "a": ' + entry + b"}", b"\0" * 4)


def duplicate_keys_in_config(directory: Path, trap: Path) -> None:
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text('{"model_type": "florence2", ' + text[1:])


def endless_integer(directory: Path, trap: Path) -> None:
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text('{"vocabulary": ' + "9" * 1_000_000 + ", " + text[1:])


def giant_layers(directory: Path, trap: Path) -> None:
    text = tiny_config()["text_config"] | {"encoder_layers": 10**12, "d_model": 10**12}
    _edit_config(directory, text_config=text)


def endless_mlp(directory: Path, trap: Path) -> None:
    config = tiny_config("native")
    config["vision_config"]["mlp_ratio"] = float("inf")
    (directory / "config.json").write_text(json.dumps(config))


def look_alike_names(directory: Path, trap: Path) -> None:
    # A Cyrillic small o, another case, and a right-to-left override: none is the wanted file.
    (directory / "m\u043edel.safetensors").write_bytes(b"")
    (directory / "MODEL.SAFETENSORS").write_bytes(b"")
    (directory / "\u202esrosnetefas.ledom").write_bytes(b"")
    (directory / _WEIGHTS).rename(directory / "Model.safetensors")


def hostile_tokenizer(directory: Path, trap: Path) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$" * 50}}
    content["added_tokens"] = [{"id": 1 << 62, "content": "<s>", "special": True}] * 3
    path.write_text(json.dumps(content))


def nested_tokenizer(directory: Path, trap: Path) -> None:
    (directory / "tokenizer.json").write_text("[" * 500_000)


_REFUSED = "was refused: its pickle holds more than tensors"


# Name -> (what spoils the directory, what the error says; None where nothing is left to refuse).
def _sparse(path: Path) -> None:
    """20 GB that cost nothing to make."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(20 << 30)


def _edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def pipe_for_manifest(directory: Path, trap: Path) -> None:
    os.mkfifo(directory / "manifest.json")


def sparse_config(directory: Path, trap: Path) -> None:
    _sparse(directory / "config.json")


def sparse_tokenizer(directory: Path, trap: Path) -> None:
    _sparse(directory / "tokenizer.json")


def sparse_vocabulary(directory: Path, trap: Path) -> None:
    (directory / "tokenizer.json").unlink()
    _sparse(directory / "vocab.json")
    (directory / "merges.txt").write_text("#version: 0.2\n")


def sparse_merges(directory: Path, trap: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text("{}")
    _sparse(directory / "merges.txt")


def pipe_for_vocabulary(directory: Path, trap: Path) -> None:
    (directory / "tokenizer.json").unlink()
    os.mkfifo(directory / "vocab.json")
    (directory / "merges.txt").write_text("#version: 0.2\n")


def sparse_preprocessor(directory: Path, trap: Path) -> None:
    _sparse(directory / "preprocessor_config.json")


def sparse_index(directory: Path, trap: Path) -> None:
    (directory / _WEIGHTS).unlink()
    _sparse(directory / f"{_WEIGHTS}.index.json")


def sparse_weights(directory: Path, trap: Path) -> None:
    _sparse(directory / _WEIGHTS)


def sparse_torch_file(directory: Path, trap: Path) -> None:
    (directory / _WEIGHTS).unlink()
    _sparse(directory / _BIN)


def giant_pictures(directory: Path, trap: Path) -> None:
    size = {"height": 100_000, "width": 100_000}
    _edit_json(directory / "preprocessor_config.json", size=size)


def many_means(directory: Path, trap: Path) -> None:
    _edit_json(directory / "preprocessor_config.json", image_mean=[0.5] * 100_000)


def rescale_by_nan(directory: Path, trap: Path) -> None:
    _edit_json(directory / "preprocessor_config.json", rescale_factor=float("nan"))


def many_beams(directory: Path, trap: Path) -> None:
    _edit_json(directory / "generation_config.json", num_beams=100_000)


def many_answers(directory: Path, trap: Path) -> None:
    changes = {"num_return_sequences": 10**6, "do_sample": True}
    _edit_json(directory / "generation_config.json", **changes)


def endless_answers(directory: Path, trap: Path) -> None:
    _edit_json(directory / "generation_config.json", max_length=10**9)


def long_setting(directory: Path, trap: Path) -> None:
    _edit_json(directory / "generation_config.json", early_stopping="x" * 1_000_000)


REPOSITORIES: dict[str, tuple[Callable[[Path, Path], None], str | None]] = {
    "sound": (sound, None),
    "pickle_in_zip": (pickle_in_zip, _REFUSED),
    "pickle_bare": (pickle_bare, "was refused|is not a readable torch file"),
    "pickle_beside_safetensors": (pickle_beside_safetensors, None),
    "pickle_named_safetensors": (pickle_named_safetensors, "the header claims"),
    "pickle_shard": (pickle_shard, "does not end in .safetensors"),
    "zip_slip": (zip_slip, "is not a readable torch file"),
    "zip_bomb": (zip_bomb, "it is a compressed archive of"),
    "remote_code": (remote_code, None),
    "index_parent": (index_parent, "must be a relative path inside"),
    "index_absolute": (index_absolute, "must be a relative path inside"),
    "index_through_folder": (index_through_folder, "outside the checkpoint directory"),
    "weights_link_out": (weights_link_out, "outside the checkpoint directory"),
    "config_is_passwd": (config_is_passwd, "outside the checkpoint directory"),
    "tokenizer_is_passwd": (tokenizer_is_passwd, "outside the checkpoint directory"),
    "circular_links": (circular_links, "cannot open 'model.safetensors'"),
    "circular_manifest": (circular_manifest, "cannot open 'manifest.json'"),
    "manifest_link_out": (manifest_link_out, "outside the checkpoint directory"),
    "folder_for_weights": (folder_for_weights, "is not a regular file"),
    "pipe_for_config": (pipe_for_config, "is not a regular file"),
    "pipe_for_tokenizer": (pipe_for_tokenizer, "is not a regular file"),
    "endless_weights": (endless_weights, "outside the checkpoint directory"),
    "endless_generation_config": (endless_generation_config, "at most 8388608 are read"),
    "endless_manifest": (endless_manifest, None),
    "endless_tokenizer": (endless_tokenizer, "tokenizer.json"),
    "giant_shape": (giant_shape, "download complete"),
    "giant_header": (giant_header, "at most 8388608 are read"),
    "largest_header": (largest_header, "expected dtype, shape and data_offsets"),
    "duplicate_tensors": (duplicate_tensors, "duplicate key 'a'"),
    "duplicate_keys_in_config": (duplicate_keys_in_config, "duplicate key 'model_type'"),
    "endless_integer": (endless_integer, "not valid JSON"),
    "giant_layers": (giant_layers, "sizes beyond reason"),
    "endless_mlp": (endless_mlp, "mlp_ratio: config.json says inf"),
    "look_alike_names": (look_alike_names, "holds no weights"),
    "hostile_tokenizer": (hostile_tokenizer, "is not a tokenizer file|gives .* ids"),
    "nested_tokenizer": (nested_tokenizer, "is not a tokenizer file"),
    "pipe_for_manifest": (pipe_for_manifest, "manifest.json' is not a regular file"),
    "sparse_config": (sparse_config, "at most 8388608 are read"),
    "sparse_tokenizer": (sparse_tokenizer, "tokenizer.json is larger than 134217728 bytes"),
    "sparse_vocabulary": (sparse_vocabulary, "vocab.json is larger than 134217728 bytes"),
    "sparse_merges": (sparse_merges, "merges.txt is larger than 134217728 bytes"),
    "pipe_for_vocabulary": (pipe_for_vocabulary, "'vocab.json' is not a regular file"),
    "sparse_preprocessor": (sparse_preprocessor, "at most 8388608 are read"),
    "sparse_index": (sparse_index, "at most 8388608 are read"),
    "sparse_weights": (sparse_weights, "is not valid JSON"),
    "sparse_torch_file": (sparse_torch_file, "is not a readable torch file|was refused"),
    "giant_pictures": (giant_pictures, r"size is \(100000, 100000\).*at most 8192 pixels"),
    "many_means": (many_means, "mean must be one number per RGB channel"),
    "rescale_by_nan": (rescale_by_nan, "rescale must be a finite number"),
    "many_beams": (many_beams, "num_beams must be at most 1024, got 100000"),
    "many_answers": (many_answers, "num_return_sequences must be at most 1024, got 1000000"),
    "endless_answers": (endless_answers, "max_length must be at most 1048576, got 1000000000"),
    "long_setting": (long_setting, 'early_stopping must be True, False or "never"'),
}
