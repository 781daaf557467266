"""`florence-jax doctor`: what is installed here, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from florence_jax.cli.help import version_text

# What the extras of jax bring, which its own metadata does not tell.
_PLUGINS = {"tpu": [Requirement("libtpu")], "cuda": [Requirement("jax-cuda13-plugin")]}


def add_doctor(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    doctor = commands.add_parser(
        "doctor",
        description="Show what florence-jax finds here: versions, devices, memory, caches, and "
        "optional packages, with a remedy for each that is missing. Exit status: 0, or 1 if jax "
        "finds no device or a required package is missing or too old.",
    )
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    print(version_text())
    print(f"processor: {os.cpu_count()} cores, {_memory()} of memory")
    for name, directory in _caches():
        free = shutil.disk_usage(_existing(directory)).free
        print(f"{name}: {directory}, {free / 2**30:,.1f} GiB free")
    found = _print_devices()
    unfit = list(_unfit(_required()))
    if unfit:
        print(f"required, and not here: {', '.join(unfit)}; pip install --upgrade florence-jax")
    print("extras:")
    for extra, missing in _extras():
        remedy = f'missing: {", ".join(missing)}; pip install "florence-jax[{extra}]"'
        print(f"  {extra:<10} {remedy if missing else 'ok'}")
    return 0 if found and not unfit else 1


def _print_devices() -> bool:
    """Print jax's devices with their memory; whether there are any."""
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # a broken driver raises what it likes
        print(
            f"devices: none, {' '.join(str(error).split())}\n  JAX_PLATFORMS=cpu runs on the CPU; "
            "otherwise reinstall jax for your accelerator and check its driver"
        )
        return False
    for device in devices:
        memory = (device.memory_stats() or {}).get("bytes_limit")
        size = f", {memory / 2**30:,.1f} GiB" if memory else ""
        print(f"device {device.id}: {device.device_kind} ({device.platform}){size}")
    return True


def _extras() -> Iterator[tuple[str, list[str]]]:
    """(extra, those of its packages that are missing or too old), in the package's order."""
    metadata = importlib.metadata.metadata("florence-jax")
    always = set(_required())
    for extra in metadata.get_all("Provides-Extra") or []:
        required = [one for one in _required(extra) if one not in always]
        required = _PLUGINS.get(extra, [one for one in required if one.name != "florence-jax"])
        missing = [*_unfit(required)]
        if extra == "meteor" and shutil.which("java") is None:
            missing.append("Java, from its own site")
        yield extra, missing


def _required(extra: str = "") -> Iterator[Requirement]:
    """What the package requires on this platform, with an extra or without one."""
    for requirement in map(Requirement, importlib.metadata.requires("florence-jax") or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _unfit(requirements: Iterable[Requirement]) -> Iterator[str]:
    """Those that are not installed, and those of which another version is."""
    for requirement in requirements:
        try:
            version = importlib.metadata.distribution(requirement.name).version
        except importlib.metadata.PackageNotFoundError:
            yield requirement.name
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier} (found {version})"


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return f"an unknown size ({platform.system()})"
    return f"{size / 2**30:,.1f} GiB"


def _caches() -> Iterator[tuple[str, Path]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from florence_jax.runtime.compilation_cache import use_compilation_cache

    yield "checkpoints", Path(HF_HUB_CACHE)
    compiled = use_compilation_cache()
    if compiled is not None:
        yield "compiled programs", compiled


def _existing(directory: Path) -> Path:
    return directory if directory.exists() else _existing(directory.parent)
