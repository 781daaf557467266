import dataclasses
import json
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from florence_jax.training.checkpointing.manager import Checkpoints, RestoreError, damage, digest
from florence_jax.training.settings import CheckpointConfig
from florence_jax.training.state import new_state
from tests.training.small import small_params

OPTIMIZER = optax.adam(1e-3)
CONFIG = CheckpointConfig(every=1, keep_last=2)


# Leaves of every rank. All of a model's, of which each costs Orbax as much, tell no more.
LEAVES = ("decoder/layers/0/fc", "shared/", "vision_tower/stages/0/embed", "projector/temporal")


def a_state(seed=0):
    flat = {path: leaf for path, leaf in small_params().items() if path.startswith(LEAVES)}
    flat = {path: leaf + seed for path, leaf in flat.items()}
    frozen = {"shared/embedding": jnp.asarray(flat.pop("shared/embedding"), jnp.bfloat16)}
    return new_state(flat, frozen, OPTIMIZER, with_ema=True)


def abstract(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("relative", [False, True])
def test_a_state_comes_back_to_the_bit(tmp_path, monkeypatch, relative):
    # Orbax takes no relative path, and `directory=runs/mine` is one.
    monkeypatch.chdir(tmp_path)
    directory = "runs/mine" if relative else tmp_path / "runs" / "mine"
    with Checkpoints(directory, CONFIG) as checkpoints:
        assert checkpoints.restore(abstract(a_state())) is None
        checkpoints.save(7, a_state(), {"epoch": 3})
        checkpoints.wait()
        state, meta = checkpoints.restore(abstract(a_state()))
    assert_same(state, a_state())
    assert meta == {"epoch": 3}


def test_saving_goes_on_while_the_state_is_donated(tmp_path):
    @jax.jit
    def change(state):
        return jax.tree.map(lambda leaf: leaf + 1, state)

    donated = jax.jit(change, donate_argnums=0)
    state = a_state()
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(20):
            state = donated(state)
        checkpoints.wait()
        restored, _ = checkpoints.restore(abstract(a_state()))
    assert_same(restored, a_state())


def test_it_keeps_the_last_the_best_and_every_so_many(tmp_path):
    config = CheckpointConfig(every=1, keep_last=2, keep_every=4)
    with Checkpoints(tmp_path, config) as checkpoints:
        for step in range(1, 10):
            checkpoints.save(step, {"x": jnp.ones(())}, {}, best=step == 3)
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4, 8, 9]


def test_what_a_kill_left_halfway_is_cleared_away(tmp_path):
    (tmp_path / "step_00000005.saving" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert checkpoints.steps() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["flip", "truncate", "delete", "add", "manifest"])
def test_damage_is_named_and_the_one_before_is_used(tmp_path, way):
    said = []
    with Checkpoints(tmp_path, CONFIG, report=said.append) as checkpoints:
        checkpoints.save(1, a_state(1), {})
        checkpoints.save(2, a_state(2), {})
        checkpoints.wait()
        path = checkpoints.path(2)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        victim = random.Random(way).choice([f for f in files if f.name != "manifest.json"])
        content = bytearray(victim.read_bytes())
        if way == "flip":
            content[len(content) // 2] ^= 4
            victim.write_bytes(content)
        elif way == "truncate":
            victim.write_bytes(content[:-1])
        elif way == "delete":
            victim.unlink()
        elif way == "add":
            victim = path / "state" / "surplus"
            victim.write_bytes(b"?")
        else:
            victim = path / "manifest.json"
            victim.write_text("{")
        assert str(victim.relative_to(path)) in damage(path)
        state, _ = checkpoints.restore(abstract(a_state()))
        assert "is damaged" in said[0]
        assert_same(state, a_state(1))


def test_what_the_disk_no_longer_gives_is_damage(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, CONFIG, report=lambda line: None) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(())}, {})
        checkpoints.save(2, {"x": jnp.zeros(())}, {})
        checkpoints.wait()
        victim = checkpoints.path(2) / "meta.json"

        def bad_sector(file):
            if file == victim:
                raise OSError(5, "Input/output error")
            return digest(file)

        monkeypatch.setattr("florence_jax.training.checkpointing.manager.digest", bad_sector)
        assert "meta.json cannot be read: [Errno 5]" in damage(checkpoints.path(2))
        assert checkpoints.restore(abstract({"x": jnp.ones(())}))[0] == {"x": 1.0}


