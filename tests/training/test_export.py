"""A run's export, read by everything that reads checkpoints. No step is taken: nothing compiles."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import transformers

from convert.to_torch import main as to_torch
from florence_jax.adapters import read_adapter
from florence_jax.adapters.merge import merge_lora
from florence_jax.checkpoint import load_checkpoint
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.generation import GenerationConfig
from florence_jax.training.checkpointing.export import export_run, main
from florence_jax.training.checkpointing.manager import Checkpoints
from florence_jax.training.config import EvaluationConfig, ExportConfig
from florence_jax.training.lora import is_factor
from florence_jax.training.prepare import build_training
from florence_jax.training.pretrained import load_parameters, prepare_pretrained
from florence_jax.training.settings import CheckpointConfig, LoraConfig
from florence_jax.training.state import drop_frozen
from tests.training.runs import a_config


def prepared(directory, **changes):
    config = a_config(directory, **changes)
    start = prepare_pretrained(config, directory / "processor")
    training = build_training(config, start)
    return training, start, training.first_state(load_parameters(config, start))


def loaded(directory):
    return {path: np.asarray(leaf) for path, leaf in flatten(load_checkpoint(directory).params)}


def settings(directory):
    return GenerationConfig.from_hf(
        {}, json.loads((directory / "generation_config.json").read_text())
    )


def test_torch_reads_it_and_gives_it_back(tmp_path):
    training, start, state = prepared(tmp_path / "run", export=ExportConfig(dtype="bfloat16"))
    (directory,) = export_run(training, start, state)
    ours = loaded(directory)
    assert {leaf.dtype.name for leaf in ours.values()} == {"bfloat16"}
    assert to_torch([str(directory), str(tmp_path / "torch"), "--naming", "native"]) == 0
    back = loaded(tmp_path / "torch")
    assert back.keys() == ours.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, back[path], err_msg=path)


def test_adapters_are_merged_and_written_by_themselves(tmp_path):
    lora = LoraConfig(rank=2, alpha=6.0, rank_stabilised=True)
    training, start, state = prepared(tmp_path / "run", lora=lora)
    assert all(is_factor(path) for path in state.trainable)
    draw = np.random.default_rng(0)
    moved = {
        path: jax.numpy.asarray(draw.normal(size=leaf.shape), "float32")
        for path, leaf in state.ema.items()
    }
    state = dataclasses.replace(state, ema=moved)
    written, directory = export_run(training, start, state)
    assert written == tmp_path / "run" / "adapter"
    adapter = read_adapter(written)
    assert adapter.naming == "native"
    assert adapter.use_rslora
    assert {update.alpha for update in adapter.modules.values()} == {6.0}
    path = "encoder/layers/0/fc1/kernel"
    np.testing.assert_array_equal(adapter.modules[path].a, moved[f"{path}/a"])

    # Merging the adapter's files into the base gives the same checkpoint.
    base, _, plain = prepared(tmp_path / "base")
    (base_directory,) = export_run(base, start, plain)
    merge_lora(written, base_directory, tmp_path / "merged")
    elsewhere, _ = export_run(training, start, state, tmp_path / "run" / "again")
    assert elsewhere.name == "again.adapter"
    np.testing.assert_array_equal(read_adapter(elsewhere).modules[path].a, moved[f"{path}/a"])
    ours, theirs = loaded(directory), loaded(tmp_path / "merged")
    assert np.abs(ours[path] - loaded(base_directory)[path]).max() > 0.1
    for name, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[name], rtol=0, atol=1e-5, err_msg=name)


def test_adapters_are_not_rounded_as_the_frozen_base_is_kept(tmp_path):
    lora = LoraConfig(rank=2, alpha=4.0)
    model = dataclasses.replace(a_config(tmp_path).model, frozen_dtype="bfloat16")
    training, start, state = prepared(tmp_path / "run", lora=lora, model=model)
    draw = np.random.default_rng(0)
    moved = {
        path: jax.numpy.asarray(draw.normal(size=leaf.shape, scale=0.01), "float32")
        for path, leaf in state.ema.items()
    }
    _, directory = export_run(training, start, dataclasses.replace(state, ema=moved))
    path = "encoder/layers/0/fc1/kernel"
    kept = np.asarray(state.frozen[path])
    assert kept.dtype == "bfloat16"
    exact = kept.astype(np.float64) + 2.0 * (
        np.asarray(moved[f"{path}/a"], np.float64) @ np.asarray(moved[f"{path}/b"], np.float64)
    )
    np.testing.assert_allclose(loaded(directory)[path], exact, rtol=1e-6, atol=1e-9)


def test_on_request_by_step_and_by_best(tmp_path, capsys):
    import json

    from florence_jax.training.config_loader import to_tree

    run = tmp_path / "run"
    training, _, state = prepared(run)
    (run / "config.json").write_text(json.dumps(to_tree(training.config)))
    with Checkpoints(run / "frozen", CheckpointConfig()) as kept:
        kept.save(0, state.frozen, {})
    path = "decoder/layers/0/fc1/bias"
    with Checkpoints(run / "checkpoints", CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            ema = state.ema | {path: state.ema[path] + step}
            stepped = drop_frozen(dataclasses.replace(state, ema=ema))
            checkpoints.save(step, stepped, {"best": {"step": 1, "value": 0.1, "metric": "loss"}})
    expected = np.asarray(state.ema[path])
    for words, offset in (([], 2), (["--step", "1"], 1), (["--best"], 1)):
        out = tmp_path / f"out{len(words)}{offset}"
        assert main([str(run), "--out", str(out), *words]) == 0
        np.testing.assert_array_equal(loaded(out)[path], expected + offset)
    assert main([str(run), "--step", "7", "--out", str(tmp_path / "none")]) == 1
    assert "no checkpoint of step 7; there are [1, 2]" in capsys.readouterr().err


def test_the_bias_of_the_end_goes_with_the_weights(tmp_path):
    evaluation = EvaluationConfig(eos_bias=-1.5)
    training, start, state = prepared(tmp_path / "run", evaluation=evaluation)
    (directory,) = export_run(training, start, state)
    eos = start.config.text.eos_token_id
    assert transformers.GenerationConfig.from_pretrained(directory).sequence_bias == [[[eos], -1.5]]
    assert settings(directory).sequence_bias == (((eos,), -1.5),)

    # A run that was resumed with another bias, or that starts from such an export, has its own.
    setup = dataclasses.replace(
        training,
        config=dataclasses.replace(training.config, evaluation=EvaluationConfig(eos_bias=0.5)),
    )
    pretrained = dataclasses.replace(start, files=directory)
    (again,) = export_run(setup, pretrained, state, tmp_path / "again")
    assert settings(again).sequence_bias == (((eos,), 0.5),)


def test_an_export_starts_another_run(tmp_path):
    training, start, state = prepared(tmp_path / "run")
    (directory,) = export_run(training, start, state)
    config = a_config(tmp_path / "next")
    model = dataclasses.replace(
        config.model, start=str(directory), architecture=None, processor="", dropout=0.3
    )
    data = dataclasses.replace(config.data, image_size=(48, 48))
    config = dataclasses.replace(config, model=model, data=data)
    again = prepare_pretrained(config, tmp_path / "next" / "processor")
    assert again.config == start.config
    assert again.image.size == (48, 48)
    assert build_training(config, again).objective.model.config.text.dropout == 0.3
    params = load_parameters(config, again)
    np.testing.assert_array_equal(params["shared/embedding"], state.ema["shared/embedding"])


@pytest.mark.parametrize("words", [["nowhere"], ["nowhere", "--best"]])
def test_a_directory_without_a_run_is_named(words, capsys):
    assert main(words) == 1
    assert "nowhere" in capsys.readouterr().err
