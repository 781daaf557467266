"""What a pipeline's answers depend on, as a run's manifest has it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

import florence_jax
from florence_jax.export.manifest import weights_sha256
from florence_jax.inference.base_pipeline import BasePipeline


def pipeline_fingerprint(pipeline: BasePipeline) -> dict[str, Any]:
    """Weights, tokenizer, image settings, conventions, mesh, and the software and device at work.

    The last ones because another jax, another kind of device or another division of the weights
    rounds otherwise: answers would still be right, and not the same.
    """
    params = pipeline.programs.params
    leaves = jax.tree.leaves(params)
    # Sums over divided parameters round otherwise too.
    mesh = getattr(getattr(pipeline, "model", None), "mesh", None)
    return ({} if mesh is None else {"mesh": dict(mesh.shape)}) | {
        "weights": {
            "sha256": weights_sha256(params),
            "dtypes": sorted({str(leaf.dtype) for leaf in leaves}),
        },
        "tokenizer": pipeline.tokenizer.sha256(),
        "image": dataclasses.asdict(pipeline.image_config),
        "compat": pipeline.compat or "florence_jax",
        "software": {"florence_jax": florence_jax.__version__, "jax": jax.__version__},
        "device": jax.local_devices()[0].device_kind,
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",  # pyright: ignore[reportAttributeAccessIssue]
    }
