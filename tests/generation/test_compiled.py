"""What the compiled loop may not contain: guards of its speed that need no clock."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from florence_jax.config import tiny
from florence_jax.generation import GenerationConfig
from florence_jax.generation.generate import generate_jit
from florence_jax.generation.inputs import prepare_inputs
from florence_jax.model import Model, abstract_params

CONFIG = tiny()
BATCH, BEAMS, IMAGE_TOKENS, PROMPT = 2, 3, 37, 16
# No other array of the loop has an axis of this length.
MEMORY = IMAGE_TOKENS + PROMPT
SETTINGS = {
    "beams": GenerationConfig(num_beams=BEAMS, no_repeat_ngram_size=3, max_new_tokens=40),
    "greedy": GenerationConfig(max_new_tokens=40),
    "sampling": GenerationConfig(do_sample=True, top_p=0.9, top_k=50, max_new_tokens=40),
}


# What names a value without making one.
FREE = {
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "while",
    "conditional",
}
INSTRUCTION = re.compile(r"(ROOT )?%\S+ = \(?\w+\[([\d,]*)\]\S* (?:.* )?([\w-]+)\(")


@pytest.fixture(scope="module", params=SETTINGS)
def loop(request):
    """(operation, result shape) of what the loop's body makes; a fusion counts as its last one."""
    features = jax.ShapeDtypeStruct((BATCH, IMAGE_TOKENS, CONFIG.text.d_model), jnp.float32)
    sampling = SETTINGS[request.param].do_sample
    arguments = prepare_inputs(
        Model(config=CONFIG),
        abstract_params(CONFIG),
        image_features=features,
        input_ids=np.full((BATCH, PROMPT), 5),
        config=SETTINGS[request.param],
        rng=jax.random.key(0) if sampling else None,
    )
    text = generate_jit.lower(*arguments).compile().as_text()
    computations = {
        name: body.splitlines()
        for name, body in re.findall(r"^(?:ENTRY )?(%\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S)
    }
    loops = re.findall(r"^.* while\(.*body=%[\w.-]+.*$", text, re.M)
    todo = [re.search(r"body=(%[\w.-]+)", line)[1] for line in loops]
    assert todo
    # What does not change from step to step is made in front of the loop and carried through it.
    made = [
        ("carried", tuple(map(int, shape.split(","))))
        for line in loops
        for shape in re.findall(r"\w+\[([\d,]+)\]", line.partition(" while(")[0])
    ]
    seen = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in computations[name]:
            found = INSTRUCTION.match(line.strip())
            if found is None:
                continue
            operation, shape = found[3], tuple(map(int, found[2].split(","))) if found[2] else ()
            if operation == "fusion":
                fused = computations[re.search(r"calls=(%[\w.-]+)", line)[1]]
                roots = (INSTRUCTION.match(inner.strip()) for inner in fused)
                operation = next((root[3] for root in roots if root and root[1]), operation)
            else:
                todo += re.findall(r"(?:to_apply|body|condition|calls)=(%[\w.-]+)", line)
                for group in re.findall(r"(?:branch_computations)=\{(.*?)\}", line):
                    todo += re.findall(r"%[\w.-]+", group)
            if operation not in FREE:
                made.append((operation, shape))
    return made


def test_the_parser_sees_the_loop(loop):
    assert {"dot", "dynamic-update-slice", "carried"} <= {operation for operation, _ in loop}
    assert any(CONFIG.text.vocab_size in shape for operation, shape in loop)


def test_the_vocabulary_is_never_sorted(loop):
    sorts = [shape for operation, shape in loop if operation == "sort"]
    assert [shape for shape in sorts if max(shape) >= CONFIG.text.vocab_size // 2] == []


def test_the_images_memory_is_neither_copied_nor_multiplied_by_beams(loop):
    # Scores have this axis too, but only as many rows as there are heads and beams.
    whole = BATCH * CONFIG.text.d_model * MEMORY
    large = [(op, shape) for op, shape in loop if MEMORY in shape and math.prod(shape) >= whole]
    assert {operation for operation, _ in large} == {"carried"}
    assert {math.prod(shape) for _, shape in large} == {whole}


def test_the_cache_is_written_in_place(loop):
    text, rows = CONFIG.text, {64, 64 * BEAMS}
    whole = BATCH * text.d_model * 64
    made = [
        (operation, shape)
        for operation, shape in loop
        if rows & set(shape) and text.d_model // text.decoder_attention_heads in shape
        if math.prod(shape) >= whole and operation not in ("dynamic-update-slice", "carried")
    ]
    assert made == []
