"""Machines by name, such as "v5e:16x16", and abstract devices for them."""

import contextlib
import math
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from train.plan.chips import CHIPS, Chip

# libtpu asks the machine for its TPU unless it is told that there is none.
TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
# Both would run kernels on the GPU that is not there.
GPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
INSTALL = {
    "tpu": "no TPU compiler here: `pip install libtpu` (Linux, x86-64; no TPU is needed)",
    "gpu": "no GPU compiler here: `pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt` of "
    "jax's own version (no GPU and no CUDA are needed)",
}


# Distributions that a platform's compiler may come in.
PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-pjrt", "jax-cuda13-pjrt")}


class CompilerMissing(RuntimeError):
    """The compiler of a platform is not installed; the message says what to install."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """One or several slices of one kind of chip.

    Attributes:
        chip: the kind.
        shape: chips along each axis of a slice; (count,) of GPUs.
        slices: Slices that the data centre's network joins.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def near_devices(self) -> int:
        """The number of devices that fast links join: a slice's, or one host's GPUs."""
        chips = math.prod(self.shape)
        if self.chip.platform == "gpu":
            chips = min(chips, self.chip.host_chips)
        return chips * self.chip.devices

    def __str__(self) -> str:
        slices = f"{self.slices}*" if self.slices > 1 else ""
        return f"{slices}{self.chip.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str) -> Topology:
    """Parse the name of a machine.

    Raises:
        ValueError: an unknown chip, or a shape that it does not come in.
    """
    found = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text.strip())
    if not found or found[2] not in CHIPS:
        raise ValueError(
            f"topology {text!r} is not [SLICES*]CHIP:SHAPE, such as v5e:16x16, 2*v5p:4x4x4 or "
            f"h100:16; the chips are {', '.join(CHIPS)}"
        )
    chip, shape = CHIPS[found[2]], tuple(int(size) for size in found[3].split("x"))
    if len(shape) != chip.dimensions or 0 in shape:
        form = "x".join("ABC"[: chip.dimensions])
        raise ValueError(f"topology {text!r}: the shape of {chip.name} is {form}, in chips")
    slices = int(found[1] or 1)
    if math.prod(shape) > chip.slice_chips:
        raise ValueError(
            f"topology {text!r}: a slice of {chip.name} has at most {chip.slice_chips} chips; "
            "several slices are N*CHIP:SHAPE"
        )
    if chip.platform == "gpu" and (slices > 1 or (shape[0] > 8 and shape[0] % chip.host_chips)):
        raise ValueError(f"topology {text!r}: GPUs come as {chip.name}:N, in hosts of 8")
    return Topology(chip=chip, shape=shape, slices=slices)


def environment(topology: Topology) -> dict[str, str]:
    """The environment that a process needs before it imports jax to compile for a machine."""
    return TPU_ENVIRONMENT if topology.chip.platform == "tpu" else GPU_ENVIRONMENT


def load_devices(topology: Topology) -> list[Any]:
    """Devices to compile for, and not to run on.

    Raises:
        CompilerMissing: the platform's compiler is not installed.
        ValueError: the compiler knows no such shape.
    """
    from jax.experimental import topologies

    chip = topology.chip
    options: dict[str, Any] = {}
    name = f"{chip.name}:{'x'.join(map(str, topology.shape))}"
    if chip.platform == "gpu":
        hosts, each = divmod(topology.chips, chip.host_chips)
        shape = f"1x{hosts}x{chip.host_chips}" if hosts else f"1x1x{each}"
        name, options = "", {"topology": shape, "target_config": _gpu_target(chip)}
    elif chip.name == "v4":
        # Otherwise each of its two cores is a device, as nobody has used them for years.
        options["chip_config_name"] = "megacore"
    if topology.chips == 1 and chip.platform == "tpu":
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    platform = "cuda" if chip.platform == "gpu" else "tpu"
    missing = missing_compiler(topology)
    if missing:
        raise CompilerMissing(missing)
    try:
        return list(topologies.get_topology_desc(name, platform, **options).devices)
    except Exception as error:
        raise ValueError(f"the compiler has no topology {topology}: {error}") from error


def missing_compiler(topology: Topology) -> str:
    """The package to install to compile for a platform, or ""."""
    platform = topology.chip.platform
    names = ("libtpu",) if platform == "tpu" else ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return "" if any(find_spec(name) for name in names) else INSTALL[platform]


def compiler_release(topology: Topology) -> str:
    """The name and release of a machine's compiler, "libtpu 0.0.52"; "" where it is missing."""
    for name in PACKAGES[topology.chip.platform]:
        with contextlib.suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return ""


def _gpu_target(chip: Chip) -> str:
    """XLA's description of a GPU (xla/tools/hlo_opt/gpu_specs): Hopper's, with its own memory."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98  l2_cache_size: 52428800
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  memory_bandwidth: {int(chip.memory_bandwidth)}  device_memory_size: {int(chip.memory)}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{chip.kind}"
"""
