"""The embeddings of a run as one `.npy` file, by the sha256 of the images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from florence_jax.batch.job import Row
from florence_jax.batch.manifest import RunError, read_manifest, read_run
from florence_jax.runtime.atomic_file import atomic_open

VECTORS, DIGESTS = "embeddings.npy", "embeddings.sha256.txt"


def write_vectors(directory: Path) -> int:
    """Write the embeddings of a finished run of `EmbedJob` into its directory.

    An image that is there several times is there once in the file. The digests are written first,
    so that a directory with `embeddings.npy` has both.

    Returns:
        The number of embeddings.

    Raises:
        RunError: the directory holds no run of embeddings, or none of its images could be read.
    """
    manifest = read_manifest(directory)
    job = {} if manifest is None else manifest["job"]
    if job.get("kind") != "embed":
        raise RunError(f"{directory} holds no run of `florence-jax embed`")
    count, width = 0, 0
    with atomic_open(directory / DIGESTS) as digests:
        for row in _distinct(directory):
            digests.write(f"{row['sha256']}\n")
            count, width = count + 1, len(row["embedding"])
    if not count:
        raise RunError(f"no image of {directory} has an embedding: its rows tell why")
    dtype = np.dtype(job["vectors"])
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, width)}
    with atomic_open(directory / VECTORS, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for row in _distinct(directory):
            file.write(np.array(row["embedding"], dtype).tobytes())
    return count


def read_vectors(directory: str | Path) -> tuple[list[str], np.ndarray]:
    """What `florence-jax embed --format npy` wrote.

    Returns:
        (digests, vectors): the sha256 of each image's encoded bytes, in hexadecimal, and its
        embedding, float32[N, C] or float16[N, C], mapped into memory and read-only.

    Raises:
        FileNotFoundError: the run is not complete, or has no such files.
        ValueError: the two files are not of one run.
    """
    digests = (Path(directory) / DIGESTS).read_text(encoding="ascii").split()
    vectors = np.load(Path(directory) / VECTORS, mmap_mode="r")
    if len(digests) != len(vectors):
        raise ValueError(
            f"{directory} has {len(vectors)} embeddings and {len(digests)} digests: remove both "
            "files and run the same command again"
        )
    return digests, vectors


def _distinct(directory: Path) -> Iterator[Row]:
    """The first row of each image."""
    seen: set[bytes] = set()
    for row in read_run(directory):
        if "embedding" in row and (digest := bytes.fromhex(row["sha256"])) not in seen:
            seen.add(digest)
            yield row
