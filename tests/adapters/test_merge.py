"""Merging gives the model that PEFT's adapter is, in both namings and with each setting."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from convert.verify.reference import native_model
from florence_jax.adapters import Adapter, LowRank, merge, read_adapter
from florence_jax.checkpoint import CheckpointError
from florence_jax.checkpoint.param_tree import flatten, unflatten
from florence_jax.checkpoint.pytorch.key_map import match_name
from tests.adapters import peft_adapters as peft_side
from tests.adapters.peft_adapters import NATIVE_TARGETS, ORIGINAL_TARGETS

# One rounding of one weight moves these logits (up to 15) by 5e-6 in PyTorch alone.
TOLERANCE = 1e-5


def assert_equals_peft(merged, peft_model, inputs):
    """Equal logits in one engine and across engines, and equal weights to their last bit or two."""
    expected = peft_side.torch_logits(peft_model, inputs)
    ours = native_model(merged.config, merged.params)
    np.testing.assert_allclose(
        peft_side.torch_logits(ours, inputs), expected, rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(
        peft_side.our_logits(merged.config, merged.params, inputs),
        expected,
        rtol=0,
        atol=TOLERANCE,
    )
    state = peft_model.state_dict()
    for name, tensor in ours.state_dict().items():
        np.testing.assert_allclose(
            tensor.numpy(), state[name].numpy(), rtol=3e-7, atol=3e-7, err_msg=name
        )


SETTINGS = {
    "native": ("native", {"target_modules": list(NATIVE_TARGETS), "r": 4, "lora_alpha": 8}),
    "original": ("original", {"target_modules": list(ORIGINAL_TARGETS), "r": 4, "lora_alpha": 8}),
    "one regular expression": (
        "native",
        {"target_modules": r".*decoder\.layers\.1\..*(q|v)_proj", "r": 3, "lora_alpha": 5},
    ),
    "patterns": (
        "original",
        {
            "target_modules": list(ORIGINAL_TARGETS),
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "rank_pattern": {
                "q_proj": 2,
                r"encoder\.layers\.[01]\.fc1": 6,
                "^vision_tower.*qkv": 1,
            },
            "alpha_pattern": {"fc2": 3, "decoder.layers.1.self_attn.q_proj": 1},
        },
    ),
    "trained biases": ("native", {"target_modules": ["q_proj", "fc2"], "bias": "all"}),
    "biases of targets": ("native", {"target_modules": ["qkv", "fc1"], "bias": "lora_only"}),
    "bias of B": ("native", {"target_modules": ["q_proj", "fc1"], "r": 2, "lora_bias": True}),
    "whole modules": (
        "native",
        {
            "target_modules": ["v_proj"],
            "modules_to_save": ["multi_modal_projector", "final_layer_norm", "conv1"],
        },
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_merged_logits_equal_pefts_own_merge(tmp_path, case):
    naming, settings = SETTINGS[case]
    config, params, model, wrapped, _ = peft_side.adapter_of(tmp_path, naming, **settings)
    inputs = peft_side.example(config)
    before = peft_side.our_logits(config, params, inputs)
    peft_side.disturb_whole_parameters(wrapped)
    adapter = read_adapter(peft_side.save(wrapped, tmp_path / "adapter"))
    assert adapter.naming == naming
    merged = merge(params, config, adapter)
    assert merged.config == config
    peft_side.merged_by_peft(wrapped)
    assert_equals_peft(merged, model, inputs)
    assert np.abs(peft_side.torch_logits(model, inputs) - before).max() > 0.1


def test_every_linear_layer_is_merged_and_the_input_is_left_alone(tmp_path):
    config, params, _, _, directory = peft_side.adapter_of(
        tmp_path, target_modules=list(NATIVE_TARGETS)
    )
    before = {path: leaf.copy() for path, leaf in flatten(params)}
    merged = dict(flatten(merge(params, config, read_adapter(directory)).params))
    changed = {path for path, leaf in merged.items() if not np.array_equal(leaf, before[path])}
    linear = {p for p, leaf in before.items() if p.endswith("/kernel") and leaf.ndim == 2}
    assert changed == linear
    for path, leaf in flatten(params):
        np.testing.assert_array_equal(leaf, before[path])


def test_an_untied_lm_head_merges_as_in_peft(tmp_path):
    config, params = peft_side.base_model(tie_word_embeddings=False)
    model = native_model(config, params)
    wrapped = peft_side.wrap(model, target_modules=["lm_head", "fc1"], r=4)
    directory = peft_side.save(wrapped, tmp_path / "adapter")
    merged = merge(params, config, read_adapter(directory))
    assert merged.notes == ()
    peft_side.merged_by_peft(wrapped)
    assert_equals_peft(merged, model, peft_side.example(config))


@pytest.mark.parametrize("naming", ["native", "original"])
def test_a_tied_lm_head_is_untied_and_says_so(tmp_path, naming):
    # PEFT adds the update to the one tensor that both share, which changes the embeddings too.
    # What was trained is the unmerged adapter, and that is what the merged model must be.
    target = "lm_head" if naming == "native" else "language_model.lm_head"
    config, params, model, wrapped, directory = peft_side.adapter_of(
        tmp_path, naming, target_modules=[target, "fc1"], r=4
    )
    inputs = peft_side.example(config)
    merged = merge(params, config, read_adapter(directory))
    assert not merged.config.tie_word_embeddings
    assert "now a weight of its own" in " ".join(merged.notes)
    np.testing.assert_array_equal(
        merged.params["shared"]["embedding"], params["shared"]["embedding"]
    )
    if naming == "native":  # the other wrapper has no forward
        expected = peft_side.torch_logits(model, inputs)
        ours = peft_side.our_logits(merged.config, merged.params, inputs)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)
    peft_side.merged_by_peft(wrapped)
    head = merged.params["lm_head"]["embedding"]
    np.testing.assert_allclose(head, model.lm_head.weight.detach().numpy(), rtol=0, atol=3e-7)
    shared = model.model.language_model.shared.weight.detach().numpy()
    assert np.abs(shared - params["shared"]["embedding"]).max() > 0.01


def test_a_whole_lm_head_is_untied_and_one_of_equal_values_is_not(tmp_path):
    config, params, model, wrapped, directory = peft_side.adapter_of(
        tmp_path, target_modules=["v_proj"], modules_to_save=["lm_head"]
    )
    assert merge(params, config, read_adapter(directory)).config.tie_word_embeddings
    peft_side.disturb_whole_parameters(wrapped)
    merged = merge(params, config, read_adapter(peft_side.save(wrapped, tmp_path / "disturbed")))
    assert not merged.config.tie_word_embeddings
    peft_side.merged_by_peft(wrapped)
    assert_equals_peft(merged, model, peft_side.example(config))


def test_whole_tables_that_peft_kept_tied_stay_tied(tmp_path):
    # PEFT writes the one tensor under all four names. (Its own model cannot run: it puts a copy of
    # the linear lm_head where the embeddings were.)
    config, params, _, wrapped, _ = peft_side.adapter_of(
        tmp_path, target_modules=["v_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True
    )
    peft_side.disturb_whole_parameters(wrapped)
    merged = merge(params, config, read_adapter(peft_side.save(wrapped, tmp_path / "disturbed")))
    assert merged.config == config
    table = wrapped.get_base_model().lm_head.weight.detach().numpy()
    np.testing.assert_array_equal(merged.params["shared"]["embedding"], table)
    assert np.abs(table - params["shared"]["embedding"]).max() > 0.01


def test_fan_in_fan_out_means_nothing_for_linear_layers(tmp_path):
    config, params, _, _, directory = peft_side.adapter_of(tmp_path, target_modules=["fc1"])
    expected = merge(params, config, read_adapter(directory))
    peft_side.edit_config(directory, fan_in_fan_out=True)
    adapter = read_adapter(directory)
    assert any("fan_in_fan_out" in note for note in adapter.notes)
    found = merge(params, config, adapter)
    for path, leaf in flatten(found.params):
        np.testing.assert_array_equal(leaf, dict(flatten(expected.params))[path])
    # And PEFT, told the same, merges the same.
    wrapped = peft_side.load(native_model(config, params), directory)
    assert_equals_peft(found, peft_side.merged_by_peft(wrapped), peft_side.example(config))


def test_torchs_own_file_gives_the_same(tmp_path):
    torch, safetensors = peft_side.torch, pytest.importorskip("safetensors.torch")
    *_, directory = peft_side.adapter_of(tmp_path, target_modules=["fc1"])
    expected = read_adapter(directory)
    file = directory / "adapter_model.safetensors"
    torch.save(safetensors.load_file(file), directory / "adapter_model.bin")
    file.unlink()
    found = read_adapter(directory)
    assert found.modules.keys() == expected.modules.keys()
    for path, update in found.modules.items():
        np.testing.assert_array_equal(update.a, expected.modules[path].a)
        np.testing.assert_array_equal(update.b, expected.modules[path].b)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_sums_are_taken_in_float32_and_rounded_once(stored):
    config, params = peft_side.base_model()
    dtype = np.dtype(ml_dtypes.bfloat16 if stored == "bfloat16" else stored)
    narrow = {path: leaf.astype(dtype) for path, leaf in flatten(params)}
    rng = np.random.default_rng(0)
    path = "encoder/layers/0/fc1/kernel"
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((24, 2), (2, 48)))
    adapter = Adapter(modules={path: LowRank(a=a, b=b, alpha=3)})
    exact = narrow[path].astype(np.float32) + a @ b * np.float32(1.5)
    for target in (None, "float32"):
        merged = dict(flatten(merge(unflatten(narrow), config, adapter, dtype=target).params))
        wanted = dtype if target is None else np.dtype(target)
        assert {leaf.dtype for leaf in merged.values()} == {wanted}
        np.testing.assert_array_equal(merged[path], exact.astype(wanted))


def test_a_base_weight_in_the_adapter_must_be_the_models(tmp_path):
    config, params, _, _, directory = peft_side.adapter_of(tmp_path, target_modules=["lm_head"])
    adapter = read_adapter(directory)
    path, update = next(iter(adapter.modules.items()))
    assert update.base is not None  # PEFT repeats a targeted output layer
    half = update.base.astype(np.float16)
    rounded = dataclasses.replace(update, base=half)
    merge(params, config, dataclasses.replace(adapter, modules={path: rounded}))
    other = dataclasses.replace(update, base=update.base + 1)
    with pytest.raises(CheckpointError, match="not those the adapter was trained on"):
        merge(params, config, dataclasses.replace(adapter, modules={path: other}))


def test_every_misfit_is_in_one_error():
    config, params = peft_side.base_model()
    ones = np.ones
    adapter = Adapter(
        modules={
            "encoder/layers/9/fc1/kernel": LowRank(a=ones((24, 1)), b=ones((1, 48)), alpha=1),
            "encoder/layers/0/fc1/kernel": LowRank(a=ones((32, 1)), b=ones((1, 48)), alpha=1),
            "encoder/layers/0/fc2/kernel": LowRank(
                a=np.full((48, 1), np.nan), b=ones((1, 24)), alpha=1
            ),
            "lm_head/embedding": LowRank(a=ones((24, 1)), b=ones((1, 1344)), alpha=1),
            "projector/proj/kernel": LowRank(
                a=ones((16, 1)), b=ones((1, 24)), alpha=1, b_bias=ones(24)
            ),
        },
        replaced={
            "projector/norm/scale": ones(3, np.float32),
            "shared/embedding": ones((1285, 24), np.float32),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        merge(params, config, adapter)
    message = str(caught.value)
    for part in (
        "encoder/layers/9/fc1/kernel",
        "the adapter has [32, 48], the model has [24, 48]",
        "not finite after merging",
        "pads the vocabulary",
        "projector/proj/bias",
        "projector/norm/scale",
        "shared and decoder.embed_tokens",
    ):
        assert part in message, message


def test_float16_overflow_is_named():
    config, params = peft_side.base_model()
    path = "encoder/layers/0/fc1/kernel"
    big = LowRank(a=np.full((24, 1), 300.0), b=np.full((1, 48), 300.0), alpha=1)
    with pytest.raises(CheckpointError, match=r"float16's 65504[\s\S]*encoder/layers/0/fc1"):
        merge(params, config, Adapter(modules={path: big}), dtype="float16")


def test_overlapping_alphas_are_those_of_peft_after_loading(tmp_path):
    # PEFT sorts the patterns when it saves, so what it loads may differ from what it trained.
    config, params, _, _, directory = peft_side.adapter_of(
        tmp_path,
        target_modules=["q_proj"],
        r=4,
        alpha_pattern={"self_attn.q_proj": 7, "q_proj": 5, r"encoder\.layers\.1.*": 3},
    )
    adapter = read_adapter(directory)
    assert any("several entries of alpha_pattern match" in note for note in adapter.notes)
    loaded = peft_side.load(native_model(config, params), directory).get_base_model()
    scales = {
        match_name(f"{name}.weight", "native").path: module.scaling["default"]
        for name, module in loaded.named_modules()
        if hasattr(module, "lora_A")
    }
    assert {path: adapter.scale(path) for path in adapter.modules} == scales
    assert json.loads((directory / "adapter_config.json").read_text()) == adapter.peft_config


def test_overlapping_ranks_are_those_of_the_tensors(tmp_path):
    # PEFT itself cannot load this adapter again: sorted, "fc1" comes first and its rank is 3.
    *_, directory = peft_side.adapter_of(
        tmp_path, target_modules=["fc1"], rank_pattern={"layers.0.fc1": 2, "fc1": 3}
    )
    ranks = {path: update.rank for path, update in read_adapter(directory).modules.items()}
    assert ranks["encoder/layers/0/fc1/kernel"] == 2
    assert ranks["encoder/layers/1/fc1/kernel"] == 3