@pytest.mark.parametrize(("step", "kept"), [(2, [2]), (3, [3])])
def test_a_damaged_one_is_written_again_and_takes_no_other_s_place(tmp_path, step, kept):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, a_state(1), {})
        checkpoints.save(3, a_state(3), {})
        checkpoints.wait()
        (checkpoints.path(3) / "meta.json").write_text("{ }")
    config = CheckpointConfig(every=1, keep_last=1)
    with Checkpoints(tmp_path, config, report=lambda line: None) as checkpoints:
        assert_same(checkpoints.restore(abstract(a_state()))[0], a_state(1))
        # Interrupted on the way back to step 3, or there again.
        checkpoints.save(step, a_state(step), {})
        checkpoints.wait()
        assert checkpoints.steps() == kept
        assert_same(checkpoints.restore(abstract(a_state()))[0], a_state(step))
        checkpoints.save(3, a_state(3), {})
        checkpoints.wait()
        assert_same(checkpoints.restore(abstract(a_state()))[0], a_state(3))


def test_when_all_are_damaged_nothing_is_guessed(tmp_path):
    with Checkpoints(tmp_path, CONFIG, report=lambda line: None) as checkpoints:
        checkpoints.save(1, a_state(), {})
        checkpoints.wait()
        (checkpoints.path(1) / "meta.json").write_text("{ }")
        with pytest.raises(RestoreError, match=r"every checkpoint .* is damaged"):
            checkpoints.restore(abstract(a_state()))


def test_another_dtype_shape_or_name_is_refused(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, a_state(), {})
        checkpoints.wait()
        wanted = abstract(a_state())
        path = "decoder/layers/0/fc1/kernel"
        leaf = wanted.trainable[path]
        for other, message in (
            (jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), "is float32.*expected bfloat16"),
            (jax.ShapeDtypeStruct((3,), leaf.dtype), r"expected float32\[3\]"),
        ):
            changed = dataclasses.replace(wanted, trainable=wanted.trainable | {path: other})
            with pytest.raises(RestoreError, match=message):
                checkpoints.restore(changed)
        fewer = {name: leaf for name, leaf in wanted.trainable.items() if name != path}
        with pytest.raises(RestoreError, match="belongs to another run"):
            checkpoints.restore(dataclasses.replace(wanted, trainable=fewer))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only directories")
def test_a_read_only_directory_is_reported_and_the_old_stay(tmp_path):
    said = []
    with Checkpoints(tmp_path, CONFIG, report=said.append) as checkpoints:
        checkpoints.save(1, a_state(), {})
        checkpoints.wait()
        tmp_path.chmod(0o500)
        checkpoints.save(2, a_state(), {})
        checkpoints.wait()
        tmp_path.chmod(0o700)
        assert checkpoints.failure is not None
        assert "step 2 could not be saved" in said[0]
        assert damage(checkpoints.path(1)) is None
        checkpoints.save(3, a_state(), {})
        checkpoints.wait()
        assert checkpoints.failure is None
        assert checkpoints.steps() == [1, 3]


def test_a_save_that_fails_is_reported_and_tried_again(tmp_path, monkeypatch):
    said = []
    with Checkpoints(tmp_path, CONFIG, report=said.append) as checkpoints:
        checkpoints.save(1, a_state(), {})
        checkpoints.wait()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", _full_disk)
            checkpoints.save(2, a_state(), {})
            checkpoints.wait()
        assert "No space left" in said[0]
        assert checkpoints.steps() == [1]
        checkpoints.save(2, a_state(), {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        assert json.loads((checkpoints.path(2) / "manifest.json").read_text())["files"]


def test_a_best_that_cannot_be_saved_does_not_cost_the_one_before(tmp_path, monkeypatch):
    config = CheckpointConfig(every=1, keep_last=1)
    with Checkpoints(tmp_path, config, report=lambda line: None) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(())}, {}, best=True)
        checkpoints.wait()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", _full_disk)
            checkpoints.save(2, {"x": jnp.ones(())}, {}, best=True)
            checkpoints.wait()
        for step in (3, 4):
            checkpoints.save(step, {"x": jnp.ones(())}, {})
        checkpoints.wait()
        assert checkpoints.best == 1
        assert checkpoints.steps() == [1, 4]
        # Half of the one that failed takes no room.
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "step_00000001",
            "step_00000004",
        ]


def test_a_manifest_that_was_edited_is_damaged(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(())}, {})
        checkpoints.wait()
        manifest = checkpoints.path(1) / "manifest.json"
        manifest.write_text(manifest.read_text().replace("float32", "float16"))
        assert "does not have the sha256" in damage(checkpoints.path(1))


def _full_disk(descriptor):
    raise OSError(28, "No space left on device")
