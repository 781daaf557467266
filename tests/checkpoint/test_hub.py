"""Where a checkpoint comes from: a directory, or a hub id of which only data is downloaded."""

import fnmatch

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from florence_jax.checkpoint import CheckpointError, resolve

REPOSITORY = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "preprocessor_config.json",
    "modeling_florence2.py",
    "configuration_florence2.py",
    "README.md",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "pytorch_model.bin",
    "optimizer.pt",
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that 'downloads' the files of REPOSITORY; gives the list of calls."""
    calls = []

    def snapshot_download(repository, *, revision, allow_patterns):
        wanted = [
            name
            for name in hub_files
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
        ]
        for name in wanted:
            (tmp_path / name).touch()
        calls.append((repository, revision, wanted))
        return str(tmp_path)

    hub_files = list(REPOSITORY)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls, hub_files


def test_a_directory_is_itself(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="revisions exist only for Hugging Face ids"):
        resolve(tmp_path, revision="main")


def test_a_file_or_nothing_is_explained(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file; pass the directory that holds it"):
        resolve(file)
    for missing in (tmp_path / "no", "no-slash", "a/b/c", "../up", "/absolute/no", "-/x"):
        with pytest.raises(CheckpointError, match="neither an existing directory nor a Hugging"):
            resolve(missing)


def test_only_data_is_downloaded_and_safetensors_suffice(hub, tmp_path):
    calls, _ = hub
    assert resolve("microsoft/Florence-2-base", revision="abc") == tmp_path
    ((repository, revision, wanted),) = calls
    assert (repository, revision) == ("microsoft/Florence-2-base", "abc")
    assert "model.safetensors" in wanted
    assert not [name for name in wanted if name.endswith((".py", ".bin", ".pt", ".md"))]


def test_bin_is_downloaded_only_where_there_are_no_safetensors(hub):
    calls, files = hub
    files[:] = [name for name in files if not name.endswith(".safetensors")]
    resolve("microsoft/Florence-2-base")
    assert [("pytorch_model.bin" in wanted) for _, _, wanted in calls] == [False, True]
    assert not [name for _, _, wanted in calls for name in wanted if name.endswith(".py")]


def test_offline_says_the_id_and_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError) as caught:
        resolve("microsoft/Florence-2-base", revision="main")
    message = str(caught.value)
    for part in ("microsoft/Florence-2-base", "'main'", "HF_HOME", "HF_HUB_OFFLINE", "directory"):
        assert part in message
