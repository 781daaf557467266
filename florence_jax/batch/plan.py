"""What a run would do, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from florence_jax.batch.job import Source
from florence_jax.batch.row_files import RowFormat
from florence_jax.batch.run import blocks_of, default_workers
from florence_jax.batch.run_manifest import listing, read_manifest
from florence_jax.batch.shares import Share
from florence_jax.inference.requests import Query


def describe_plan(
    source: Source,
    directory: Path,
    block_size: int | None,
    row_format: RowFormat | None,
    workers: int | None,
    share: Share,
    queries: Sequence[Query],
) -> str:
    """Inputs, blocks, what is done already and what is this process's, as text.

    Raises:
        RunError: the inputs have equal ids, or the directory cannot be read as a run's.
    """
    before, inputs = read_manifest(directory), listing(source)
    blocks, kind = blocks_of(source, directory, block_size, row_format)
    done = {number for number, name in enumerate(blocks.names(kind)) if (directory / name).exists()}
    own = [block for block in range(share.index, len(blocks), share.count) if block not in done]
    tasks = ", ".join(query.prompt for query in queries) or "each row's own"
    lines = [
        f"{len(source)} images; tasks: {tasks}",
        f"{len(blocks)} blocks of {blocks.size} as {kind} in {directory}/, {len(done)} of them "
        "are there",
        f"process {share.index} of {share.count} begins with {len(own)} blocks, "
        f"{sum(len(blocks[block]) for block in own)} images",
        f"{default_workers() if workers is None else workers} worker processes read pictures",
    ]
    if before and before["inputs"]["ids_sha256"] != inputs["ids_sha256"]:
        lines.append(
            f"but {directory} is of a run over {before['inputs']['count']} other inputs: this "
            "command would be refused"
        )
    return "\n".join(lines)
