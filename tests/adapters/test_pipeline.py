"""`load` and `Florence2Pipeline.from_pretrained` with an adapter, merged or beside the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import florence_jax as fj
from convert.verify.reference import native_model
from florence_jax.adapters import merge, read_adapter
from florence_jax.checkpoint import CheckpointError, load_checkpoint, torch_tensors
from florence_jax.checkpoint.param_tree import flatten
from florence_jax.generation import generate
from florence_jax.model.handle import adapted_modules
from florence_jax.processing import demo_tokenizer
from tests.adapters import peft_adapters as peft_side
from tests.adapters.peft_adapters import NATIVE_TARGETS
from tests.checkpoint.generated import write_directory

# One rounding of one weight moves these logits (up to 15) by 5e-6 in PyTorch alone.
TOLERANCE = 1e-5


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, params = peft_side.base_model()
    directory = tmp_path / "base"
    write_directory(directory, dict(torch_tensors(params, "native")), config.to_hf("native"))
    demo_tokenizer().save(directory)
    return directory


def adapter_for(base, **settings):
    """PEFT's own model with the adapter in it, and the adapter's directory."""
    config, params, _ = load_checkpoint(base)
    model = native_model(config, jax.tree.map(np.array, params))
    wrapped = peft_side.wrap(model, **settings)
    return wrapped, peft_side.save(wrapped, base.parent / "adapter")


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": list(NATIVE_TARGETS), "r": 4, "use_rslora": True},
        {"target_modules": ["q_proj", "fc1"], "r": 2, "lora_bias": True},
        {"target_modules": ["fc2", "lm_head"], "r": 2, "modules_to_save": ["final_layer_norm"]},
    ],
    ids=["every linear layer", "bias of B", "lm_head"],
)
def test_logits_equal_pefts(base, settings, merged):
    wrapped, directory = adapter_for(base, **settings)
    model, params = fj.load(base, adapter=directory, merge_adapter=merged)
    inputs = peft_side.example(model.config)
    expected = peft_side.torch_logits(wrapped.get_base_model(), inputs)
    found = model.logits(
        params,
        pixel_values=jnp.asarray(inputs.pixel_values),
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        decoder_input_ids=inputs.decoder_input_ids,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert bool(adapted_modules(params)) != merged


def test_beside_the_weights_these_stay_as_they_are_and_tokens_are_the_same(base):
    _, directory = adapter_for(base, target_modules=list(NATIVE_TARGETS), r=4)
    plain, answers = dict(flatten(fj.load(base)[1])), []
    for merged in (True, False):
        pipeline = fj.Florence2Pipeline.from_pretrained(
            base, adapter=directory, merge_adapter=merged
        )
        inputs = peft_side.example(pipeline.model.config)
        output = generate(
            pipeline.model,
            pipeline.params,
            pixel_values=jnp.asarray(inputs.pixel_values),
            input_ids=inputs.input_ids,
            config=fj.GenerationConfig(num_beams=3, max_new_tokens=8),
        )
        answers.append(np.asarray(output.sequences))
    np.testing.assert_array_equal(*answers)
    beside = dict(flatten(pipeline.params))
    for path, leaf in plain.items():
        np.testing.assert_array_equal(beside.pop(path), leaf, err_msg=path)
    assert {path.rpartition("/adapter/")[2] for path in beside} == {"a", "b"}
    with pytest.raises(ValueError, match="merge_adapter=True"):
        pipeline.save_pretrained(base.parent / "saved")


def test_int8_weights_take_an_adapter_in_float32(base):
    _, directory = adapter_for(base, target_modules=["fc1", "q_proj"], r=4)
    kept = {"adapter": directory, "merge_adapter": False}
    model, params = fj.load(base, quantize="int8", **kept)
    layer = params["decoder"]["layers"]["0"]["fc1"]
    assert (layer["kernel"].dtype, layer["adapter"]["a"].dtype) == (jnp.int8, jnp.float32)
    inputs = peft_side.example(model.config)
    exact = peft_side.our_logits(model.config, fj.load(base, **kept)[1], inputs)
    without = peft_side.our_logits(model.config, fj.load(base)[1], inputs)
    rounded = peft_side.our_logits(model.config, params, inputs)
    assert np.abs(rounded - exact).max() < 0.2 * np.abs(without - exact).max()


def test_what_does_not_fit_is_said(base):
    _, directory = adapter_for(base, target_modules=["fc1"], r=2)
    with pytest.raises(ValueError, match="merge_adapter=False keeps weights on one device"):
        fj.load(base, adapter=directory, merge_adapter=False, mesh="data=-1")
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        fj.load(base, adapter=base, merge_adapter=False)
    model, params = fj.load(base)
    wrong = merge(params, model.config, read_adapter(directory), keep_low_rank=True).params
    wrong["encoder"]["adapter"] = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    with pytest.raises(ValueError, match="unexpected: encoder/adapter/a"):
        model.bind(wrong)
