"""Exported programs: the live function's tokens, no model code, and nothing damaged runs."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

import florence_jax as fj
from florence_jax.checkpoint import save_checkpoint
from florence_jax.export import manifest
from florence_jax.export.manifest import MANIFEST, ArtifactError
from florence_jax.processing import ImageConfig
from tests.inference.counting import counted_programs
from tests.inference.results import assert_close
from tests.random_pipeline import random_pipeline

PLATFORMS = ("cpu", "cuda", "tpu")
SETTINGS = {"num_beams": 2, "max_new_tokens": 60}
GREEDY = {"num_beams": 1, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def pipe():
    return dataclasses.replace(random_pipeline(), image_config=ImageConfig(size=(64, 64)))


@pytest.fixture(scope="module")
def directory(pipe, tmp_path_factory):
    """Batches of 1 and 2, prompts of up to 32 and 64 tokens, answers of up to 64."""
    path = tmp_path_factory.mktemp("exported") / "exported"
    pipe.export(
        path,
        platforms=PLATFORMS,
        prompts=["<CAPTION>", "<MORE_DETAILED_CAPTION>"],
        batch_sizes=(1, 2),
        include_weights=True,
        **SETTINGS,
    )
    return path


@pytest.fixture(scope="module")
def exported(directory):
    return fj.load_exported(directory)


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def pictures(count):
    """Large blocks: fine noise would look alike to the encoder."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (count, 2, 3, 3), np.uint8)
    return [np.kron(block, np.ones((20, 20, 1), np.uint8)) for block in blocks]


@pytest.mark.parametrize(("batch", "prompt"), [(1, "<CAPTION>"), (2, "<MORE_DETAILED_CAPTION>")])
def test_tokens_and_scores_are_the_live_functions(pipe, exported, batch, prompt):
    pixels = np.random.default_rng(batch).standard_normal((batch, 64, 64, 3)).astype(np.float32)
    ids, mask = pipe.tokenizer.encode_batch([prompt] * batch)
    settings = dataclasses.replace(pipe.generation, length_penalty=0.7, **SETTINGS)
    live, ours = (
        programs.generate(np.stack(programs.encode(pixels)), ids, mask, settings).trimmed()
        for programs in (pipe.programs, exported.programs)
    )
    assert live.lengths.max() > 8
    np.testing.assert_array_equal(ours.sequences, live.sequences)
    np.testing.assert_array_equal(ours.lengths, live.lengths)
    np.testing.assert_allclose(ours.token_scores, live.token_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.sequence_scores, live.sequence_scores, rtol=1e-5)


def test_it_answers_as_the_pipeline_does(pipe, exported):
    """More requests than a batch holds, mixed tasks, a handle, and fewer tokens than exported."""
    images = pictures(2)
    call = {
        "images": [images[0], images[1], images[0], images[0], images[1]],
        "prompts": ["<REGION_PROPOSAL>", "<OD>", "<REGION_TO_OCR>", "<CAPTION>", "<CAPTION>"],
        "region": [None, None, (4, 4, 50, 30), None, None],
        "num_beams": 2,
        "max_new_tokens": 8,
    }
    assert_close(exported(**call), pipe(**call))
    handle = exported.encode(images[0])
    call |= {"images": handle, "region": None, "prompts": "<REGION_PROPOSAL>"}
    assert_close(exported(**call), pipe(**{**call, "images": images[0]}))
    # The settings that were exported are the ones of a call that gives none.
    assert exported.generation.max_new_tokens == 60


def test_nothing_compiles_twice(exported):
    call = {"prompts": ["<OD>", "<CAPTION>"], "max_new_tokens": 8}
    exported(pictures(2), **call)
    with counted_programs() as programs:
        exported(pictures(2), **call)
        exported(pictures(2), **{**call, "max_new_tokens": 5})
    assert programs == []


def test_several_ends_and_optional_settings_are_exported(pipe, tmp_path):
    settings = {
        **GREEDY,
        "eos_token_id": (2, 300),
        "suppress_tokens": (40, 41),
        "bad_words_ids": ((50,), (51, 52)),
        "exponential_decay_length_penalty": (2, 1.1),
    }
    path, prompts = tmp_path / "out", ["<CAPTION>"]
    pipe.export(path, platforms=("cpu",), prompts=prompts, include_weights=True, **settings)
    exported = fj.load_exported(path)
    assert exported.generation == dataclasses.replace(pipe.generation, **settings)
    call = {"images": pictures(1), "prompts": "<CAPTION>"}
    assert_close(exported(**call), pipe(**call, **settings))
    # Other values run the same program, also fewer tokens; other settings were not exported.
    other = {"suppress_tokens": (60,), "max_new_tokens": 4}
    assert_close(exported(**call, **other), pipe(**call, **{**settings, **other}))
    for change in ({"suppress_tokens": None}, {"eos_token_id": 2}, {"num_beams": 2}):
        with pytest.raises(ArtifactError, match="no program was exported"):
            exported(**call, **change)


