"""Lower bounds on a step's time: FLOPs, memory traffic and collectives over the chip's rates.

Each bound alone is a time that no run of this program beats on that chip; a real step takes longer
than the longest of them. Between slices the network is counted apart from the fast links.
"""

from dataclasses import asdict, dataclass
from typing import Any

from florence_jax.model import flops
from train.plan.compiled import Compiled
from train.plan.request import PlanRequest

# Samples that the paper trains base and large on: 3 billion at 384 pixels, then 0.5 billion at 768
# (https://arxiv.org/abs/2311.06242, appendix B).
PAPER_SAMPLES = {384: 3.0e9, 768: 0.5e9}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Seconds and rates of one step of the whole machine.

    Attributes:
        flops: FLOPs of the arithmetic, all chips together; recomputation counts once.
        traffic: bytes that a device reads and writes.
        intensity: FLOPs for each byte that the compiled program moves; of a device.
        balance: FLOPs for each byte at which the chip computes as long as it reads.
        compute, memory, links, network: seconds that each alone takes at least.
        images_per_second: Rate at the longest of them.
        chip_hours: Chip hours for each million samples.
        paper_chip_hours: for the paper's samples, the resolution that was not compiled at the same
            share of the peak; 0 for the generation loop.
    """

    flops: float
    traffic: float
    intensity: float
    balance: float
    compute: float
    memory: float
    links: float
    network: float
    images_per_second: float
    chip_hours: float
    paper_chip_hours: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def limit(self) -> str:
        """The name of the longest bound."""
        times = {name: getattr(self, name) for name in ("compute", "memory", "links", "network")}
        return max(times, key=lambda name: times[name])

    def to_tree(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "limit": self.limit}


def generation_flops(request: PlanRequest, rows: int, image_size: int) -> float:
    """FLOPs of one call of the generation loop that generates the maximum number of tokens."""
    sizes = request.sizes
    encoder_tokens = sizes.num_image_tokens(image_size, image_size) + request.prompt_length
    once = flops.vision(sizes, image_size, image_size)
    once += flops.encoder(sizes, encoder_tokens) + flops.cross_attention_cache(
        sizes, encoder_tokens
    )
    positions = range(request.target_length)
    steps = sum(flops.token(sizes, encoder_tokens, position).flops for position in positions)
    return rows * (once.flops + request.num_beams * steps)


def bounds(request: PlanRequest, compiled: Compiled) -> Bounds:
    """Compute the bounds of a compiled program."""
    machine = request.machine
    chip = machine.chip
    flops = compiled.flops
    far = sum(one.far_bytes for one in compiled.collectives.values())
    near = sum(one.sent_bytes for one in compiled.collectives.values()) - far
    times = {
        "compute": flops / machine.chips / chip.flops,
        "memory": compiled.traffic / chip.of_device(chip.memory_bandwidth),
        "links": near / chip.of_device(chip.link_bandwidth),
        "network": far / chip.of_device(chip.network_bandwidth),
    }
    seconds = max(times.values())
    rate = request.global_batch / seconds
    # The paper's other resolution at the same share of the peak.
    paper = sum(
        samples * compiled.paper_flops[side] * seconds / flops
        for side, samples in PAPER_SAMPLES.items()
        if side in compiled.paper_flops
    )
    return Bounds(
        flops=flops,
        traffic=compiled.traffic,
        intensity=flops / machine.devices / max(compiled.traffic, 1.0),
        balance=chip.flops / chip.memory_bandwidth,
        images_per_second=rate,
        chip_hours=machine.chips * 1e6 / rate / 3600,
        paper_chip_hours=machine.chips * paper / 3600,
        **times,
    )
