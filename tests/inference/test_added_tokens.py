"""Checkpoints whose tokenizer was extended by add_tokens and resize_token_embeddings."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from florence_jax.checkpoint import load_checkpoint
from florence_jax.constrained.answer_grammars import AnswerGrammars
from florence_jax.constrained.answer_schema import answer_schema
from florence_jax.conversion import from_torch, to_torch
from florence_jax.generation import GenerationConfig, generate, make_constraint
from florence_jax.model import Model
from florence_jax.processing import load_tokenizer
from tests.checkpoint.generated import tiny_config, tiny_tensors, write_directory
from tests.generation.florence import Pair, Prompts, generate_reference
from tests.shared_data import needs_shared, shared_path
from tests.small_checkpoint import write_small_checkpoint
from tests.token_walk import accepts

ADDED = ["<hard_hat>", "zebracrossing", "déjà vu"]
PROMPTS = ["<CAPTION> a <hard_hat> on a zebracrossing", "locate déjà vu<loc_7><loc_999>", "<OD>"]
IMAGE = 51289


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """transformers' directory, with `<image>` in front of three added tokens, and its objects."""
    import torch
    from transformers import AutoTokenizer, Florence2ForConditionalGeneration

    if not shared_path("processor").is_dir():
        pytest.skip("needs the shared data")
    directory = tmp_path_factory.mktemp("extended")
    write_small_checkpoint(directory / "base")
    tokenizer = AutoTokenizer.from_pretrained(directory / "base")
    model = Florence2ForConditionalGeneration.from_pretrained(directory / "base").eval()
    assert tokenizer.add_tokens(ADDED) == len(ADDED)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=100, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[51290:] *= 3.0
    model.save_pretrained(directory / "saved")
    tokenizer.save_pretrained(directory / "saved")
    return directory / "saved", tokenizer, model


@needs_shared
def test_tokens_are_transformers(extended):
    directory, theirs, model = extended
    ours = load_tokenizer(directory)
    assert ours.vocab_size == len(theirs) == 51293
    for token in (*ADDED, "<image>", "<loc_0>", "<loc_999>", "<od>", "</s>"):
        assert ours.token_id(token) == theirs.convert_tokens_to_ids(token)
    assert ours.loc_id(999) == theirs.convert_tokens_to_ids("<loc_999>")
    assert ours.encode(PROMPTS) == theirs(PROMPTS)["input_ids"]
    ids = [2, 0, 51291, 10, 51290, *ours.encode(PROMPTS)[1]]
    assert ours.decode(ids) == theirs.decode(ids)

    config, params, _ = load_checkpoint(directory, dtype="float32")
    assert config.text.vocab_size == 51300
    assert config.image_token_id == IMAGE
    input_ids, mask = ours.encode_batch(PROMPTS)
    pixels = np.random.default_rng(0).standard_normal((3, 64, 64, 3)).astype(np.float32)
    pair = Pair(Model(config=config), params, model)
    settings = GenerationConfig(num_beams=3, no_repeat_ngram_size=3, max_new_tokens=8)
    expected, scores, _ = generate_reference(pair, Prompts(pixels, input_ids, mask), settings)
    out = generate(
        pair.model,
        params,
        pixel_values=pixels,
        input_ids=input_ids,
        attention_mask=mask,
        config=settings,
    )
    np.testing.assert_array_equal(out.sequences, expected)
    np.testing.assert_allclose(out.sequence_scores, scores, rtol=1e-4, atol=1e-4)


@needs_shared
def test_constrained_answers_hold_added_words_and_no_image_token(extended):
    directory, *_ = extended
    tokenizer = load_tokenizer(directory)
    forms = [answer_schema("<CAPTION>"), answer_schema("<OD>", labels=["zebracrossing", "cat"])]
    automaton, starts = AnswerGrammars(tokenizer, 51300).automaton(forms)
    constraint = make_constraint(automaton, [starts[form] for form in forms])
    table, classes = np.asarray(constraint.next_state), np.asarray(constraint.class_of_token)
    assert not table[:, classes[IMAGE]].any()
    assert not table[:, classes[51293:]].any()
    word, od, end = tokenizer.token_id("zebracrossing"), starts[forms[1]], tokenizer.eos_id
    box = [tokenizer.loc_id(bin) for bin in (1, 2, 3, 4)]
    assert accepts(automaton, od, [0, word, *box, end])
    assert not accepts(automaton, od, [0, tokenizer.token_id("<hard_hat>"), *box, end])
    assert accepts(automaton, starts[forms[0]], [0, word, tokenizer.token_id("déjà vu"), end])


@needs_shared
def test_it_converts_both_ways(extended, tmp_path):
    directory, *_ = extended
    tensors = load_file(directory / "model.safetensors")
    from_torch(directory, tmp_path / "ours")
    to_torch(tmp_path / "ours", tmp_path / "native", naming="native")
    back = load_file(tmp_path / "native" / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    written = json.loads((tmp_path / "native" / "config.json").read_text())
    assert (written["image_token_id"], written["text_config"]["vocab_size"]) == (IMAGE, 51300)
    to_torch(tmp_path / "ours", tmp_path / "original", naming="original")
    to_torch(tmp_path / "original", tmp_path / "again", naming="native")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["image_token_id"] == IMAGE
    again = load_tokenizer(tmp_path / "again")
    assert again.encode(PROMPTS) == load_tokenizer(directory).encode(PROMPTS)


@needs_shared
def test_the_slow_tokenizers_added_tokens_are_read(tmp_path):
    """vocab.json and merges.txt with added_tokens.json, as transformers 4 saves it."""
    content = json.loads(shared_path("processor", "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    added = {t["content"]: t["id"] for t in content["added_tokens"] if t["id"] >= len(vocab)}
    added |= {"zebracrossing": 51290}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token_id("zebracrossing") == 51290
    assert tokenizer.encode(["a zebracrossing"])[0].count(51290) == 1
    (tmp_path / "added_tokens.json").write_text(json.dumps(added | {"zebracrossing": 51999}))
    with pytest.raises(ValueError, match="does not continue to"):
        load_tokenizer(tmp_path)


def test_image_gets_a_row_that_no_added_token_has(tmp_path):
    """The original's tokenizer has no `<image>`; what was added to it starts at its usual id."""
    source = write_directory(tmp_path / "source", tiny_tensors(), tiny_config("original"))
    tokens = [{"content": "<mine>", "id": 51289}, {"content": "<yours>", "id": 51290}]
    (source / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    export = to_torch(source, tmp_path / "out", naming="native")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["image_token_id"] == 51291
    assert any("add it as the next one, token 51291" in note for note in export.notes)
    assert any("--vocab-size 51328" in note for note in export.notes)


@needs_shared
def test_a_tokenizer_larger_than_the_model_is_refused(extended, tmp_path):
    """add_tokens without resize_token_embeddings: such a token has no row."""
    config, params = write_small_checkpoint(tmp_path / "small")
    shutil.copy(extended[0] / "tokenizer.json", tmp_path / "small" / "tokenizer.json")
    ids = load_tokenizer(tmp_path / "small").encode_batch(["<OD>"])[0]
    ids[0, 1] = config.text.vocab_size
    with pytest.raises(ValueError, match="input_ids holds token 51328, outside the model's"):
        generate(
            Model(config=config),
            params,
            pixel_values=np.zeros((1, 64, 64, 3), np.float32),
            input_ids=ids,
            config=GenerationConfig(max_new_tokens=2),
        )
