"""All devices of a host answer as one does, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.batch.fakes import write_pictures

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, devices):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "tests.batch.over_devices", *arguments]
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