def test_every_platform_is_in_every_program(directory):
    files = sorted(directory.glob("*.stablehlo"))
    assert len(files) == 2 * (1 + 2)
    for file in files:
        program = jax.export.deserialize(bytearray(file.read_bytes()))
        assert program.platforms == PLATFORMS
        arguments, keywords = jax.tree.unflatten(program.in_tree, program.in_avals)
        assert not keywords
        for platform in PLATFORMS:
            lowered = jax.jit(program.call).trace(*arguments).lower(lowering_platforms=(platform,))
            assert "stablehlo.dot_general" in lowered.as_text()
        with pytest.raises(ValueError, match="rocm"):
            jax.jit(program.call).trace(*arguments).lower(lowering_platforms=("rocm",))


def test_forms_of_one_platform_survive():
    """What a platform alone lowers to is in the joint export, behind the platform's number."""

    def double(x):
        return jax.lax.platform_dependent(
            x, cpu=lambda x: x + x, tpu=lambda x: x * 2, default=lambda x: x - (-x)
        )

    program = jax.export.export(jax.jit(double), platforms=PLATFORMS)(np.float32(1))
    again = jax.export.deserialize(program.serialize())
    text = again.mlir_module()
    assert all(f"stablehlo.{name}" in text for name in ("case", "add", "multiply", "subtract"))
    assert jax.jit(again.call)(np.float32(3)) == 6


