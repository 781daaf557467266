"""Published figures of accelerator chips; bandwidths are bytes/s in one direction.

Sources, read in November 2026: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (Google prints
the interconnect's two directions together: half of it stands here; the network of v4 and v5e is
their hosts' 200 Gbit/s, shared by the chips of a host), and NVIDIA's H100 and H200 data sheets (SXM
parts, FLOP/s without sparsity; the network is one 400 Gbit/s adapter for each GPU, as in a DGX).
"""

from collections.abc import Mapping
from dataclasses import dataclass

GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator chip.

    Attributes:
        name: as in `--topology`.
        kind: how jax names its devices.
        platform: "tpu" or "gpu".
        flops: dense bfloat16 FLOP/s.
        memory: bytes of high-bandwidth memory.
        memory_bandwidth: of that memory.
        link_bandwidth: to the other chips of its slice (of its host, for a GPU), all links at once.
        network_bandwidth: to other slices (to other hosts, for a GPU).
        devices: that jax sees in one chip.
        host_chips: chips that one host drives in a slice of several hosts.
        dimensions: of the torus.
        slice_chips: in the largest slice.
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


_ALL = (
    Chip(
        name="v4",
        slice_chips=4096,
        kind="TPU v4",
        flops=275e12,
        memory=32 * 2**30,
        memory_bandwidth=1200 * GIGA,
        link_bandwidth=300 * GIGA,
        network_bandwidth=6.25 * GIGA,
    ),
    Chip(
        name="v5e",
        slice_chips=256,
        kind="TPU v5 lite",
        flops=197e12,
        memory=16 * 2**30,
        memory_bandwidth=819 * GIGA,
        link_bandwidth=200 * GIGA,
        network_bandwidth=3.125 * GIGA,
        host_chips=8,
        dimensions=2,
    ),
    Chip(
        name="v5p",
        slice_chips=8960,
        kind="TPU v5",
        flops=459e12,
        memory=95 * 2**30,
        memory_bandwidth=2765 * GIGA,
        link_bandwidth=600 * GIGA,
        network_bandwidth=6.25 * GIGA,
    ),
    Chip(
        name="v6e",
        slice_chips=256,
        kind="TPU v6 lite",
        flops=918e12,
        memory=32 * 2**30,
        memory_bandwidth=1638 * GIGA,
        link_bandwidth=400 * GIGA,
        network_bandwidth=12.5 * GIGA,
        dimensions=2,
    ),
    Chip(
        name="tpu7x",
        slice_chips=9216,
        kind="TPU7x",
        flops=2307e12,
        memory=192 * 2**30,
        memory_bandwidth=7380 * GIGA,
        link_bandwidth=600 * GIGA,
        network_bandwidth=12.5 * GIGA,
        devices=2,
    ),
    Chip(
        name="h100",
        slice_chips=4096,
        kind="NVIDIA H100",
        platform="gpu",
        flops=989e12,
        memory=80e9,
        memory_bandwidth=3350 * GIGA,
        link_bandwidth=450 * GIGA,
        network_bandwidth=50 * GIGA,
        host_chips=8,
        dimensions=1,
    ),
    Chip(
        name="h200",
        slice_chips=4096,
        kind="NVIDIA H200",
        platform="gpu",
        flops=989e12,
        memory=141e9,
        memory_bandwidth=4800 * GIGA,
        link_bandwidth=450 * GIGA,
        network_bandwidth=50 * GIGA,
        host_chips=8,
        dimensions=1,
    ),
)
CHIPS: Mapping[str, Chip] = {chip.name: chip for chip in _ALL}
