"""Collectives as they are found in real compiler output: XLA:CPU's of now, the TPU's stored.

`samples/tpu_fsdp_step.hlo` is what libtpu 0.0.42 makes of `sgd_step` in eight_device_programs.py
with layers of 1024 x 1024, for v5e:2x4, without the computations that hold no collective and no
loop.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from train.plan.collectives import Total, collectives, replica_groups, totals
from train.plan.hlo import bytes_of, elements, parse_hlo

HERE = Path(__file__).parent
ROWS = ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.fixture(scope="module")
def programs():
    program = [sys.executable, str(HERE / "eight_device_programs.py")]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    return {name: collectives(text) for name, text in json.loads(done.stdout).items()}


def kinds(found):
    return [one.kind for one in found]


def test_data_parallel_sums_each_layers_gradient_over_everybody(programs):
    (gradient,) = programs["data parallel"]
    assert gradient.kind == "all-reduce"
    assert gradient.bytes == 256 * 256 * 4
    assert gradient.groups == (tuple(range(8)),)
    assert gradient.in_loop
    assert gradient.trips == 6
    assert "dot_general" in gradient.operation
    assert gradient.sent_bytes == 2 * 7 / 8 * gradient.bytes
    total = {"all-reduce": Total(count=6, bytes=6 * 262144, sent_bytes=6 * 262144 * 1.75)}
    assert totals(programs["data parallel"]) == total


def test_fsdp_gathers_each_layer_forward_and_back(programs):
    gathers = [one for one in programs["fsdp"] if one.kind == "all-gather"]
    assert [(one.bytes, one.groups, one.trips) for one in gathers] == [(262144, ROWS, 6)] * 2
    assert gathers[0].loops != gathers[1].loops
    reductions = {one.group_size for one in programs["fsdp"] if one.kind == "all-reduce"}
    assert reductions == {2, 4}


def test_permutation_exchange_and_scatter(programs):
    (permute,) = programs["permute"]
    assert (permute.kind, permute.bytes, permute.group_size) == (
        "collective-permute",
        128 * 256 * 4,
        2,
    )
    assert permute.groups[:2] == ((0, 1), (1, 2))
    assert permute.sent_bytes == permute.bytes
    (exchange,) = programs["all to all"]
    assert (exchange.kind, exchange.bytes, exchange.groups) == ("all-to-all", 128 * 256 * 4, ROWS)
    (scatter,) = programs["scatter"]
    assert (scatter.kind, scatter.bytes, scatter.groups) == ("reduce-scatter", 512 * 128 * 4, ROWS)
    assert scatter.sent_bytes == 3 / 4 * scatter.bytes


def test_the_test_of_a_data_dependent_loop_has_no_trip_count(programs):
    (test,) = programs["while"]
    assert (test.kind, test.bytes, test.group_size, test.trips) == ("all-reduce", 4, 4, None)
    assert test.in_loop
    assert totals(programs["while"])["all-reduce"].unbounded == 1
    assert not programs["alone"]


def test_the_tpu_forms_of_the_same_program():
    found = collectives((HERE / "samples/tpu_fsdp_step.hlo").read_text())
    assert kinds(found) == ["all-gather", "all-gather", "reduce-scatter", "all-reduce"]
    assert [one.trips for one in found] == [6] * 4
    # Its second gather runs beside the work of three fused computations, which all print it.
    assert [one.overlapped for one in found] == [False, True, False, False]
    # The compiler gathers what was cast to bfloat16, and keeps one slice of the summed gradient.
    assert [one.bytes for one in found] == [2 * 2**20, 2 * 2**20, 4 * 2**20, 2**20]
    assert found[3].groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert [one.crosses(4) for one in found] == [False, False, False, True]
    assert all("dot_general" in one.operation for one in found)


ASYNCHRONOUS = """HloModule m, replica_count=2, num_partitions=2

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: f32[8]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner = f32[4]{0} reduce-scatter(%p), replica_groups=[2,2]<=[4], to_apply=%add
}

%one (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %r1 = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}

%other (y: f32[8]) -> f32[8] {
  ROOT %y = f32[8]{0} parameter(0)
}

ENTRY %main (x: f32[8], i: s32[]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %i = s32[] parameter(1)
  %s = ((f32[8]{0}), f32[4]{0}, u32[]) async-start(%x.1), calls=%wrapped
  %d = f32[4]{0} async-done(%s), calls=%wrapped
  %g = (f32[4]{0}, f32[8]{0}) all-gather-start(%d), replica_groups={{0,1},{2,3}}, dimensions={0}
  %h = f32[8]{0} all-gather-done(%g)
  %t = (f32[8]{0}, bf16[2,2]{1,0}) all-reduce-start(%h, %i), replica_groups={{0,2},{1,3}}
  %u = (f32[8]{0}, bf16[2,2]{1,0}) all-reduce-done(%t)
  %alone = f32[8]{0} all-reduce(%h), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %c = f32[8]{0} conditional(%i, %h, %h), branch_computations={%one, %other}
}
"""


def test_pairs_count_once_and_groups_of_one_not_at_all():
    found = collectives(ASYNCHRONOUS)
    described = [(one.kind, one.bytes, one.group_size, one.overlapped) for one in found]
    assert described == [
        ("reduce-scatter", 32, 2, True),
        ("all-gather", 32, 2, True),
        ("all-reduce", 40, 2, True),
        ("all-reduce", 32, 4, False),
    ]


def test_what_crosses_tpu_slices_goes_through_the_hosts():
    """As libtpu 0.0.42 prints it for 2*v5e:2x2: the program of one slice."""
    handler = (
        'is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = f"""HloModule m, num_partitions=4

