"""The tokenizer: every published form of its files, and decoding with spans."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from florence_jax.processing import demo_tokenizer, load_tokenizer
from florence_jax.processing.vocabulary import FLORENCE_TOKENS, SPECIAL_TOKENS, byte_symbols
from tests.shared_data import needs_shared, shared_path

fuzz = settings(max_examples=150)

TEXTS = [
    "Locate the phrases in the caption: a red car",
    "What is the region <loc_52><loc_332><loc_932><loc_774>?",
    "car <and> traffic light",
    "  spaces  and\nlines ",
    "中文 é 🦄 <mask> <s> </s>",
    "",
]


@pytest.fixture(scope="session")
def bart_files(tmp_path_factory):
    """The published tokenizer.json with everything that Florence-2 added taken out again."""
    content = json.loads(shared_path("processor", "tokenizer.json").read_text("utf-8"))
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < 50265]
    assert len(content["model"]["vocab"]) == 50265
    whole = tmp_path_factory.mktemp("bart")
    (whole / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    pieces = tmp_path_factory.mktemp("bart_pieces")
    (pieces / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), "utf-8")
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    (pieces / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    return {"tokenizer.json": whole, "vocab.json and merges.txt": pieces}


@needs_shared
def test_the_published_tokenizer(tokenizer):
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 51289
    assert (tokenizer.loc_id(0), tokenizer.loc_id(999)) == (50269, 51268)


@needs_shared
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json and merges.txt"])
def test_plain_bart_is_completed_to_the_published_ids(tokenizer, bart_files, form):
    completed = load_tokenizer(bart_files[form])
    assert completed.vocab_size == 51289
    for index, token in enumerate(FLORENCE_TOKENS):
        assert completed.encode([token]) == [[0, 50265 + index, 2]]
        assert tokenizer.decode([50265 + index]) == token
    assert (FLORENCE_TOKENS[0], FLORENCE_TOKENS[-1], len(FLORENCE_TOKENS)) == (
        "<od>",
        "<and>",
        1024,
    )
    assert completed.encode(TEXTS) == tokenizer.encode(TEXTS)


@needs_shared
def test_encoding_is_transformers(tokenizer, native_processor):
    expected = native_processor.tokenizer(TEXTS, padding=True, return_tensors="np")
    input_ids, attention_mask = tokenizer.encode_batch(TEXTS)
    assert np.array_equal(input_ids, expected["input_ids"])
    assert np.array_equal(attention_mask, expected["attention_mask"])
    assert input_ids.dtype == attention_mask.dtype == np.int32


@needs_shared
@fuzz
@given(st.lists(st.text(max_size=12).filter(lambda text: "<image>" not in text), max_size=4))
def test_any_prompt_encodes_as_in_transformers(tokenizer, native_processor, prompts):
    expected = [native_processor.tokenizer(text)["input_ids"] for text in prompts]
    assert tokenizer.encode(prompts) == expected


@needs_shared
def test_the_image_placeholder_is_never_emitted(tokenizer):
    (ids,) = tokenizer.encode(["a <image> b"])
    assert max(ids) < 50265
    assert tokenizer.decode(ids[1:-1]) == "a <image> b"
    assert tokenizer.decode([51289]) == ""


def test_padding_is_on_the_right_and_never_truncates():
    demo = demo_tokenizer()
    input_ids, attention_mask = demo.encode_batch(["ab", "a"], pad_to=5)
    assert input_ids[1, 2:].tolist() == [demo.eos_id, demo.pad_id, demo.pad_id]
    assert attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    with pytest.raises(ValueError, match="prompt 0 is 4 tokens long, more than pad_to=3"):
        demo.encode_batch(["ab", "a"], pad_to=3)
    assert demo.encode_batch([])[0].shape == (0, 0)
    with pytest.raises(ValueError, match="takes a list of prompts"):
        demo.encode("a prompt")


@needs_shared
@fuzz
@given(st.lists(st.one_of(st.integers(0, 51288), st.sampled_from([0, 1, 2, 47643, 47240]))))
def test_decoding_is_transformers(tokenizer, native_processor, ids):
    (expected,) = native_processor.tokenizer.batch_decode([ids], skip_special_tokens=False)
    assert tokenizer.decode(ids) == expected
    text, spans = tokenizer.decode_with_spans(ids)
    assert text == expected
    check_tiling(text, spans, ids)
    (skipped,) = native_processor.tokenizer.batch_decode([ids], skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=True) == skipped


def check_tiling(text, spans, ids):
    assert len(spans) == len(ids)
    edges = [0, *(end for _, end in spans)]
    assert [start for start, _ in spans] == edges[:-1]
    assert edges[-1] == len(text)


@needs_shared
@fuzz
@given(st.text(max_size=20).filter(lambda text: "<" not in text))
def test_characters_of_several_tokens_survive(tokenizer, text):
    ids = tokenizer.encode([text])[0][1:-1]
    decoded, spans = tokenizer.decode_with_spans(ids)
    assert decoded == text
    check_tiling(decoded, spans, ids)


@needs_shared
def test_per_token_decoding_is_the_references(tokenizer, native_processor):
    ids = [2, *tokenizer.encode(["STOP 福 é🦄<loc_7>"])[0], 1]
    expected = native_processor.post_processor.decode_with_spans(ids)
    assert tokenizer.decode_with_spans(ids, per_token=True) == expected
    assert "\ufffd" in expected[0]
    assert "\ufffd" not in tokenizer.decode_with_spans(ids)[0]


@pytest.mark.parametrize("index", [51290, 51327, 10**9, -1])
def test_ids_outside_the_vocabulary_have_no_text(index):
    demo = demo_tokenizer()
    ids = [demo.loc_id(1), index, demo.loc_id(2)]
    assert demo.decode(np.array(ids)) == "<loc_1><loc_2>"
    assert demo.decode_with_spans(ids) == ("<loc_1><loc_2>", [(0, 7), (7, 7), (7, 14)])


def test_the_demo_tokenizer_needs_no_file():
    demo = demo_tokenizer()
    assert demo.vocab_size == 4 + 256 + 1024
    assert (demo.bos_id, demo.pad_id, demo.eos_id, demo.loc_id(0)) == (0, 1, 2, 264)
    assert demo.encode(["\t<and>"]) == [[0, 4 + 9, 1283, 2]]


@given(st.text(max_size=20))
def test_the_demo_tokenizer_encodes_any_text(text):
    demo = demo_tokenizer()
    assert demo.decode(demo.encode([text])[0][1:-1]) == text


def test_a_lone_surrogate_does_not_abort_the_batch():
    demo = demo_tokenizer()
    assert demo.encode(["a\ud800b"]) == demo.encode(["a?b"])


@pytest.mark.parametrize("name", ["demo", pytest.param("published", marks=needs_shared)])
def test_a_saved_tokenizer_loads_again(name, tmp_path):
    source = demo_tokenizer() if name == "demo" else load_tokenizer(shared_path("processor"))
    source.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert loaded.vocab_size == source.vocab_size
    assert loaded.encode(TEXTS) == source.encode(TEXTS)


class TestFilesThatAreNotFlorence:
    def test_nothing(self, tmp_path):
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(
            FileNotFoundError, match=r"expected tokenizer\.json.*model\.safetensors"
        ):
            load_tokenizer(tmp_path)
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load_tokenizer(tmp_path / "nowhere")

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 3, "added_tokens": [{}]}'])
    def test_a_damaged_file(self, tmp_path, content):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json' is not a tokenizer file"):
            load_tokenizer(tmp_path)

    def test_damaged_pieces(self, tmp_path):
        (tmp_path / "vocab.json").write_text("{")
        (tmp_path / "merges.txt").write_text("")
        with pytest.raises(ValueError, match="not a BPE vocabulary"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize(
        "added",
        ["[0]", '{"a": "b"}', '{"a": true}', '{"\\ud800": 260}', "[" * 100_000, None],
        ids=["list", "text", "bool", "surrogate", "deep", "pipe"],
    )
    def test_damaged_added_tokens(self, tmp_path, added):
        tokens = [*SPECIAL_TOKENS, *byte_symbols()]
        ids = {token: index for index, token in enumerate(tokens)}
        (tmp_path / "vocab.json").write_text(json.dumps(ids))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        path = tmp_path / "added_tokens.json"
        os.mkfifo(path) if added is None else path.write_text(added)
        with pytest.raises(ValueError, match=r"added_tokens\.json' is no object"):
            load_tokenizer(tmp_path)

    @needs_shared
    def test_only_some_of_the_tokens(self, tmp_path):
        content = json.loads(shared_path("processor", "tokenizer.json").read_text("utf-8"))
        content["added_tokens"] = content["added_tokens"][:600]
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
        with pytest.raises(ValueError, match="lacks 429 of the 1024"):
            load_tokenizer(tmp_path)

    def test_another_model(self, tmp_path):
        (tmp_path / "vocab.json").write_text('{"a": 0}')
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        with pytest.raises(ValueError, match="it is not Florence-2's"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("bin", [-1, 1000])
    def test_a_bin_out_of_range(self, bin):
        with pytest.raises(ValueError, match=f"must be 0..999, got {bin}"):
            demo_tokenizer().loc_id(bin)


def test_the_room_imports_no_jax_torch_or_transformers():
    program = (
        "import sys, importlib, pkgutil, florence_jax.processing as room\n"
        "[importlib.import_module(f'{room.__name__}.{m.name}')"
        " for m in pkgutil.iter_modules(room.__path__)]\n"
        "room.demo_tokenizer().encode(['a'])\n"
        "print([m for m in ('jax', 'torch', 'torchvision', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
