"""What a run would do, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from florence_jax.batch.job import Source
from florence_jax.batch.manifest import make_manifest, manifest_differences, read_manifest
from florence_jax.batch.output_files import RowFormat
from florence_jax.batch.process_share import Share
from florence_jax.batch.run import default_workers, plan_shards
from florence_jax.batch.run_inputs import settle_inputs


def describe_plan(
    source: Source,
    directory: Path,
    *,
    block_size: int | None,
    default_size: Callable[[], int] | None = None,
    row_format: RowFormat | None,
    workers: int | None,
    share: Share,
    extend: bool = False,
) -> str:
    """Blocks, what is done already and what is this process's, as text.

    Raises:
        RunError: the inputs have equal ids or are not those of the run, or the directory cannot be
            read as a run's.
    """
    before = read_manifest(directory)
    inputs = settle_inputs(directory, source, extend=extend)
    blocks, kind = plan_shards(inputs, directory, block_size, row_format, default_size)
    done = set(blocks.finished(directory, kind))
    own = [block for block in range(share.index, len(blocks), share.count) if block not in done]
    lines = [
        f"{len(blocks)} blocks of {blocks.size} as {kind} in {directory}/, {len(done)} of them "
        "are there",
        f"process {share.index} of {share.count} begins with {len(own)} blocks, "
        f"{sum(len(blocks[block]) for block in own)} images",
        f"{default_workers() if workers is None else workers} worker processes read pictures",
    ]
    if before:
        manifest = make_manifest(
            inputs.record, before["job"], block_size=blocks.size, kind=kind, ends=inputs.ends
        )
        lines += [
            f"refused, for {directory} is of another run: {difference}"
            for difference in manifest_differences(before, manifest, of_inputs=not inputs.number)
        ]
    return "\n".join(lines)
