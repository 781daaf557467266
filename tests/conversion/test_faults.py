"""Damage and kills at random, with fixed seeds: every one is found, none leaves half a checkpoint.

pytest -m faults -s
"""

import collections
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from florence_jax.checkpoint import CheckpointError, load_checkpoint, plan_checkpoint
from florence_jax.conversion import from_torch
from florence_jax.runtime.atomic_dir import leftovers
from tests.checkpoint.generated import (
    TOKEN_TABLES,
    tiny_config,
    tiny_tensors,
    write_directory,
    write_safetensors,
)
from tests.checkpoint.test_save import content, settings

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
FAULTS = 1000
KILLS = 20
# Rows of the token table for the kills: enough that writing takes a good part of the run.
ROWS = 1 << 20


def test_every_flip_truncation_and_deletion_is_found_by_name(tmp_path):
    rng = random.Random(0)
    source = write_directory(tmp_path / "source", tiny_tensors(), tiny_config())
    (source / "tokenizer.json").write_text("{}" * 1000)
    (source / "preprocessor_config.json").write_text('{"size": {"height": 768, "width": 768}}')
    saved = tmp_path / "saved"
    from_torch(source, saved)
    files = content(saved)
    # Half of the damage goes where most bytes are, half to any file: the small ones matter too.
    sizes = [len(text) for text in files.values()]
    done: collections.Counter[str] = collections.Counter()
    found: collections.Counter[str] = collections.Counter()
    missed = []
    for number in range(FAULTS):
        weights = sizes if number % 2 else None
        name = rng.choices(list(files), weights)[0]
        path, before = saved / name, files[name]
        kind = rng.choice(["flip", "flip", "truncation", "deletion"])
        if kind == "flip":
            position, bit = rng.randrange(len(before)), rng.randrange(8)
            damaged = bytearray(before)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
        elif kind == "truncation":
            path.write_bytes(before[: rng.randrange(len(before))])
        else:
            path.unlink()
        done[kind] += 1
        try:
            load_checkpoint(saved)
        except CheckpointError as error:
            if name in str(error):
                found[kind] += 1
            else:
                missed.append((kind, name, str(error)))
        else:
            missed.append((kind, name, "loaded"))
        path.write_bytes(before)
    load_checkpoint(saved)
    print(f"\nfound by name, of those done: {dict(found)} of {dict(done)}, in {len(files)} files")
    assert missed == []
    assert found == done


def test_a_killed_conversion_leaves_the_old_or_the_new_checkpoint(tmp_path):
    rng = random.Random(1)
    source = tmp_path / "source"
    source.mkdir()
    shapes = {name: array.shape for name, array in tiny_tensors("native").items()}
    shapes[TOKEN_TABLES["native"][0]] = (ROWS, 24)
    write_safetensors(source / "model.safetensors", shapes, "float32")
    write_directory(tmp_path / "configs", {}, tiny_config("native", vocab_size=ROWS))
    (tmp_path / "configs" / "config.json").rename(source / "config.json")
    destination = tmp_path / "destination"
    versions = {}
    for dtype in ("float32", "bfloat16"):
        from_torch(source, tmp_path / dtype, dtype=dtype)
        versions[dtype] = settings(tmp_path / dtype)

    command = [sys.executable, "-m", "convert.from_torch", str(source), str(destination)]
    command += ["--overwrite", "--quiet", "--dtype"]
    started = time.monotonic()
    subprocess.run([*command, "float32"], cwd=ROOT, check=True)
    whole = time.monotonic() - started
    outcomes: collections.Counter[str] = collections.Counter()
    state = "float32"
    for number in range(KILLS):
        if number >= KILLS // 2:  # the second half starts with nothing at the destination
            for path in (destination, *leftovers(destination)):
                shutil.rmtree(path, ignore_errors=True)
            state = "absent"
        wanted = "bfloat16" if state != "bfloat16" else "float32"
        process = subprocess.Popen([*command, wanted], cwd=ROOT)
        if number % 4:
            # Most of a run is starting Python: three of four are killed after it began to write.
            while process.poll() is None and not leftovers_or_open(destination):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.4 * whole))
        else:
            time.sleep(rng.uniform(0, whole))
        process.kill()
        process.wait()
        found = version_of(destination, versions)
        assert found in (state, wanted), f"kill {number}: {found}, was {state}"
        if found == wanted:
            outcomes["new"] += 1
        else:
            outcomes["still absent" if state == "absent" else "still old"] += 1
        outcomes["left something behind"] += bool(leftovers(destination))
        state = found
    print(f"\n{KILLS} kills: {dict(outcomes)}")
    assert outcomes["still old"] > 0
    assert outcomes["still absent"] > 0
    subprocess.run([*command, "float32"], cwd=ROOT, check=True)
    assert version_of(destination, versions) == "float32"
    assert leftovers(destination) == []
    assert not leftovers_or_open(destination)


def leftovers_or_open(destination):
    return list(destination.parent.glob(f".{destination.name}.*"))


def version_of(destination, versions):
    """Which complete version is there: a dtype, "absent", or "half" for none of them."""
    if not destination.exists():
        return "absent"
    try:
        (found,) = plan_checkpoint(destination, verify=True).report.stored_dtypes
    except CheckpointError:
        return "half"
    return found if settings(destination) == versions[found] else "half"
