"""The commands of `florence-jax` in groups, the help that lists them, and its version."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

DESCRIPTION = "Florence-2 in JAX: captions, boxes, masks and text, on TPU, GPU and CPU."


@dataclass(frozen=True)
class Command:
    """One command, as the list of commands shows it.

    Attributes:
        adder: the module below `florence_jax.cli` and its function that adds the command's parser.
        summary: what the command does, in a line.
        example: a call.
    """

    adder: str
    summary: str
    example: str


GROUPS = {
    "Use the model": {
        "predict": Command(
            "predict:add_predict",
            "answer tasks about images: caption, detect, segment, read",
            'florence-jax predict photo.jpg --task "<OD>" --save-images drawn/',
        ),
        "embed": Command(
            "backbone_run:add_embed",
            "embed images by the image tower: a vector for each",
            "florence-jax embed photos/ --output-dir vectors/ --format npy",
        ),
        "classify": Command(
            "backbone_run:add_classify",
            "classify images by a DaViT with a classifier",
            "florence-jax classify photos/ --model davit_tiny --top 5",
        ),
        "serve": Command(
            "serve:add_serve",
            "serve a model over HTTP, to many callers at a time",
            "florence-jax serve --model shapes --port 8000",
        ),
        "mcp": Command(
            "mcp:add_mcp",
            "give language models tools that look at images (MCP)",
            "florence-jax mcp --root photos/",
        ),
        "demo": Command(
            "demo:add_demo",
            "answer all 15 tasks offline with a small trained model",
            "florence-jax demo",
        ),
    },
    "Long runs and data": {
        "annotate": Command(
            "annotate:add_annotate",
            "annotate images: captions, boxes, text, grounded phrases",
            "florence-jax annotate photos/ --output annotated/",
        ),
        "verify-output": Command(
            "verify_output:add_verify_output",
            "check what predict --output-dir or annotate wrote",
            "florence-jax verify-output answers/",
        ),
    },
    "Train and evaluate": {
        "train": Command(
            "train_command:add_train",
            "train or fine-tune a model by a recipe",
            "florence-jax train --config train/recipes/lora.py --dry-run",
        ),
        "data": Command(
            "data:add_data",
            "check training data: counts, lengths, and what is wrong",
            "florence-jax data check my_coco --output page.html",
        ),
        "evaluate": Command(
            "evaluate:add_evaluate",
            "recompute the published tables, or score your own data",
            "florence-jax evaluate own --data rows.jsonl --model runs/mine",
        ),
        "bench": Command(
            "bench:add_bench",
            "time a model on this machine by batch size",
            "florence-jax bench --model shapes",
        ),
    },
    "Convert and export": {
        "convert": Command(
            "convert:add_convert",
            "convert a checkpoint from PyTorch, or back to it",
            "florence-jax convert microsoft/Florence-2-base-ft mine/",
        ),
        "push": Command(
            "push:add_push",
            "upload a checkpoint to the Hugging Face Hub, with a card",
            "florence-jax push runs/mine me/florence-2-mine --license mit",
        ),
        "export": Command(
            "export:add_export",
            "write compiled programs that need no model code (StableHLO)",
            "florence-jax export exported/ --batch-size 1",
        ),
    },
    "Environment": {
        "doctor": Command(
            "doctor:add_doctor",
            "show versions, devices, caches and what is missing",
            "florence-jax doctor",
        ),
        "completion": Command(
            "completion:add_completion",
            "print a script that completes commands in your shell",
            "florence-jax completion bash > ~/.florence-jax-completion.bash",
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

_MODELS = """\
Models (--model)
  microsoft/Florence-2-base-ft (default) and every other Florence-2, by hub id
  or directory; `shapes` comes with the library and needs no download, but it
  knows nothing but drawn shapes and words.

`florence-jax COMMAND --help` has the options, their defaults and examples.
"""

# Backends beside the CPU, by the distribution that brings them.
_BACKENDS = {
    "libtpu": "tpu",
    "jax-cuda13-plugin": "cuda (13)",
    "jax-cuda12-plugin": "cuda (12)",
    "jax-rocm7-plugin": "rocm (7)",
    "jax-rocm60-plugin": "rocm (6)",
}


class VersionAction(argparse.Action):
    """`--version`: print the versions and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(version_text())
        parser.exit()


def commands_text() -> str:
    """Every command by group, with an example of each; 80 columns wide."""
    return "\n".join([*_listed(), _MODELS])


def _listed() -> Iterator[str]:
    for group, commands in GROUPS.items():
        yield group
        for name, command in commands.items():
            yield f"  {name:<15}{command.summary}"
            yield f"      {command.example}"
        yield ""


def version_text() -> str:
    """The versions of the library and of JAX, and the kinds of device that JAX is installed for.

    Nothing is imported or started: devices are looked for only when a model runs.
    """
    import platform

    import florence_jax

    names = ("jax", "jaxlib", "flax", "numpy")
    versions = [f"{name} {_version(name) or 'is not installed'}" for name in names]
    installed = [kind for name, kind in _BACKENDS.items() if _version(name)]
    chosen = os.environ.get("JAX_PLATFORMS")
    backends = ", ".join([*installed, "cpu"]) + (f" (JAX_PLATFORMS={chosen})" if chosen else "")
    return "\n".join(
        [
            f"florence-jax {florence_jax.__version__}",
            ", ".join(versions),
            f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
            f"backends installed: {backends}",
        ]
    )


def _version(name: str) -> str | None:
    import importlib.metadata  # a third of the time that the help takes

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
