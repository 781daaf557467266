"""`resolve_model`: what may stand where a model is expected, and the errors for what may not."""

import json
import shutil

import numpy as np
import pytest

import florence_jax as fj
from convert.inspect import inspect
from florence_jax.adapters import resolve_model
from florence_jax.adapters.merge import merge_lora
from florence_jax.checkpoint import (
    CheckpointError,
    load_checkpoint,
    resolve,
    save_checkpoint,
    torch_tensors,
)
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.config import tiny
from florence_jax.conversion import to_torch
from florence_jax.demo import SHAPES
from florence_jax.model import random_params_with_spread_logits
from florence_jax.processing import demo_tokenizer
from tests.checkpoint.generated import write_directory


@pytest.fixture
def base(tmp_path):
    """A small checkpoint in the native naming."""
    config, directory = tiny(), tmp_path / "base"
    params = random_params_with_spread_logits(config, 0)
    write_directory(directory, dict(torch_tensors(params, "native")), config.to_hf("native"))
    demo_tokenizer().save(directory)
    return directory


@pytest.fixture
def adapter(tmp_path, base, monkeypatch):
    """A PEFT adapter of `base` that names it, and its merged parameters."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from convert.verify.reference import native_model
    from tests.adapters import peft_adapters as peft_side

    params = load_checkpoint(base, dtype="float32").params
    wrapped = peft_side.wrap(native_model(tiny(), params), target_modules=["q_proj", "fc1"], r=2)
    directory = peft_side.save(wrapped, tmp_path / "adapter")
    name_base(directory, str(base))
    return directory


def name_base(adapter, base, **fields):
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": base, **fields}
    file.write_text(json.dumps(config))


def test_shapes_is_the_bundled_model_everywhere(tmp_path, monkeypatch):
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("shapes") == SHAPES
    assert resolve("./shapes").resolve() == tmp_path / "shapes"
    assert fj.load("shapes")[0].config.text.vocab_size == 1630
    assert load_checkpoint("shapes").config.text.vocab_size == 1630
    assert inspect("shapes")["kind"] == "checkpoint"
    to_torch("shapes", tmp_path / "out", naming="native")
    assert load_checkpoint(tmp_path / "out").config == load_checkpoint("shapes").config
    with pytest.raises(CheckpointError, match="revisions exist only"):
        resolve("shapes", revision="main")


def test_the_trainer_starts_from_shapes(tmp_path):
    from florence_jax.training.config import ModelConfig
    from florence_jax.training.pretrained import load_parameters, prepare_pretrained
    from tests.training.runs import a_config

    config = a_config(tmp_path / "run", model=ModelConfig(start="shapes"))
    start = prepare_pretrained(config, tmp_path / "files")
    assert start.config.text.vocab_size == 1630
    assert len(load_parameters(config, start)) == len(dict(flatten(fj.load("shapes")[1])))


def test_a_run_is_its_export(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step_00000010" / "state").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no export yet.*python -m train\.export .*run"):
        resolve(run)
    (run / "processor").mkdir()
    assert resolve(run, weights=False) == run / "processor"
    step = run / "checkpoints" / "step_00000010"
    with pytest.raises(CheckpointError, match=r"train\.export .*run --step 10 --out DIR"):
        resolve(step)
    config = tiny()
    save_checkpoint(run / "export", config, random_params_with_spread_logits(config, 0))
    assert resolve(run) == run / "export"
    assert load_checkpoint(run).config == config


def test_an_adapter_is_its_base_with_it_merged(tmp_path, base, adapter):
    merge_lora(adapter, base, tmp_path / "merged")
    expected = dict(flatten(load_checkpoint(tmp_path / "merged").params))
    found = load_checkpoint(resolve_model(adapter))
    assert found.config == load_checkpoint(base).config
    for path, leaf in flatten(found.params):
        assert np.array_equal(np.asarray(leaf), np.asarray(expected[path])), path
    plain = dict(flatten(load_checkpoint(base).params))
    assert any(not np.array_equal(expected[path], plain[path]) for path in plain)
    pipe = fj.Florence2Pipeline.from_pretrained(adapter)
    assert pipe.tokenizer.sha256() == demo_tokenizer().sha256()
    assert resolve_model(adapter, weights=False) == base
    to_torch(adapter, tmp_path / "torch", naming="original")
    assert load_checkpoint(tmp_path / "torch").config.text == found.config.text


def test_a_checkpoint_and_an_adapter_are_given_apart_too(base, adapter):
    assert resolve_model(base, adapter=adapter) == resolve_model(adapter)
    assert resolve_model(base, adapter=adapter, weights=False) == base
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        resolve_model(adapter, adapter=adapter)
    with pytest.raises(CheckpointError, match="is a PEFT adapter: load it with"):
        load_checkpoint(adapter)


def test_an_adapter_is_merged_once_and_again_when_it_changes(base, adapter):
    first = resolve_model(adapter)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(adapter) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    name_base(adapter, str(base), lora_alpha=2)
    assert resolve_model(adapter) != first


def test_an_adapters_base_may_be_shapes_or_beside_it_and_must_be_one(adapter, base, tmp_path):
    shutil.copytree(base, adapter / "its-base")
    name_base(adapter, "its-base")
    resolve_model(adapter)
    name_base(adapter, None)
    with pytest.raises(CheckpointError, match="names no base_model_name_or_path"):
        resolve_model(adapter)
    name_base(adapter, str(adapter))
    with pytest.raises(CheckpointError, match="is an adapter too"):
        resolve_model(adapter)
    name_base(adapter, str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"base model of this adapter cannot be had .*gone"):
        resolve_model(adapter)
    name_base(adapter, "shapes")
    with pytest.raises(CheckpointError, match="cannot be merged into this model"):
        resolve_model(adapter)


def test_exported_programs_are_no_checkpoint(tmp_path):
    (tmp_path / "encode.stablehlo").touch()
    with pytest.raises(CheckpointError, match=r"load them with florence_jax\.load_exported"):
        fj.Florence2Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("shape", "shapes"),
        ("Shapes", "shapes"),
        ("Florence-2-base", "microsoft/Florence-2-base"),
        ("florence-2-large-ft", "microsoft/Florence-2-large-ft"),
        ("my-fine-tun", "my-fine-tune"),
        ("./my-fine-tunes", "my-fine-tune"),
    ],
)
def test_an_unknown_name_says_what_is_accepted_and_meant(tmp_path, monkeypatch, name, meant):
    (tmp_path / "my-fine-tune").mkdir()
    monkeypatch.chdir(tmp_path)
    for load in (fj.load, fj.Florence2Pipeline.from_pretrained, fj.Processor.from_pretrained):
        with pytest.raises(CheckpointError, match=f"did you mean '{meant}'") as caught:
            load(name)
        assert "a PEFT adapter's" in str(caught.value)
