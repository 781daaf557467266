"""Every parameter's PartitionSpec as text; `python -m tests.sharding.golden_table` writes it.

Parameters that differ in layer numbers alone, and lie alike, share a line.
"""

import re
from collections import Counter
from pathlib import Path

from jax.sharding import AbstractMesh, AxisType

from florence_jax.checkpoint.param_tree import param_shapes
from florence_jax.config import PRESETS as SIZES
from florence_jax.sharding import AXES, PRESETS, make_layout

GOLDEN = Path(__file__).parent / "golden"
# Of 256 devices, but for `tp`, which no more than the heads can divide.
MESHES = {
    "dp": {"data": 256},
    "fsdp": {"fsdp": 256},
    "tp": {"tensor": 4},
    "fsdp_tp": {"data": 2, "fsdp": 32, "tensor": 4},
}


def abstract_mesh(sizes):
    shape = tuple(sizes.get(axis, 1) for axis in AXES[1:])
    return AbstractMesh(shape, AXES[1:], axis_types=(AxisType.Auto,) * 3)


def layout_of(size, preset):
    shapes = param_shapes(SIZES[size]())
    return make_layout(PRESETS[preset], shapes, abstract_mesh(MESHES[preset]))


def lines(preset):
    yield f"# {preset} on {', '.join(f'{k}={v}' for k, v in MESHES[preset].items())}"
    for size in ("base", "large"):
        layout = layout_of(size, preset)
        counted = Counter()
        for path, spec in layout.specs.items():
            # Stages keep their number: their widths differ.
            name = re.sub(r"(blocks|layers)/\d+", r"\1/*", path)
            shape = "x".join(map(str, layout.shape(path)))
            counted[f"{size} {name} {shape}", str(tuple(spec))] += 1
        for (name, spec), count in sorted(counted.items()):
            yield f"{name} {spec} {count}"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for preset in MESHES:
        (GOLDEN / f"{preset}.txt").write_text("\n".join(lines(preset)) + "\n")
