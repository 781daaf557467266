"""Where compiled programs are kept, and whose settings are left alone."""

import os
import stat
import subprocess
import sys
import warnings

import jax
import pytest

from florence_jax.runtime.compilation_cache import _writable, use_compilation_cache


@pytest.fixture(autouse=True)
def untouched_jax(monkeypatch):
    """jax as a new process finds it, and afterwards as it was."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    for name in (
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "FLORENCE_JAX_COMPILATION_CACHE",
        "XDG_CACHE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    _writable.cache_clear()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    _writable.cache_clear()


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache/florence-jax/xla"
    assert use_compilation_cache() == expected
    assert jax.config.jax_compilation_cache_dir == str(expected)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.2
    assert stat.S_IMODE(expected.stat().st_mode) == 0o700
    assert list(expected.iterdir()) == []


def test_places_of_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert use_compilation_cache() == tmp_path / "xdg/florence-jax/xla"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("FLORENCE_JAX_COMPILATION_CACHE", str(tmp_path / "mine"))
    assert use_compilation_cache() == tmp_path / "mine"


def test_a_relative_xdg_directory_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert use_compilation_cache() == tmp_path / ".cache/florence-jax/xla"


def test_off(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLORENCE_JAX_COMPILATION_CACHE", "off")
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["directory", "environment", "empty environment", "disabled"])
def test_jaxs_own_settings_win(monkeypatch, tmp_path, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    if kind == "directory":
        jax.config.update("jax_compilation_cache_dir", "/somewhere")
    elif kind == "disabled":
        jax.config.update("jax_enable_compilation_cache", False)
    else:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "" if "empty" in kind else "/somewhere")
    before = jax.config.jax_compilation_cache_dir
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == before
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    assert list(tmp_path.iterdir()) == []


def test_the_users_threshold_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    assert use_compilation_cache() is not None
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0


def test_an_unwritable_place_is_said_once_and_stops_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FLORENCE_JAX_COMPILATION_CACHE", str(tmp_path / "file/xla"))
    with pytest.warns(UserWarning, match="compiled programs are not kept.*'off'"):
        assert use_compilation_cache() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_only_a_pipeline_turns_it_on_and_the_next_process_profits(tmp_path):
    code = """
import jax, jax.monitoring
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event == "/jax/compilation_cache/cache_hits" else None
)
import florence_jax as fj
from tests.random_pipeline import random_pipeline
assert callable(fj.generate) and callable(fj.load) and fj.Florence2Pipeline
assert jax.config.jax_compilation_cache_dir is None
pipe = random_pipeline()
assert jax.config.jax_compilation_cache_dir is not None
hits.clear()
pipe.warmup(
    image_sizes=[(64, 64)], prompts=["<OD>"], batch_sizes=(1,), num_beams=1, max_new_tokens=4,
    progress=False,
)
print(len(hits))
"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "FLORENCE_JAX_"))
    }
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        hits.append(int(done.stdout))
    assert hits[0] == 0
    assert hits[1] >= 2, "the encoder and the generation program"
    assert list((tmp_path / "florence-jax/xla").iterdir())
