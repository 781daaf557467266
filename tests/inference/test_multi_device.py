"""All devices of a host answer as one does, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from florence_jax.batch.blocks import is_block_name, read_rows
from tests.batch.fakes import write_pictures
from tests.inference.results import assert_close

pytestmark = pytest.mark.optimized
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, devices, program="over_devices"):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", f"tests.batch.{program}", *arguments]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def check_same_bytes(folder, devices, constrained):
    write_pictures(folder / "pictures", 12, (30, 20), broken=(3,))
    run(folder, constrained, devices=devices)
    one, several = (
        {path.name: path.read_bytes() for path in (folder / str(count)).iterdir()}
        for count in (1, devices)
    )
    assert len(one) == 5
    assert one == several


def test_devices_change_no_bit(tmp_path):
    check_same_bytes(tmp_path, 2, "false")


@pytest.mark.slow
def test_nor_where_answers_are_constrained(tmp_path):
    check_same_bytes(tmp_path, 3, "true")


@pytest.mark.slow
def test_no_device_waits_for_another():
    run(devices=4)


def rows_in(folder):
    files = sorted(path for path in folder.iterdir() if is_block_name(path.name))
    return [row for path in files for row in read_rows(path)]


@pytest.mark.slow
def test_divided_parameters_give_the_answers_of_one_device(tmp_path):
    write_pictures(tmp_path / "pictures", 7, (30, 20), broken=(3,))
    run(str(tmp_path), devices=4, program="over_mesh")
    for ours, expected in zip(rows_in(tmp_path / "mesh"), rows_in(tmp_path / "one"), strict=True):
        answers, wanted = ours.pop("answers", []), expected.pop("answers", [])
        assert ours == expected
        for answer, other in zip(answers, wanted, strict=True):
            assert_close(answer["result"], other["result"])
    divided, whole = rows_in(tmp_path / "annotated-mesh"), rows_in(tmp_path / "annotated-one")
    assert sum(len(row.get("regions", ())) for row in whole) > 5
    for row, other in zip(divided, whole, strict=True):
        assert (row["id"], row.get("error")) == (other["id"], other.get("error"))
        for ours, expected in zip(row.get("regions", ()), other.get("regions", ()), strict=True):
            assert ours == {
                name: pytest.approx(value, abs=2e-4) if "score" in name else value
                for name, value in expected.items()
            }
    manifest = json.loads((tmp_path / "mesh" / "run.json").read_text())
    assert manifest["job"]["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2}
