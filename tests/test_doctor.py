"""`florence-jax doctor` names versions, devices, caches, and what is missing with its remedy."""

import importlib.metadata

import jax

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


def test_without_a_device_it_fails_with_the_reason(capsys, monkeypatch):
    def no_devices():
        raise RuntimeError("Unable to initialize backend\n'tpu'")

    monkeypatch.setattr(jax, "devices", no_devices)
    assert main(["doctor"]) == 1
    assert "devices: none, Unable to initialize backend 'tpu'" in capsys.readouterr().out


def test_every_extra_is_known():
    declared = importlib.metadata.metadata("florence-jax").get_all("Provides-Extra")
    assert [name for name, _ in doctor._extras()] == declared
