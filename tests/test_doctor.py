"""`florence-jax doctor` names versions, devices, caches, and what is missing with its remedy."""

import importlib.metadata

import jax
from packaging.requirements import Requirement

import florence_jax
from florence_jax.cli import doctor
from florence_jax.cli.main import main


def test_it_names_what_is_here_and_the_remedy_for_what_is_not(capsys, monkeypatch):
    found = importlib.metadata.distribution

    def distribution(name):
        if name == "pycocotools":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"florence-jax {florence_jax.__version__}"
    assert any(line.startswith("device 0: cpu (cpu)") for line in lines)
    assert any(line.startswith("checkpoints: ") and line.endswith(" GiB free") for line in lines)
    assert '  evaluate   missing: pycocotools; pip install "florence-jax[evaluate]"' in lines
    assert "  train      ok" in lines


def test_a_required_package_of_another_version_is_named(capsys, monkeypatch):
    wanted = [Requirement("numpy>=99"), Requirement("no-such-package>=1"), Requirement("pillow")]
    monkeypatch.setattr(doctor, "_required", lambda extra="": iter(wanted))
    assert main(["doctor"]) == 1
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("required"))
    found = importlib.metadata.version("numpy")
    assert f": numpy>=99 (found {found}), no-such-package; pip install" in line


def test_without_a_device_it_fails_with_the_reason(capsys, monkeypatch):
    def no_devices():
        raise RuntimeError("Unable to initialize backend\n'tpu'")

    monkeypatch.setattr(jax, "devices", no_devices)
    assert main(["doctor"]) == 1
    assert "devices: none, Unable to initialize backend 'tpu'" in capsys.readouterr().out


def test_every_extra_is_known():
    declared = importlib.metadata.metadata("florence-jax").get_all("Provides-Extra")
    assert [name for name, _ in doctor._extras()] == declared
