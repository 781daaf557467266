"""Errors of every stage beside timm, for full widths with random weights.

    python -m tests.backbone.timm_parity [NAME ...]

prints, for each model and image size, the largest absolute error of each output, and that error
over the output's largest value. Both run in float32; the weights travel in timm's file format.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import florence_jax as fj
from florence_jax.backbone.backbone import Backbone
from florence_jax.backbone.config import PRESETS
from florence_jax.model.handle import structure
from florence_jax.model.random_params import spread_params
from tests.backbone.timm_reference import import_timm, outputs

NAMES = ("davit_tiny", "davit_small", "davit_base", "davit_base_fl", "davit_huge_fl")
# Both divide by no window and no stride.
SIZES = {False: ((224, 224), (150, 211)), True: ((384, 384), (150, 211))}


def reduced(name):
    """A preset; of the huge ones, with at most two blocks a stage, for memory's sake."""
    config = PRESETS[name]
    most = 2 if "huge" in name else 9
    depths = tuple(min(depth, most) for depth in config.vision.depths)
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, depths=depths))


def both(config, directory, seed=0):
    """(backbone, params, timm's model) with the same weights, timm's loaded strictly."""
    import torch
    from safetensors.torch import load_file

    backbone = Backbone(config=config)
    params = spread_params(structure(backbone)[1], seed)
    written = fj.save_backbone(directory, config, params, overwrite=True)
    assert written.config == config
    model = import_timm().create_model(f"local-dir:{directory}", pretrained=False)
    model.load_state_dict(load_file(Path(directory) / "model.safetensors"), strict=True)
    assert next(model.parameters()).dtype == torch.float32
    return backbone, params, model.eval()


def errors(name, size):
    """Output -> (largest absolute error, over the largest value)."""
    with tempfile.TemporaryDirectory() as directory:
        backbone, params, model = both(reduced(name), Path(directory) / "saved")
    images = np.random.default_rng(1).standard_normal((1, *size, 3)).astype(np.float32)
    maps = backbone.features(params, images)
    ours = {f"stage{number}": one for number, one in enumerate(maps)}
    ours["embed"] = backbone.embed(params, images)
    if backbone.config.num_classes:
        ours["logits"] = backbone.logits(params, images)
    theirs = outputs(model, images)
    assert ours.keys() == theirs.keys()
    found = {}
    for key, expected in theirs.items():
        error = float(np.abs(np.asarray(ours[key]) - expected).max())
        found[key] = error, error / float(np.abs(expected).max())
    return found


def main(names):
    jax.config.update("jax_default_matmul_precision", "highest")
    for name in names or NAMES:
        for size in SIZES[name.endswith("_fl")]:
            cells = (f"{key} {e:.1e}/{r:.1e}" for key, (e, r) in errors(name, size).items())
            print(f"{name} {size[0]}x{size[1]}: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
