"""Every way to name and flag a token table, written by to_torch and loaded by transformers."""

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.verify.reference import native_model
from convert.verify.stages import random_inputs, torch_stages
from florence_jax.checkpoint import load_checkpoint
from florence_jax.conversion import from_torch, to_torch
from florence_jax.model import Model
from tests.checkpoint.generated import (
    TOKEN_TABLES,
    tiny_config,
    tiny_tensors,
    write_directory,
)

FLAGS = list(itertools.product((None, True, False), repeat=2))
HOW = ("source", "once", "all")


def cases(naming):
    """(is lm_head another matrix, names of the token table in the file) of every checkpoint."""
    names = TOKEN_TABLES[naming]
    subsets = [some for n in range(1, 5) for some in itertools.combinations(names, n)]
    yield from ((False, some) for some in subsets)
    yield from ((True, some) for some in subsets if names[-1] in some and len(some) > 1)


def written_checkpoint(directory, naming, untied, names, flags):
    """Its tables by name, a source directory having been written."""
    shared, *_, lm_head = TOKEN_TABLES[naming]
    tensors = tiny_tensors(naming)
    table = tensors.pop(shared)
    tables = dict.fromkeys(TOKEN_TABLES[naming], table)
    if untied:
        tables[lm_head] = table[::-1].copy()
    config = tiny_config(naming)
    for section, flag in zip((config, config["text_config"]), flags, strict=True):
        section.pop("tie_word_embeddings", None)
        if flag is not None:
            section["tie_word_embeddings"] = flag
    write_directory(directory, tensors | {name: tables[name] for name in names}, config)
    return tables


def loaded(directory):
    from transformers import Florence2ForConditionalGeneration

    model, report = Florence2ForConditionalGeneration.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def test_transformers_loads_every_table(tmp_path):
    """Nine pairs of flags come up in turn; all of them with all names take minutes."""
    for turn, (untied, names) in enumerate(cases("native")):
        source = tmp_path / f"{turn}"
        flags = FLAGS[turn % len(FLAGS)]
        tables = written_checkpoint(source, "native", untied, names, flags)
        for how in HOW if untied else HOW[:1]:
            case = (untied, names, flags, how)
            to_torch(source, tmp_path / "out", naming="native", tied_names=how, overwrite=True)
            state = loaded(tmp_path / "out").state_dict()
            for name, table in tables.items():
                np.testing.assert_array_equal(state[name].numpy(), table, err_msg=f"{case} {name}")


@pytest.mark.parametrize("naming", ["native", "original"])
def test_logits_of_an_lm_head_as_transformers_saves_it(tmp_path, naming):
    """Top level false, text_config true: what its save_pretrained writes of an untied model."""
    shared, *_, lm_head = TOKEN_TABLES[naming]
    source = tmp_path / "source"
    written_checkpoint(source, naming, True, (shared, lm_head), (False, True))
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | {"image_token_id": 1284}))
    config, params, _ = load_checkpoint(source)
    model = Model(config=config)
    inputs = random_inputs(model, batch=1, size=(64, 64), text=4, target=3, seed=0)
    # Loaded by us: test_parity_tiny compares this class and ours with the same weights.
    expected = torch_stages(native_model(config, params).eval(), inputs)["logits"]
    from_torch(source, tmp_path / "ours")
    for folder in ("source", "ours"):
        to_torch(tmp_path / folder, tmp_path / "out", naming="native", overwrite=True)
        logits = torch_stages(loaded(tmp_path / "out"), inputs)["logits"]
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("how", HOW)
def test_the_originals_rule(tmp_path, how):
    """Its classes tie all names where text_config says so (the default), and otherwise none.

    Its encoder is given embeddings and never looks at `encoder.embed_tokens`.
    """
    shared, encoder, decoder, lm_head = TOKEN_TABLES["original"]
    for turn, (untied, names) in enumerate(cases("original")):
        source = tmp_path / f"{turn}"
        tables = written_checkpoint(source, "original", untied, names, FLAGS[turn % len(FLAGS)])
        to_torch(source, tmp_path / "out", naming="original", tied_names=how, overwrite=True)
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        tensors = load_file(tmp_path / "out" / "model.safetensors")
        present = {name for name in tables if name in tensors}
        for section in (config, config["text_config"]):
            assert section.get("tie_word_embeddings", True) is not untied
        assert {shared, decoder, lm_head} <= present if untied else present
        if untied and not {shared, decoder} <= set(names):
            assert encoder in present
        for name in present:
            np.testing.assert_array_equal(tensors[name], tables[name])
        if untied:
            again = load_checkpoint(tmp_path / "out")
            np.testing.assert_array_equal(again.params["shared"]["embedding"], tables[shared])
            np.testing.assert_array_equal(again.params["lm_head"]["embedding"], tables[lm_head])
