"""The precision of every product and convolution, read from the StableHLO for GPUs and TPUs."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from florence_jax import load
from florence_jax.generation.generate import generate_jit
from florence_jax.generation.inputs import prepare_inputs
from florence_jax.generation_config import GenerationConfig
from florence_jax.inference.compiled import encode_jit
from florence_jax.model import Model, abstract_params
from florence_jax.training.state import new_state
from florence_jax.training.step import LossFn, build_evaluation, build_step
from tests.training.small import CONFIG, small_batch, small_params

SIDE = 16
PROGRAMS = ("encode", "greedy", "beams", "logits", "step", "evaluation", "gradient of logits")


@pytest.fixture(autouse=True)
def _jax_as_users_have_it():
    """The tests' own setting would hide what the programs ask for."""
    with jax.default_matmul_precision(None):
        yield


@functools.cache
def precisions(program, dtype, precision="highest"):
    """How many products and convolutions of `dtype` each precision has, on a GPU and a TPU."""
    model = Model(config=CONFIG, dtype=dtype, matmul_precision=precision)
    function, arguments = PROGRAM[program](model)
    # One lowering for both holds the forms of each.
    lowered = function.trace(*arguments).lower(lowering_platforms=("cuda", "tpu"))
    return asked(lowered.as_text(), {"float32": "f32", "bfloat16": "bf16"}[dtype])


def asked(text, dtype):
    found = collections.Counter()
    for line in text.splitlines():
        if re.search(r"stablehlo\.(dot_general|convolution)\b", line):
            operand = re.search(r": \(tensor<(?:\d+x)*(\w+)>", line)[1]
            names = re.findall(r"\b(DEFAULT|HIGHEST|HIGH)\b", line) or ["DEFAULT"]
            if operand == dtype:
                found.update({"/".join(sorted(set(names))): 1})
    return found


def generation(model, beams):
    tokens = CONFIG.num_image_tokens(SIDE, SIDE)
    return prepare_inputs(
        model,
        abstract_params(CONFIG),
        image_features=jax.ShapeDtypeStruct((2, tokens, CONFIG.text.d_model), model.dtype),
        input_ids=np.full((2, 5), 7, np.int32),
        config=GenerationConfig(num_beams=beams, max_new_tokens=8, no_repeat_ngram_size=3),
    )


def step(model):
    optimizer = optax.adamw(1e-3)
    update = build_step(LossFn(model=model), optimizer, lambda step: 1e-3, seed=0)
    state = new_state(small_params(), {}, optimizer, with_ema=False)
    return jax.jit(update), (state, small_batch())


def logits_of(model):
    def logits(params):
        return model.logits(
            params,
            pixel_values=jnp.zeros((2, SIDE, SIDE, 3)),
            input_ids=jnp.full((2, 5), 7),
            decoder_input_ids=jnp.full((2, 4), 7),
        )

    return logits


PROGRAM = {
    "encode": lambda model: (
        encode_jit,
        (model, abstract_params(CONFIG), jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), np.float32)),
    ),
    "greedy": lambda model: (generate_jit, generation(model, 1)),
    "beams": lambda model: (generate_jit, generation(model, 3)),
    "logits": lambda model: (jax.jit(logits_of(model)), (abstract_params(CONFIG),)),
    "step": step,
    "evaluation": lambda model: (
        jax.jit(build_evaluation(LossFn(model=model))),
        (small_params(), small_batch()),
    ),
    # What a training loop of a user's own traces, outside of any scope.
    "gradient of logits": lambda model: (
        jax.jit(jax.grad(lambda params: logits_of(model)(params).sum())),
        (abstract_params(CONFIG),),
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_float32_is_multiplied_in_float32(program):
    found = precisions(program, "float32")
    assert set(found) == {"HIGHEST"}, found
    # Attention, projections, MLP, convolutions: nothing is missing from the count.
    assert found["HIGHEST"] >= 20


@pytest.mark.parametrize("program", ["encode", "beams", "step"])
def test_bfloat16_programs_are_left_alone(program):
    assert set(precisions(program, "bfloat16")) == {"DEFAULT"}


@pytest.mark.parametrize(("precision", "name"), [("default", "DEFAULT"), ("high", "HIGH")])
def test_fewer_bits_can_be_chosen(precision, name):
    with jax.default_matmul_precision("highest"):
        assert set(precisions("encode", "float32", precision)) == {name}


def test_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match="matmul_precision is 'tf32', expected one of 'default'"):
        load("shapes", matmul_precision="tf32")
    assert load("shapes", matmul_precision="high")[0].matmul_precision == "high"
