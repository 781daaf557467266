"""Runs of image networks on a mesh of eight devices, beside the same runs on one.

    python -m tests.sharding.images DIRECTORY heads|all KIND:MESH:RULES ...

trains each KIND, classify or segment, on one device and on each mesh, and prints a JSON line for
each mesh: the relative distances of losses, evaluations and exported weights. Batches have
five rows, one of them unusable, and are filled up to what the mesh divides. With "heads", which
compiles in a third of the time, the tower is frozen, UperNet is smaller, and nothing is evaluated.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

import florence_jax as fj
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.runtime.jsonl import read_lines
from florence_jax.sharding import MeshShape, make_mesh
from florence_jax.training.images import run as image_run
from florence_jax.training.loop import Outcome, train
from florence_jax.training.settings import OptimizerConfig
from tests.sharding.equality import distance, whole_distance
from tests.training.images.small import (
    classify_config,
    segment_config,
    write_classes,
    write_masks,
)

STEPS = 2
_MAKERS = {"classify": (write_classes, classify_config), "segment": (write_masks, segment_config)}


def config_of(kind, directory, trained):
    """A run of every setting that a mesh could change, on data with one unreadable image."""
    write, make = _MAKERS[kind]
    data = directory / kind
    if not data.exists():
        write(data, {"train": 5, "valid": 3} if trained == "all" else {"train": 5})
        min((data / "train").rglob("*.png")).write_bytes(b"no image")
    config = make(directory, data, steps=4)
    accumulation = config.accumulation
    if trained == "heads":
        accumulation = 1
        if kind == "segment":
            model = dataclasses.replace(config.model, pool_sizes=(2,), auxiliary_dim=0)
            config = dataclasses.replace(config, model=model)
    return dataclasses.replace(
        config,
        steps=STEPS,
        batch_size=5 * accumulation,
        accumulation=accumulation,
        data=dataclasses.replace(config.data, quarantine_share=1.0),
        # A bias before a norm has no gradient but rounding: Adam's usual eps would make it a step.
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="constant",
            eps=1e-3,
            ema_decay=0.5,
            layer_decay=0.9,
            rules=(("vision_tower/.*", float(trained == "all")), (".*", 1.0)),
        ),
        evaluation=dataclasses.replace(config.evaluation, every=STEPS, images=0),
        logging=dataclasses.replace(config.logging, every=1),
    )


def finished(config):
    """Losses, evaluations and exported weights of a run."""
    assert train(config) is Outcome.DONE
    load = fj.load_backbone if config.kind == "classification" else fj.load_segmenter
    lines = list(read_lines(Path(config.directory) / "metrics.jsonl"))
    scores = ("loss", "nll", "accuracy", "grad_norm", "top1", "mIoU", "pixel_accuracy")
    found = {
        kind: [
            np.array([line[name] for name in scores if name in line])
            for line in lines
            if line["kind"] == kind
        ]
        for kind in ("train", "evaluation")
    }
    found = {kind: lines for kind, lines in found.items() if lines}
    return found | {"weights": dict(flatten(load(f"{config.directory}/export")[1]))}


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    directory, trained, *cases = sys.argv[1:]
    on_mesh, alone = image_run.run_mesh, {}
    for case in cases:
        kind, mesh, rules = case.split(":")
        config = config_of(kind, Path(directory), trained)
        if kind not in alone:
            image_run.run_mesh = lambda config: make_mesh(MeshShape(), jax.devices()[:1])
            run = dataclasses.replace(config, directory=f"{directory}/{kind}-alone")
            alone[kind] = finished(run)
            image_run.run_mesh = on_mesh
        run = dataclasses.replace(config, directory=f"{directory}/{case}", mesh=mesh, rules=rules)
        found = finished(run)
        # In float32, leaves whose gradient nearly cancels differ by more, as in `equality`.
        measure = distance if trained == "heads" else whole_distance
        distances = {name: measure(found[name], one) for name, one in alone[kind].items()}
        print(json.dumps({"case": case, "steps": len(found["train"]), **distances}))


if __name__ == "__main__":
    main()
