"""The rooms and the one direction in which they may import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each room of florence_jax may import from florence_jax, beside itself. A file named here
# answers for itself instead of its room.
ROOMS = {
    # Knows no other room, and every room may use it.
    "runtime": set(),
    "config": {"config_dialects"},
    "config_dialects": {"config"},
    "processing": set(),
    # Files of training and evaluation data; the trainer and the evaluator read them alike.
    "datasets": {"processing"},
    "quantization": set(),
    "sharding": set(),
    "ops": {"sharding"},
    "model": {"config", "ops", "quantization", "sharding"},
    "checkpoint": {"config", "config_dialects", "generation_config", "model"},
    # An adapter's directory is a model too: merged on the first use, by the room built on this one.
    "checkpoint/model_directory": {"checkpoint", "adapters"},
    "adapters": {"checkpoint", "config"},
    # The loops know a `tokens -> logits` callback; `generate` alone binds them to the model.
    # Beside `config`, so that whoever only reads or writes settings does not wait for jax.
    "generation_keys": set(),
    "generation_config": {"generation_keys"},
    "generation": {"config", "generation_config", "ops", "sharding"},
    "generation/generate": {"config", "generation_config", "model", "generation", "quantization",
                            "sharding"},
    "generation/__init__": {"generation", "generation_config"},
    "evaluation/metrics": set(),
    "evaluation": {"batch", "datasets", "inference", "processing", "evaluation/metrics"},
    "bench": {"config", "model", "generation", "processing", "checkpoint", "inference"},
    "inference": {"config", "model", "checkpoint", "evaluation/metrics", "generation", "processing",
                  "quantization", "sharding"},
    # Rows as files that other tools read; no model, no jax.
    "results": {"inference", "processing"},
    # A worker process and what it runs load neither jax nor the model.
    "batch": {"config", "generation", "inference", "model", "processing", "results", "sharding"},
    "annotation": {"batch", "generation", "inference", "processing"},
    "cli": {"annotation", "batch", "config", "evaluation", "inference", "generation", "processing",
            "checkpoint", "model", "bench", "results", "cli_help"},
    "cli_help": set(),
    "__main__": {"cli"},
    "__init__": {"config", "model", "checkpoint", "generation", "processing", "inference"},
}  # fmt: skip
# The only file of the library that reads torch's own format.
TORCH_READER = "florence_jax/checkpoint/pytorch/bin_reader.py"
# What the library is measured beside; each is imported in a process of its own.
RIVAL_ENGINES = "florence_jax/bench/engines/"


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """(module, at module level and not for type checkers only) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []

    def visit(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import; name the room in full"
                found.append((child.module, top))
                found.extend((f"{child.module}.{alias.name}", top) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                visit(child, top and not function)

    visit(tree, True)
    return found


def room_of(parts):
    """The most specific name in ROOMS of a module path, ("model", "davit") -> "model/davit"."""
    for length in (2, 1):
        name = "/".join(parts[:length])
        if name in ROOMS:
            return name
    raise AssertionError(f"{'/'.join(parts)} is in no room of {sorted(ROOMS)}")


@pytest.mark.parametrize(
    "path", sources("florence_jax"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_point_one_way(path):
    parts = path.relative_to(ROOT / "florence_jax").with_suffix("").parts
    room = room_of(parts)
    allowed = ROOMS[room] | {room, parts[0]} if "/" not in room else ROOMS[room] | {room}
    allowed = allowed | {"runtime"}
    if room in ("generation", "generation/__init__"):
        allowed = allowed | {"generation"}
    for module, _ in imports(path):
        if module.split(".")[0] != "florence_jax" or module == "florence_jax":
            continue
        inner = tuple(module.split(".")[1:])
        if not (ROOT / "florence_jax" / Path(*inner)).with_suffix(".py").is_file():
            if not (ROOT / "florence_jax" / Path(*inner)).is_dir():
                continue  # a name inside a module that is checked itself
            target = inner[0]
        else:
            target = room_of(inner)
        assert target in allowed or target.split("/")[0] in allowed, (
            f"{room} must not import {module}: allowed are {sorted(allowed)}"
        )


@pytest.mark.parametrize("package", ["florence_jax", "convert", "train"])
def test_packages_keep_apart(package):
    foreign = {"florence_jax": {"convert", "train"}, "convert": {"train"}, "train": {"convert"}}
    for path in sources(package):
        for module, _ in imports(path):
            assert module.split(".")[0] not in foreign[package], f"{path} imports {module}"
            assert module.split(".")[0] != "tests", f"{path} imports {module}"


def test_processing_imports_no_jax():
    for path in sources("florence_jax/processing"):
        for module, _ in imports(path):
            assert module.split(".")[0] not in {"jax", "jaxlib", "flax", "torch"}, (path, module)


def test_torch_is_lazy_and_in_one_reader_and_the_converters():
    for package in ("florence_jax", "train", "convert"):
        for path in sources(package):
            for module, top in imports(path):
                if module.split(".")[0] != "torch":
                    continue
                name = str(path.relative_to(ROOT))
                assert not top, f"{name} imports torch at module level"
                allowed = name == TORCH_READER or name.startswith(RIVAL_ENGINES)
                assert package == "convert" or allowed, f"{name} imports torch"


def test_importing_the_package_loads_neither_jax_nor_torch():
    import subprocess
    import sys

    code = (
        "import sys, florence_jax, florence_jax.processing\n"
        "loaded = {'jax', 'flax', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_public_name_resolves():
    import florence_jax

    for name in florence_jax.__all__:
        assert getattr(florence_jax, name) is not None
    assert sorted(florence_jax._HOMES) == sorted(florence_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = florence_jax.nothing
