"""The rooms and the one direction in which they may import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each room of florence_jax may import, beside itself; a room further down may import the
# rooms above it that it names, so the table has no circles.
ROOMS = {
    "runtime": "",
    "generation_keys": "",
    "generation_config": "generation_keys",
    "hf_config": "",
    "config": "hf_config",
    "quantization": "",
    "matmul_precision": "",
    "sharding": "",
    "ops": "matmul_precision sharding",
    "model": "config matmul_precision ops quantization sharding",
    "generation": "generation_config matmul_precision ops quantization sharding",
    "processing": "runtime",
    "constrained": "processing",
    "datasets": "processing runtime",
    "checkpoint": "config generation_config hf_config runtime",
    "adapters": "checkpoint config runtime",
    "conversion": "adapters checkpoint config processing runtime",
    "metrics": "",
    "results": "processing runtime",
    "export": "adapters checkpoint config generation matmul_precision model processing "
    "quantization runtime",
    "inference": "adapters checkpoint config constrained export generation matmul_precision model "
    "processing quantization results runtime sharding",
    "backbone": "adapters checkpoint config inference matmul_precision model processing runtime "
    "sharding",
    "segmentation": "adapters backbone checkpoint config inference matmul_precision model "
    "processing sharding",
    "classification": "backbone model processing runtime",
    "demo": "generation inference matmul_precision metrics processing quantization runtime",
    "batch": "backbone datasets export generation inference model processing results runtime "
    "sharding",
    "annotation": "batch generation inference processing results runtime",
    "evaluation": "batch classification datasets inference metrics model processing results "
    "runtime segmentation",
    "training": "adapters annotation backbone checkpoint classification config datasets generation "
    "inference matmul_precision metrics model processing results runtime segmentation sharding",
    "serving": "generation_config inference processing results runtime",
    "integrations": "inference processing results runtime",
    "cli": "adapters annotation backbone batch checkpoint config conversion demo evaluation export "
    "generation generation_config inference integrations processing results runtime segmentation "
    "serving training",
    "__main__": "cli",
    "__init__": "backbone checkpoint config generation inference model processing results "
    "segmentation",
}
# The only file of the library that reads torch's own format.
TORCH_READER = "florence_jax/checkpoint/pytorch/bin_reader.py"


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


def room_of(module):
    """The room of a module's dotted name; None for a name that is no module of ours."""
    first, *rest = module.split(".")
    if first in ("convert", "train", "tests"):
        return first
    if first != "florence_jax" or not rest:
        return None
    if rest[:2] == ["evaluation", "metrics"]:
        return "metrics"
    folder = ROOT / "florence_jax" / rest[0]
    return rest[0] if folder.is_dir() or folder.with_suffix(".py").is_file() else None


def test_the_table_has_no_circles():
    above = []
    for room, allowed in ROOMS.items():
        assert set(allowed.split()) <= set(above), f"{room} imports a room that stands below it"
        above.append(room)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    allowed = set(ROOMS[room].split()) | {room, None}
    for path in sources("florence_jax"):
        if room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)) != room:
            continue
        for module, _ in imports(path):
            target = room_of(module)
            assert target in allowed, (
                f"{path.relative_to(ROOT)} must not import {module}: {room} imports {ROOMS[room]}"
            )


def test_every_file_has_a_room():
    for path in sources("florence_jax"):
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert room in ROOMS, f"{path.relative_to(ROOT)} is in no room of the table"


@pytest.mark.parametrize("package", ["convert", "train"])
def test_packages_keep_apart(package):
    foreign = {"convert": {"train"}, "train": {"convert"}}
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
                assert package == "convert" or name == TORCH_READER, f"{name} imports torch"


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
