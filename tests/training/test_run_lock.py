"""One run at a time in a directory."""

import pytest

from florence_jax.runtime.directory_lock import DirectoryInUseError, directory_lock
from florence_jax.training import loop
from florence_jax.training.loop import Outcome
from tests.training.runs import a_config


def test_a_second_trainer_is_refused_before_it_touches_anything(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    with directory_lock(directory):
        before = sorted(directory.iterdir())
        with pytest.raises(DirectoryInUseError, match=r"another process is writing to .*/run"):
            loop.train(a_config(directory))
        assert sorted(directory.iterdir()) == before


def test_a_run_holds_the_lock_to_its_end_and_frees_it(tmp_path, monkeypatch):
    held = []

    def run(config, directory, profile_steps, began):
        with pytest.raises(DirectoryInUseError), directory_lock(directory):
            pass
        held.append(config)
        return Outcome.DONE

    monkeypatch.setattr(loop, "_train", run)
    loop.train(a_config(tmp_path / "run"))
    assert len(held) == 1
    with directory_lock(tmp_path / "run"):
        pass
