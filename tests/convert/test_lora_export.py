"""Our factors become adapters that PEFT loads, and adapters come back byte for byte."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.export_lora import export_lora, main
from convert.verify.reference import native_model
from florence_jax.adapters.adapter import Adapter, merge
from florence_jax.adapters.file import (
    FORMAT,
    adapter_from_factors,
    read_adapter,
    read_lora,
    write_lora,
)
from florence_jax.checkpoint import CheckpointError, torch_tensors
from florence_jax.checkpoint.param_tree import flatten, insert
from tests.convert import lora_adapters as peft_side
from tests.convert.lora_adapters import NATIVE_TARGETS, ORIGINAL_TARGETS

TOLERANCE = 1e-5  # of logits up to 15, where one rounding of one weight makes 5e-6


def random_factors(params, rng, *, head=False):
    """Nested factors for every second linear layer, with ranks from 1 to 4."""
    tree = {}
    linear = [
        (path, leaf.shape)
        for path, leaf in flatten(params)
        if path.endswith("/kernel") and leaf.ndim == 2
    ]
    if head:
        linear.append(("lm_head/embedding", params["shared"]["embedding"].shape[::-1]))
    for number, (path, (inputs, outputs)) in enumerate(linear[::2]):
        rank = 1 + number % 4
        insert(tree, f"{path}/a", 0.1 * rng.standard_normal((inputs, rank), np.float32))
        insert(tree, f"{path}/b", 0.1 * rng.standard_normal((rank, outputs), np.float32))
    return tree


@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_loads_our_factors_and_gives_our_logits(tmp_path, use_rslora):
    config, params = peft_side.base_model()
    tree = random_factors(params, np.random.default_rng(0))
    path = "encoder/layers/0/fc1/kernel"
    assert path in {name.rpartition("/")[0] for name, _ in flatten(tree)}
    adapter = adapter_from_factors(tree, 3.5, use_rslora=use_rslora, alphas={path: 9})
    write_lora(tmp_path / "lora.safetensors", adapter)
    export_lora(tmp_path / "lora.safetensors", tmp_path / "peft", "native", base_model="org/name")
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "org/name"

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
    adapter = adapter_from_factors(tree, 4)
    write_lora(tmp_path / "lora.safetensors", adapter)
    export_lora(tmp_path / "lora.safetensors", tmp_path / "peft", "native")
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
    adapter = adapter_from_factors(tree, 6)
    write_lora(tmp_path / "lora.safetensors", adapter)
    export_lora(tmp_path / "lora.safetensors", tmp_path / "peft", "original")
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
    export_lora(directory, tmp_path / "ours.safetensors", "ours")
    export_lora(tmp_path / "ours.safetensors", tmp_path / "back", naming)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (directory / name).read_bytes(), name
    stored = {array.dtype for array in load_file(tmp_path / "ours.safetensors").values()}
    assert stored == {np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)}


@pytest.mark.parametrize("case", ["lm_head", "patterns", "all biases", "bias of B"])
def test_an_adapter_in_the_other_naming_is_the_same_adapter(tmp_path, case):
    config, params, _, _, directory = peft_side.adapter_of(tmp_path, **ROUND_TRIPS[case][1])
    expected = dict(flatten(merge(params, config, read_adapter(directory)).params))
    export_lora(directory, tmp_path / "original", "original")
    renamed = read_adapter(tmp_path / "original")
    assert renamed.naming == "original"
    for path, leaf in flatten(merge(params, config, renamed).params):
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    # And back, PEFT gets what it wrote: the same tensors, though under whole module names.
    export_lora(tmp_path / "original", tmp_path / "native", "native")
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
    export_lora(directory, tmp_path / "original", "original")
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
        export_lora(directory, tmp_path / "original", "original")
    assert not (tmp_path / "original").exists()


def test_an_existing_destination_is_kept(tmp_path):
    *_, directory = peft_side.adapter_of(tmp_path, target_modules=["fc1"])
    for name, to in (("file", "ours"), ("folder", "native")):
        destination = tmp_path / name
        export_lora(directory, destination, to)
        with pytest.raises(CheckpointError, match="exists already"):
            export_lora(directory, destination, to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "file", "folder"]


FACTORS = {
    "encoder/layers/0/fc1/kernel/a": np.ones((24, 2), np.float32),
    "encoder/layers/0/fc1/kernel/b": np.ones((2, 48), np.float32),
}


def test_the_file_that_a_trainer_writes(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(FACTORS, path, metadata={"format": FORMAT, "alpha": "16"})
    adapter = read_lora(path)
    assert adapter.scale("encoder/layers/0/fc1/kernel") == 8
    assert adapter.naming is None
    rslora = dataclasses.replace(adapter, use_rslora=True)
    write_lora(path, rslora)
    assert read_lora(path).scale("encoder/layers/0/fc1/kernel") == 16 / 2**0.5
    assert [entry.name for entry in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"encoder/layers/0/fc1/kernel/b": None}, "encoder/layers/0/fc1/kernel/b"),
        ({"encoder/layers/0/fc1/kernel/b": np.ones((3, 48))}, "expected [in, r] and [r, out]"),
        ({"encoder/layers/0/fc1/kernel/c": np.ones(1)}, "not a Florence-2's"),
        ({"encoder/fc1/kernel/a": np.ones((24, 2))}, "encoder/fc1/kernel/a"),
        ({"encoder/positions/a": np.ones((24, 2))}, "not linear"),
        ({"shared/embedding/a": np.ones((24, 2))}, "not linear"),
    ],
)
def test_factors_that_do_not_fit_are_named(changes, part):
    factors = {name: a for name, a in (FACTORS | changes).items() if a is not None}
    with pytest.raises(CheckpointError) as caught:
        adapter_from_factors(factors, 1)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"format": FORMAT},
        {"format": FORMAT, "alpha": "sixteen"},
        {"format": FORMAT, "alpha": "true"},
        {"format": FORMAT, "alpha": "1", "alphas": "[]"},
        {"format": FORMAT, "alpha": "1", "alphas": '{"a": "b"}'},
        {"format": FORMAT, "alpha": "1", "peft_config": "{"},
    ],
)
def test_a_file_with_other_metadata_is_refused(tmp_path, metadata):
    save_file(FACTORS, tmp_path / "file", metadata=metadata)
    with pytest.raises(CheckpointError):
        read_lora(tmp_path / "file")


def test_no_factors_at_all():
    with pytest.raises(CheckpointError, match="there are none"):
        adapter_from_factors({}, 1)
    assert Adapter(modules={}).summary() == []


def test_the_command(tmp_path, capsys):
    save_file(FACTORS, tmp_path / "lora", metadata={"format": FORMAT, "alpha": "16"})
    assert main([str(tmp_path / "lora"), str(tmp_path / "peft"), "--to", "native"]) == 0
    said = capsys.readouterr().out
    assert "encoder/layers/*/fc1/kernel: 1 with rank 2, scale 8" in said
    assert main([str(tmp_path / "lora"), str(tmp_path / "peft"), "--to", "native"]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "examples:" in capsys.readouterr().out
