"""Published figures of accelerator chips; bandwidths are bytes/s in one direction.

Sources, read in November 2026: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (Google prints
the interconnect's two directions together: half of it stands here; the network of v4 and v5e is
their hosts' 200 Gbit/s, shared by the chips of a host), and NVIDIA's H100 and H200 data sheets (SXM
parts, FLOP/s without sparsity; the network is one 400 Gbit/s adapter for each GPU, as in a DGX).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator chip.

    Attributes:
        name: Name in `--topology`.
        kind: Name of its devices in jax.
        platform: "tpu" or "gpu".
        flops: dense bfloat16 FLOP/s.
        memory: bytes of high-bandwidth memory.
        memory_bandwidth: Bandwidth of that memory.
        link_bandwidth: Bandwidth to the other chips of its slice (of its host, for a GPU), over
            all links at once.
        network_bandwidth: Bandwidth to other slices (to other hosts, for a GPU).
        devices: Devices that jax sees in one chip.
        host_chips: Chips that one host drives in a slice of several hosts.
        dimensions: Dimensions of the torus.
        slice_chips: Chips of the largest slice.
    """

    name: str
    kind: str
    platform: str = "tpu"
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    devices: int = 1
    host_chips: int = 4
    dimensions: int = 3
    slice_chips: int

    def of_device(self, figure: float) -> float:
        """A figure of the chip, for one of its devices."""
        return figure / self.devices


# name, jax's name, FLOP/s, memory, its bandwidth, links', network's, chips of the largest slice.
_TPU = (
    ("v4", "TPU v4", 275e12, 32 * 2**30, 1200e9, 300e9, 6.25e9, 4096),
    ("v5e", "TPU v5 lite", 197e12, 16 * 2**30, 819e9, 200e9, 3.125e9, 256),
    ("v5p", "TPU v5", 459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9, 8960),
    ("v6e", "TPU v6 lite", 918e12, 32 * 2**30, 1638e9, 400e9, 12.5e9, 256),
    ("tpu7x", "TPU7x", 2307e12, 192 * 2**30, 7380e9, 600e9, 12.5e9, 9216),
)
_GPU = (
    ("h100", "NVIDIA H100", 989e12, 80e9, 3350e9, 450e9, 50e9, 4096),
    ("h200", "NVIDIA H200", 989e12, 141e9, 4800e9, 450e9, 50e9, 4096),
)
_OTHERWISE = {
    "v5e": {"host_chips": 8, "dimensions": 2},
    "v6e": {"dimensions": 2},
    "tpu7x": {"devices": 2},
}


def _chip(row: tuple, **more: Any) -> Chip:
    names = ("name", "kind", "flops", "memory", "memory_bandwidth")
    names += ("link_bandwidth", "network_bandwidth", "slice_chips")
    return Chip(**dict(zip(names, row, strict=True)), **more)


CHIPS: Mapping[str, Chip] = {
    **{row[0]: _chip(row, **_OTHERWISE.get(row[0], {})) for row in _TPU},
    **{row[0]: _chip(row, platform="gpu", host_chips=8, dimensions=1) for row in _GPU},
}