def test_loading_and_answering_import_no_model(directory):
    code = f"""
import sys
import numpy as np
import florence_jax as fj
pipe = fj.load_exported({str(directory)!r})
assert list(pipe(np.zeros((9, 9, 3), np.uint8), "<CAPTION>", max_new_tokens=4)) == ["<CAPTION>"]
loaded = [name for name in sys.modules if name.startswith(("flax", "florence_jax.model", "torch"))]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_may_stay_outside(pipe, tmp_path):
    outside, checkpoint = tmp_path / "outside", tmp_path / "checkpoint"
    pipe.export(outside, prompts=["<CAPTION>"], batch_sizes=(1,), platforms=("cpu",), **GREEDY)
    assert not (outside / manifest.WEIGHTS).exists()
    with pytest.raises(ArtifactError, match="holds no weights: pass weights="):
        fj.load_exported(outside)
    save_checkpoint(checkpoint, pipe.model.config, pipe.params)
    assert fj.load_exported(outside, weights=pipe.params).programs.params is pipe.params
    loaded = fj.load_exported(outside, weights=checkpoint)
    picture = pictures(1)[0]
    assert_close(loaded(picture, "<CAPTION>"), pipe(picture, "<CAPTION>", **GREEDY))

    other = {**pipe.params, "shared": {"embedding": pipe.params["shared"]["embedding"] * 1.001}}
    with pytest.raises(ArtifactError, match="not the weights that"):
        fj.load_exported(outside, weights=other)


def test_half_precision_and_room_for_more_tokens_than_asked(tmp_path):
    pipe = dataclasses.replace(random_pipeline("bfloat16"), image_config=ImageConfig(size=(64, 64)))
    pipe.export(
        tmp_path / "half", prompts=["<CAPTION>"], batch_sizes=(1,), include_weights=True,
        platforms=("cpu", "tpu"), num_beams=1, max_new_tokens=80,
    )  # fmt: skip
    loaded = fj.load_exported(tmp_path / "half")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.programs.params)} == {"bfloat16"}
    live = pipe(pictures(1), "<CAPTION>", **GREEDY)
    assert loaded(pictures(1), "<CAPTION>", max_new_tokens=8) == live


def test_constrained_answers_of_int8_weights(tmp_path):
    pipe = dataclasses.replace(
        random_pipeline(quantize="int8"), image_config=ImageConfig(size=(64, 64))
    )
    pipe.export(
        tmp_path / "int8", prompts=["<OD>"], batch_sizes=(1,), constrained=True,
        platforms=PLATFORMS, num_beams=1, max_new_tokens=30,
    )  # fmt: skip
    # Weights from outside are quantised as those were that were exported.
    save_checkpoint(tmp_path / "checkpoint", pipe.model.config, random_pipeline().params)
    loaded = fj.load_exported(tmp_path / "int8", weights=tmp_path / "checkpoint")
    kernel = loaded.programs.params["decoder"]["layers"]["0"]["fc1"]["kernel"]
    assert kernel.dtype == np.int8
    limits = {"num_beams": 1, "max_new_tokens": 30}
    picture, labels = pictures(1)[0], ["cat", "dog"]
    assert_close(loaded(picture, "<CAPTION>"), pipe(picture, "<CAPTION>", **limits))
    call = {"images": picture, "prompts": "<OD>", "constrained": True, "labels": labels}
    call["min_new_tokens"] = 15
    found = loaded(**call)
    assert_close(found, pipe(**call, **limits))
    assert found["<OD>"]["labels"]
    assert set(found["<OD>"]["labels"]) <= set(labels)
    with counted_programs() as programs:
        loaded(picture, "<CAPTION>", constrained=True)
    assert programs == []
    with pytest.raises(ArtifactError, match=r"confined by a table of \d+ states"):
        loaded(**{**call, "labels": [f"{number:05}" for number in range(2000)]})


def test_programs_that_do_not_constrain_say_so(exported):
    with pytest.raises(ArtifactError, match="no program was exported that constrains answers"):
        exported(pictures(1)[0], "<OD>", constrained=True)


def test_damage_is_named(copy):
    names = [path.name for path in copy.iterdir()]
    assert {MANIFEST, "config.json", "tokenizer.json", manifest.WEIGHTS} < set(names)
    for name in names:
        path = copy / name
        whole = path.read_bytes()
        for damaged in (_flipped(whole), whole[: len(whole) // 2], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(ArtifactError) as raised:
                fj.load_exported(copy)
            # Weights that load but were changed are found by what they are.
            assert name in str(raised.value) or "not the weights" in str(raised.value)
            path.write_bytes(whole)
    fj.load_exported(copy)


def test_another_platform(copy):
    _rewrite(copy, platforms=["tpu"])
    with pytest.raises(ArtifactError, match="was exported for tpu, and jax runs on cpu"):
        fj.load_exported(copy)


def test_a_newer_format(copy):
    fields = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(fields | {"version": 99}))
    with pytest.raises(ArtifactError, match="version 99; this release reads version 2"):
        fj.load_exported(copy)


def test_a_serialisation_that_this_jax_cannot_read(copy):
    """The right file, but written by a jax to come."""
    programs = [path for path in copy.iterdir() if path.suffix == ".stablehlo"]
    files = json.loads((copy / MANIFEST).read_text())["files"]
    for path in programs:
        path.write_bytes(b"from another time")
        files[path.name] = manifest.file_entry(b"from another time")
    _rewrite(copy, files=files)
    with pytest.raises(ArtifactError, match="cannot read it"):
        fj.load_exported(copy)(pictures(1)[0], "<CAPTION>")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_beams": 3}, "no program was exported for 1 prompts .*num_beams=3"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2"),
        ({"max_new_tokens": 200}, "buffers=.64, 128, 256."),
        ({"prompts": "x" * 98}, "prompts of 100 tokens"),
        ({"do_sample": True}, "do_sample=True"),
        ({"max_new_tokens": 5000}, "past the decoder's position table"),
    ],
)
def test_what_was_not_exported_is_said(exported, call, message):
    with pytest.raises(ValueError, match=message):
        exported(pictures(1)[0], **{"prompts": "<CAPTION>", **call})


def test_an_image_size_that_was_not_exported(exported):
    with pytest.raises(ArtifactError, match="of 96x64 pixels, only for 64x64"):
        exported.encode(pictures(1)[0], image_size=(96, 64))


def test_what_cannot_be_exported(pipe, directory, tmp_path):
    small = {"prompts": ["<CAPTION>"], "batch_sizes": (1,)}
    with pytest.raises(ArtifactError, match="do_sample"):
        pipe.export(tmp_path / "sampling", do_sample=True, **small)
    with pytest.raises(ValueError, match="the prompt is too long"):
        pipe.export(tmp_path / "long", prompts=["<DocVQA>" + "x" * 2000])
    with pytest.raises(ValueError, match="exists already"):
        pipe.export(directory, **small)
    assert list(tmp_path.iterdir()) == []


def _flipped(content):
    """One bit, where no JSON or header notices by itself."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _rewrite(directory, **changes):
    """A manifest with other content that is sound in itself."""
    fields = json.loads((directory / MANIFEST).read_text()) | changes
    del fields["sha256"]
    (directory / MANIFEST).write_bytes(manifest.sealed_json(fields))
