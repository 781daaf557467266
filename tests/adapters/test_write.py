"""PEFT loads the factors that were trained here; adapters come back byte for byte."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.export_lora import main as export_lora
from convert.verify.reference import native_model
from florence_jax.adapters import Adapter, merge, read_adapter, write_adapter
from florence_jax.checkpoint import CheckpointError, torch_tensors
from florence_jax.checkpoint.param_tree import flatten, unflatten
from tests.adapters import peft_adapters as peft_side
from tests.adapters.peft_adapters import NATIVE_TARGETS, ORIGINAL_TARGETS

TOLERANCE = 1e-5  # of logits up to 15, where one rounding of one weight makes 5e-6


def random_factors(params, rng, *, head=False):
    """Nested factors for every second linear layer, with ranks from 1 to 4."""
    factors = {}
    linear = [
        (path, leaf.shape)
        for path, leaf in flatten(params)
        if path.endswith("/kernel") and leaf.ndim == 2
    ]
    if head:
        linear.append(("lm_head/embedding", params["shared"]["embedding"].shape[::-1]))
    for number, (path, (inputs, outputs)) in enumerate(linear[::2]):
        rank = 1 + number % 4
        factors[f"{path}/a"] = 0.1 * rng.standard_normal((inputs, rank), np.float32)
        factors[f"{path}/b"] = 0.1 * rng.standard_normal((rank, outputs), np.float32)
    return unflatten(factors)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_loads_our_factors_and_gives_our_logits(tmp_path, use_rslora):
    config, params = peft_side.base_model()
    tree = random_factors(params, np.random.default_rng(0))
    path = "encoder/layers/0/fc1/kernel"
    assert path in {name.rpartition("/")[0] for name, _ in flatten(tree)}
    adapter = peft_side.adapter_of_factors(tree, 3.5, {path: 9}, use_rslora=use_rslora)
    write_adapter(tmp_path / "peft", adapter, "native", base_model="org/name", revision="v1")
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/name", "v1")

    inputs = peft_side.example(config)
    merged = merge(params, config, adapter)
    ours = peft_side.our_logits(merged.config, merged.params, inputs)
    assert np.abs(ours - peft_side.our_logits(config, params, inputs)).max() > 0.1
    model = native_model(config, params)
    peft_side.load(model, tmp_path / "peft")  # puts its layers into the model
    theirs = peft_side.torch_logits(model, inputs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_an_lm_head_trained_here_loads_in_peft(tmp_path):
    config, params = peft_side.base_model()
    tree = {"lm_head": {"embedding": {}}}
    rng = np.random.default_rng(0)
    tree["lm_head"]["embedding"]["a"] = 0.1 * rng.standard_normal((24, 2), np.float32)
    tree["lm_head"]["embedding"]["b"] = 0.1 * rng.standard_normal((2, 1285), np.float32)
    adapter = peft_side.adapter_of_factors(tree, 4)
    write_adapter(tmp_path / "peft", adapter, "native")
    merged = merge(params, config, adapter)
    inputs = peft_side.example(config)
    model = native_model(config, params)
    peft_side.load(model, tmp_path / "peft")
    np.testing.assert_allclose(
        peft_side.our_logits(merged.config, merged.params, inputs),
        peft_side.torch_logits(model, inputs),
        rtol=0,
        atol=TOLERANCE,
    )


def test_peft_loads_our_factors_into_the_original_names(tmp_path):
    config, params = peft_side.base_model()
    tree = random_factors(params, np.random.default_rng(1))
    tree.pop("projector", None)  # a bare parameter in the original
    adapter = peft_side.adapter_of_factors(tree, 6)
    write_adapter(tmp_path / "peft", adapter, "original")
    root = peft_side.in_original_naming(native_model(config, peft_side.copied(params)))
    state = peft_side.merged_by_peft(peft_side.load(root, tmp_path / "peft")).state_dict()
    expected = dict(torch_tensors(merge(params, config, adapter).params, "original"))
    changed = 0
    for name, tensor in state.items():
        if name in expected:
            np.testing.assert_allclose(tensor, expected[name], rtol=3e-7, atol=3e-7, err_msg=name)
            changed += name.endswith("fc1.weight")
    assert changed > 4


ROUND_TRIPS = {
    "native": ("native", {"target_modules": list(NATIVE_TARGETS), "r": 4}),
    "original": ("original", {"target_modules": list(ORIGINAL_TARGETS), "use_rslora": True}),
    "lm_head": ("native", {"target_modules": ["lm_head", "q_proj"]}),
    "patterns": (
        "native",
        {
            "target_modules": ["q_proj", "fc1"],
            "rank_pattern": {"fc1": 2},
            "alpha_pattern": {"encoder.layers.0.fc1": 5},
        },
    ),
    "all biases": ("native", {"target_modules": ["q_proj"], "bias": "all"}),
    "original biases": ("original", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "bias of B": ("native", {"target_modules": ["q_proj"], "lora_bias": True}),
    "whole modules": (
        "native",
        {"target_modules": ["fc2"], "modules_to_save": ["multi_modal_projector", "lm_head"]},
    ),
    "token tables": (
        "native",
        {"target_modules": ["fc2"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_an_adapter_comes_back_byte_for_byte(tmp_path, case, dtype):
    naming, settings = ROUND_TRIPS[case]
    *_, wrapped, directory = peft_side.adapter_of(tmp_path, naming, **settings)
    if dtype == "bfloat16":
        directory = peft_side.save(wrapped.to(peft_side.torch.bfloat16), tmp_path / "narrow")
    write_adapter(tmp_path / "back", read_adapter(directory), naming)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (directory / name).read_bytes(), name
    tensors = load_file(tmp_path / "back" / "adapter_model.safetensors")
    stored = {array.dtype for array in tensors.values()}
    assert stored == {np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)}


@pytest.mark.parametrize("case", ["lm_head", "patterns", "all biases", "bias of B"])
def test_an_adapter_in_the_other_naming_is_the_same_adapter(tmp_path, case):
    config, params, _, _, directory = peft_side.adapter_of(tmp_path, **ROUND_TRIPS[case][1])
    expected = dict(flatten(merge(params, config, read_adapter(directory)).params))
    write_adapter(tmp_path / "original", read_adapter(directory), "original")
    renamed = read_adapter(tmp_path / "original")
    assert renamed.naming == "original"
    for path, leaf in flatten(merge(params, config, renamed).params):
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    # And back, PEFT gets what it wrote: the same tensors, though under whole module names.
    write_adapter(tmp_path / "native", read_adapter(tmp_path / "original"), "native")
    tensors, back = (
        load_file(d / "adapter_model.safetensors") for d in (directory, tmp_path / "native")
    )
    assert tensors.keys() == back.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, back[name])
    loaded = peft_side.load(native_model(config, peft_side.copied(params)), tmp_path / "native")
    inputs = peft_side.example(config)
    merged = merge(params, config, renamed)
    np.testing.assert_allclose(
        peft_side.our_logits(merged.config, merged.params, inputs),
        peft_side.torch_logits(loaded.get_base_model(), inputs),
        rtol=0,
        atol=TOLERANCE,
    )


def test_whole_modules_keep_their_names_in_the_other_naming(tmp_path):
    *_, directory = peft_side.adapter_of(
        tmp_path, target_modules=["fc2"], modules_to_save=["layernorm_embedding", "conv1"]
    )
    write_adapter(tmp_path / "original", read_adapter(directory), "original")
    config = json.loads((tmp_path / "original" / "adapter_config.json").read_text())
    assert "vision_tower.blocks.0.0.spatial_block.conv1.fn.dw" in config["modules_to_save"]
    assert "language_model.model.encoder.layernorm_embedding" in config["modules_to_save"]
    found, expected = read_adapter(tmp_path / "original"), read_adapter(directory)
    assert found.replaced.keys() == expected.replaced.keys()
    for path, array in expected.replaced.items():
        np.testing.assert_array_equal(found.replaced[path], array)


def test_what_the_original_has_no_module_for_is_refused(tmp_path):
    *_, directory = peft_side.adapter_of(tmp_path, target_modules=["image_projection"])
    with pytest.raises(CheckpointError, match="projector/proj/kernel"):
        write_adapter(tmp_path / "original", read_adapter(directory), "original")
    assert not (tmp_path / "original").exists()


def test_an_existing_destination_is_kept_unless_it_is_an_adapter_to_overwrite(tmp_path):
    *_, directory = peft_side.adapter_of(tmp_path, target_modules=["fc1"])
    adapter, copy = read_adapter(directory), tmp_path / "copy"
    write_adapter(copy, adapter, "native")
    with pytest.raises(CheckpointError, match="exists already"):
        write_adapter(copy, adapter, "native")
    write_adapter(copy, adapter, "native", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "copy"]
    (copy / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        write_adapter(copy, adapter, "native", overwrite=True)


def test_an_adapter_without_updates_has_an_empty_summary():
    assert Adapter(modules={}).summary() == []


def test_the_program_writes_the_other_naming_and_back(tmp_path, capsys):
    _, params = peft_side.base_model()
    tree = random_factors({"encoder": params["encoder"]}, np.random.default_rng(0))
    first, other, back = tmp_path / "first", tmp_path / "other", tmp_path / "back"
    write_adapter(first, peft_side.adapter_of_factors(tree, 2), "native", base_model="org/name")
    assert export_lora([str(first), str(other), "--to", "original", "--base-model", "a/b"]) == 0
    assert "for the original naming" in capsys.readouterr().out
    assert (
        json.loads((other / "adapter_config.json").read_text())["base_model_name_or_path"] == "a/b"
    )
    assert export_lora([str(other), str(back), "--to", "native", "--base-model", "org/name"]) == 0
    tensors, returned = (load_file(one / "adapter_model.safetensors") for one in (first, back))
    assert tensors.keys() == returned.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(returned[name], tensor)
    assert export_lora([str(first), str(back), "--to", "native"]) == 2
    assert "exists already" in capsys.readouterr().err
