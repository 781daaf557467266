"""1,000 damaged checkpoints of a run: each is found, and the one before is restored to the bit.

pytest -m faults -s tests/training/test_damage.py
"""

import collections
import hashlib
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from florence_jax.training.checkpointing.manager import Checkpoints, named_leaves
from florence_jax.training.settings import CheckpointConfig
from florence_jax.training.state import new_state
from tests.training.small import small_params

pytestmark = pytest.mark.faults

FAULTS = 1000


def test_every_damage_is_found_and_the_one_before_is_restored(tmp_path):
    begun = time.monotonic()
    rng = random.Random(0)
    said: list[str] = []
    with Checkpoints(tmp_path, CheckpointConfig(), report=said.append) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, a_state(step), {"step": step})
        checkpoints.wait()
        abstract = abstract_of(a_state(1))
        expected = {step: state_digest(a_state(step)) for step in (1, 2)}
        folder = checkpoints.path(2)
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        # Half of the damage goes where most bytes are, half to any file: the small ones matter too.
        sizes = [len(content) for content in files.values()]
        done: collections.Counter[str] = collections.Counter()
        for number in range(FAULTS):
            name = rng.choices(list(files), sizes if number % 2 else None)[0]
            kind = rng.choice(["flip", "flip", "truncation", "deletion"])
            damage_file(folder / name, files[name], kind, rng)
            state, meta = checkpoints.restore(abstract)
            assert meta == {"step": 1}, (kind, name, meta)
            assert state_digest(state) == expected[1]
            assert name in said[-1], (kind, name, said[-1])
            assert len(said) == number + 1
            (folder / name).write_bytes(files[name])
            done[kind] += 1
        state, meta = checkpoints.restore(abstract)
        assert (meta, state_digest(state)) == ({"step": 2}, expected[2])
    minutes = (time.monotonic() - begun) / 60
    print(f"\n{done.total()} found, named and fallen back from, {minutes:.0f} min: {dict(done)}")


def damage_file(path, content, kind, rng):
    if kind == "flip":
        position, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
    elif kind == "truncation":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        path.unlink()


def a_state(seed):
    # A few leaves of every kind that a state has: what is damaged is files, not the model.
    flat = {path: leaf + seed for path, leaf in list(small_params().items())[:4]}
    frozen = {"shared/embedding": jnp.full((64, 16), seed, jnp.bfloat16)}
    return new_state(flat, frozen, optax.adam(1e-3), with_ema=True)


def abstract_of(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def state_digest(state):
    digest = hashlib.sha256()
    for name, leaf in named_leaves(state).items():
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
