"""Shard the inputs of `generate` over a mesh, and unpad its outputs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from florence_jax.generation.inputs import GenerateInputs
from florence_jax.generation.output import GenerateOutput
from florence_jax.sharding.batch import all_gather_to_hosts, divide_batch, pad_rows, padded_rows
from florence_jax.sharding.mesh import batch_sharding


def shard_inputs(prepared: GenerateInputs, mesh: Mesh) -> GenerateInputs:
    """Divide a batch over the mesh, with rows added until it divides evenly.

    Added rows repeat the first and end with it. Every process passes the same batch.
    """
    rows = padded_rows(mesh, len(prepared.input_ids))

    def divide(array: Any) -> Any:
        if isinstance(array, jax.ShapeDtypeStruct):
            shape = (rows, *array.shape[1:])
            return jax.ShapeDtypeStruct(shape, array.dtype, sharding=batch_sharding(mesh))
        return divide_batch(mesh, array)

    constraint = prepared.values.constraint
    if constraint is not None:
        constraint = constraint._replace(start=pad_rows(np.asarray(constraint.start), rows))
    return prepared._replace(
        image=divide(prepared.image),
        input_ids=divide(prepared.input_ids),
        attention_mask=divide(prepared.attention_mask),
        values=prepared.values._replace(constraint=constraint),
    )


def unpad_outputs(output: GenerateOutput, rows: int, mesh: Mesh) -> GenerateOutput:
    """Drop the outputs of added rows; with several processes, every process gets all rows."""
    if mesh.is_multi_process:
        output = all_gather_to_hosts(mesh, output)
    kept = len(output.lengths) * rows // padded_rows(mesh, rows)
    if kept == len(output.lengths):
        return output
    return jax.tree.map(lambda leaf: leaf[:kept], output)
