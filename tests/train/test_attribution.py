"""Traffic by source: of a written program exactly, and of small programs compiled here."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from florence_jax.config import PRESETS
from florence_jax.model.davit import DualBlock
from train.plan.attribution import COLLECTIVES, OTHER, SCOPES, attribute, source_of
from train.plan.compiled import Compiled, Share
from train.plan.hlo import parse_hlo
from train.plan.report import report
from train.plan.request import PlanRequest
from train.plan.schedule import traffic

KERNELS = """HloModule jit_step, is_scheduled=true, num_partitions=4

%fused (p0: f32[64,128]) -> f32[64,128] {
  %p0 = f32[64,128]{1,0} parameter(0)
  %small = f32[1,128]{1,0} slice(%p0), slice={[0:1], [0:128]}, metadata={op_name="jit(step)/jvp(layer_norm)/slice"}
  %large = f32[64,128]{1,0} negate(%p0), metadata={op_name="jit(step)/transpose(jvp(mlp))/dropout/neg"}
  ROOT %sum = f32[64,128]{1,0} add(%large, %p0)
}

%reduced (p1: f32[64,128]) -> f32[16,128] {
  %p1 = f32[64,128]{1,0} parameter(0)
  ROOT %scattered = f32[16,128]{1,0} reduce-scatter(%p1), metadata={op_name="jit(step)/transpose(jvp(mlp))/dot_general"}
}

ENTRY %main (a: f32[64,128]) -> f32[16,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %early = f32[64,128]{0,1} copy(%a)
  %named = f32[64,128]{1,0} negate(%early), metadata={op_name="jit(step)/jvp(mlp)/neg"}
  %copied = f32[64,128]{0,1} copy(%named)
  %unnamed = f32[64,128]{1,0} fusion(%copied), kind=kLoop, calls=%fused
  %residual = f32[64,128]{1,0} add(%unnamed, %named), metadata={op_name="jit(step)/jvp()/add"}
  ROOT %out = f32[16,128]{1,0} fusion(%residual), kind=kCustom, calls=%reduced
}
"""  # noqa: E501


def test_every_kernel_has_a_source():
    """Copies belong to what they read or to what reads them, fusions to their largest part."""
    size = 64 * 128 * 4
    found = attribute(parse_hlo(KERNELS))
    assert found == {
        "MLPs": Share(forward=6 * size, kernels=3),
        OTHER: Share(forward=3 * size, kernels=1),
        "dropout": Share(backward=2 * size, kernels=1),
        COLLECTIVES: Share(backward=1.25 * size, kernels=1),
    }
    assert next(iter(found)) == "MLPs"
    assert sum(share.bytes for share in found.values()) == traffic(parse_hlo(KERNELS))


@pytest.mark.parametrize(
    ("operation", "source"),
    [
        ("jit(step)/transpose(jvp(mlp))/dot_general", "MLPs"),
        ("jit(step)/jvp(mlp)/dropout/jit(_where)/select_n", "dropout"),
        ("jit(step)/jvp(cross_entropy)/logits/dot_general", "logits, cross entropy"),
        ("jit(step)/jvp(embedding)/gather", "token embeddings"),
        ("jit(step)/jvp()/add", OTHER),
        ("", OTHER),
    ],
)
def test_the_innermost_scope_decides(operation, source):
    assert source_of(operation) == source


def test_a_compiled_block_names_its_parts():
    """Forward and backward passes of a real block: hardly anything is left without a source."""
    config = PRESETS["tiny"]().vision
    graph, state = nnx.split(DualBlock(config, 0, rngs=nnx.Rngs(0)))
    x = jnp.ones((2, 24, 24, config.embed_dims[0]))

    def loss(state):
        return jnp.square(nnx.merge(graph, state)(x)).sum()

    module = parse_hlo(jax.jit(jax.grad(loss)).lower(state).compile().as_text())
    found = attribute(module)
    parts = {SCOPES[name] for name in ("window_attention", "channel_attention", "mlp")}
    parts |= {SCOPES[name] for name in ("layer_norm", "convolution")}
    assert all(found[part].forward > 0 and found[part].backward > 0 for part in parts)
    total = sum(share.bytes for share in found.values())
    assert total == traffic(module)
    assert sum(found[part].bytes for part in parts) > 0.9 * total


def test_the_report_has_a_line_for_each_source():
    compiled = Compiled(
        outcome="fits",
        traffic=8e9,
        flops=1e12,
        sources={"MLPs": Share(forward=2e9, backward=4e9, kernels=7), OTHER: Share(forward=2e9)},
        compiler="libtpu 1.2.3",
    )
    text = report(PlanRequest(), compiled)
    assert "  MLPs                      75.0%     2.00 GB     4.00 GB        7" in text
    assert "  residual sums, other      25.0%     2.00 GB           -        0" in text
    assert text.endswith("by libtpu 1.2.3")
    again = Compiled.from_tree(dataclasses.asdict(compiled) | {"notes": []})
    assert again == compiled
