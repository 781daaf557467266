"""timm's DaViT as the reference, and what is stored of it for machines without timm.

timm asks for torchvision, whose release for another build of torch breaks torch itself, so the
tests' environment has neither. DaViT uses nothing of torchvision: where timm is installed without
its dependencies, a stand-in makes it importable. `python -m tests.backbone.timm_reference` writes
`data/` again.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None,
    reason="needs timm (pip install --no-deps timm==1.0.31); data/ has its outputs for tiny models",
)

# Two models as small as both kinds of DaViT can be: maps of odd sizes, padded windows.
_SIZES = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)}
STORED = {"paper": "davit_tiny", "florence": "davit_base_fl"}
_IMAGE = (2, 45, 75, 3)


class _StandIn(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


class _Names(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def import_timm():
    """timm, on a stand-in for torchvision where there is none."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Finder())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    return timm


def outputs(model, images):
    """timm's feature maps "stage0" to "stage3", "embed" and, with a classifier, "logits"."""
    import torch

    pixels = torch.tensor(np.moveaxis(images, -1, 1))
    with torch.no_grad():
        last, maps = model.forward_intermediates(pixels)
        embed = model.forward_head(last, pre_logits=True)
        found = {f"stage{number}": one.movedim(1, -1) for number, one in enumerate(maps)}
        found |= {"embed": embed}
        if model.num_classes:
            found["logits"] = model.forward_head(last)
    return {name: value.numpy() for name, value in found.items()}


def stored_images():
    return np.random.RandomState(0).standard_normal(_IMAGE).astype(np.float32)


def write_stored():
    import torch
    from timm.models._hub import save_for_hf

    for name, architecture in STORED.items():
        classes = 5 if name == "paper" else 0
        model = import_timm().create_model(
            architecture, **_SIZES, num_classes=classes, mlp_ratio=2.0
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                noise = torch.randn(tensor.shape, generator=generator)
                matrix = tensor.ndim > 1
                gain = tensor[0].numel() ** -0.5 if matrix else 0.1
                tensor.copy_(noise * gain + (key.endswith("weight") and not matrix))
        save_for_hf(model.eval(), str(DATA / name), safe_serialization=True)
        np.savez(DATA / f"{name}.npz", **outputs(model, stored_images()))


if __name__ == "__main__":
    import_timm()
    write_stored()