ENTRY %main (p: f32[9,8,128]) -> f32[9,8,128] {{
  %p = f32[9,8,128]{{2,1,0:T(8,128)}} parameter(0)
  %t = token[] after-all()
  %send = (f32[9,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) send(%p, %t), channel_id=5, {handler}
  %recv = (f32[9,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) recv(%t), channel_id=4, {handler}
  %sent = token[] send-done(%send), channel_id=5, is_host_transfer=true
  %came = (f32[9,8,128]{{2,1,0:T(8,128)}}, token[]) recv-done(%recv), channel_id=4
  ROOT %out = f32[9,8,128]{{2,1,0:T(8,128)}} get-tuple-element(%came), index=0
}}
"""
    (found,) = collectives(text)
    assert (found.kind, found.bytes, found.overlapped) == ("all-reduce", 9 * 8 * 128 * 4, True)
    assert found.groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert found.sent_bytes == found.bytes
    assert found.crosses(4)
    assert not found.crosses(8)


SPARSE_CORES = """HloModule m, num_partitions=4

%called_computation.30 (param_0: f32[1,2,100], param_1: token[]) -> f32[4,2,100] {
  %param_1 = token[] parameter(1)
  %param_0 = f32[1,2,100]{2,1,0:T(2,128)} parameter(0)
  ROOT %all-gather.172 = f32[4,2,100]{2,1,0:T(2,128)} all-gather(%param_0), channel_id=41, replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, dimensions={0}, use_global_device_ids=true
}, execution_thread="sparsecore"

ENTRY %main (p: f32[1,2,100]) -> f32[4,2,100] {
  %p = f32[1,2,100]{2,1,0:T(2,128)} parameter(0)
  %prepare_start = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
  %prepare_done = token[] custom-call(%prepare_start), custom_call_target="PrepareAsyncCallDone"
  %call-start = ((f32[1,2,100]{2,1,0:T(2,128)}, token[]), f32[4,2,100]{2,1,0:T(2,128)}) call-start(%p, %prepare_done), async_execution_thread="sparsecore", to_apply=%called_computation.30, metadata={op_name="jit(step)/jvp()/sharding_constraint"}
  ROOT %call-done = f32[4,2,100]{2,1,0:T(2,128)} call-done(%call-start)
}
"""  # noqa: E501


def test_what_a_tpu7x_hands_to_its_sparse_cores():
    """As libtpu 0.0.42 prints it for tpu7x:2x2x1."""
    (found,) = collectives(SPARSE_CORES)
    assert (found.kind, found.bytes, found.groups) == (
        "all-gather",
        4 * 2 * 100 * 4,
        ((0, 1, 2, 3),),
    )
    assert found.overlapped
    assert found.operation == "jit(step)/jvp()/sharding_constraint"


def test_a_collective_that_nothing_known_calls_is_named():
    """Left out in silence, it would make every figure of a plan too good."""
    with pytest.raises(ValueError, match=r"all-gather.172 is in computation called_computation.30"):
        collectives(SPARSE_CORES.replace(" call-start(", " other-start("))


@pytest.mark.parametrize(
    ("printed", "groups"),
    [
        ("replica_groups={{0,3},{1,2}}, x=1", ((0, 3), (1, 2))),
        ("replica_groups=[2,4]<=[8]", ROWS),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ROWS),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", (tuple(range(8)),)),
        (
            "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, d=1",
            ROWS,
        ),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh[a=8] {a:(2)4}", ROWS),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,0,2) {'b'}", ((3, 1), (0, 2))),
        ("replica_groups={}, channel_id=1", ((0, 1),)),
    ],
)
def test_every_notation_of_replica_groups(printed, groups):
    assert replica_groups(", channel_id=1, " + printed, 2) == groups


def test_an_unknown_notation_is_named():
    with pytest.raises(ValueError, match=r"notation of replica groups.*wheel"):
        replica_groups("replica_groups=wheel(3)", 8)


def test_sizes_of_printed_shapes():
    assert bytes_of("(bf16[3,5]{1,0:T(8,128)(2,1)S(1)}, s32[], pred[7], s4[3])") == 30 + 4 + 7 + 2
    assert bytes_of("f8e4m3fn[4]") == 4
    assert elements("((f32[2]), (f32[2]{0:T(8)}, s32[]))") == (
        "(f32[2])",
        "(f32[2]{0:T(8)}, s32[])",
    )
    with pytest.raises(ValueError, match="'weird' is not known"):
        bytes_of("weird[3]")


def test_what_is_no_compiled_module_is_refused():
    with pytest.raises(ValueError, match=r"compile\(\)\.as_text"):
        parse_hlo("module @jit_step { func.func public @main }")
