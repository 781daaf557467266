"""The reader of bundles on a schedule made by hand, and the estimates against their budget."""

import json
from importlib.metadata import version
from importlib.util import find_spec

import pytest

from tests.benchmarks.tpu_bundles import read_kernel, read_kernels
from tests.benchmarks.tpu_estimate import BUDGET, CASES, HERTZ, estimate

pytestmark = pytest.mark.optimized

STORED = json.loads(BUDGET.read_text())

# 2 bundles, a loop of 3 bundles and 4 more in the shadow of its branch, 10 times less the trip that
# fills its pipeline, and 1 bundle. In the loop, two matrix units get 3 and 1 tiles of bfloat16.
KERNEL = """= control target key start
LB: loop body
= control target key end

     0   :  { %s0 = smov 0 }
   0x1   :  { %s1 = smov 1 } /* Start region 1 */
   0x2 LB: > { %1 = vmatmul.bf16.gmra.mxu0 %v0  ;;  %2 = vmatmul.bf16.gmra.mxu1 %v1 }
   0x3   : > { %3 = vmatmul.bf16.gmra.mxu0 %v0 /* iteration index, stage = 1 */ }
   0x4   : > { %p1 = scmp.ge.s32.totalorder %s2, 10 /* loop exit test */ }
   0x5   : > { %4 = sbr.rel (!%p1) target bundleno = 2 (0x2), region = 3
  ;;  %5 = vmatmul.bf16.gmra.mxu0 %v0 }
   0x6   : > {}
   0x7   : > {}
   0x8   : > {}
   0x9   : > {}
   0xa   :  { %6 = sfence }
"""


def test_bundles_are_counted_with_the_trips_of_their_loop():
    kernel = read_kernel(KERNEL)
    # 8 bundles of the loop feed unit 0 with 3 tiles of 16 rows each: the unit is the slower one.
    assert kernel.matmul_cycles == 9 * 3 * 16
    assert kernel.cycles == 3 + 9 * 3 * 16
    assert kernel.unknown_loops == 0
    light = read_kernel(KERNEL.replace("vmatmul", "vadd"))
    assert light.cycles == 3 + 9 * 8
    unknown = read_kernel(KERNEL.replace(", 10 /*", ", %s9 /*"))
    assert (unknown.cycles, unknown.unknown_loops) == (3 * 16, 1)


def test_equal_kernels_share_one_schedule(tmp_path):
    (tmp_path / "12-fusion.1-01-final_bundles.txt").write_text(KERNEL)
    (tmp_path / "12-fusion.1-00-schedule-analysis_final_bundles.txt").write_text("no schedule")
    (tmp_path / "12-TLP-00-deduplication-map.txt").write_text("key: fusion.1\n  fusion.2\n")
    kernels = read_kernels(tmp_path)
    assert kernels["fusion.1"] == kernels["fusion.2"] == read_kernel(KERNEL)
    assert len(kernels) == 2


def test_the_budget_is_of_parts_that_there_are():
    assert STORED.keys() <= CASES.keys()
    assert {"beam body", "encoder"} <= STORED.keys()


def test_the_clock_is_that_of_the_published_peak():
    assert pytest.approx(1.5e9, rel=0.003) == HERTZ


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs `pip install libtpu`")
@pytest.mark.parametrize("name", STORED)
def test_no_part_became_slower(name):
    """Within 2 % of the stored cycles; `python -m tests.benchmarks.tpu_estimate --write` stores."""
    budget = STORED[name]
    if version("libtpu") != budget["libtpu"]:
        pytest.skip(f"the budget is libtpu {budget['libtpu']}'s, and this is {version('libtpu')}")
    assert estimate(name)["cycles"] <= 1.02 * budget["cycles"]
