"""What is wrong with a run is said before it leaves a trace, and what it leaves out is derived."""

import dataclasses
import json
import shutil

import pytest

from florence_jax.training.build import longest_texts, make_preprocessor, with_longest
from florence_jax.training.checkpointing.resume import RunError, begin, check_data, check_same
from florence_jax.training.config_loader import SettingsError, to_tree
from florence_jax.training.data.preprocess import longest_texts_of, padded_length
from florence_jax.training.data.sources import CocoConfig, JsonlConfig
from florence_jax.training.loop import train
from florence_jax.training.preflight import prepare, with_steps
from florence_jax.training.pretrained import prepare_pretrained
from tests.training.runs import a_config, world


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run of rows.jsonl, without lengths and steps."""
    directory = tmp_path_factory.mktemp("data")
    rows = directory / "rows.jsonl"
    words = ["a", "a red circle", "a red circle and a blue square " * 3, "word " * 2000]
    row = {"image": "a.png", "prefix": "<CAPTION>"}
    rows.write_text("".join(json.dumps(row | {"suffix": text}) + "\n" for text in words))
    config = a_config(directory / "run", train=(JsonlConfig(path=str(rows)),))
    data = dataclasses.replace(config.data, max_prompt=None, max_labels=None, valid=())
    config = dataclasses.replace(config, data=data, steps=None, epochs=3.0)
    return prepare(config, directory / "processor")


def test_all_problems_are_said_and_nothing_is_made(tmp_path):
    config = a_config(tmp_path / "run", train=(JsonlConfig(path="nowhere.jsonl"),))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            train=(*config.data.train, CocoConfig(path="absent.json")),
            valid=(JsonlConfig(path="gone.jsonl"),),
        ),
        optimizer=dataclasses.replace(config.optimizer, rules=(("decoder", 1.0),)),
    )
    with pytest.raises(SettingsError) as raised:
        train(config)
    lines = str(raised.value).splitlines()
    assert [line for line in lines if "nowhere.jsonl" in line]
    assert [line for line in lines if "absent.json" in line]
    assert [line for line in lines if "gone.jsonl" in line]
    assert [line for line in lines if "match no rule" in line]
    assert len(lines) == 4
    assert not (tmp_path / "run").exists()


def test_epochs_are_counted_by_the_rows_of_all_sources(prepared):
    # Three times four rows in batches of two.
    assert (prepared.config.steps, prepared.config.epochs) == (6, None)
    config = dataclasses.replace(prepared.config, steps=None, epochs=1.5, batch_size=4)
    sources = [("a", range(7), 1.0), ("b", range(4), 9.0)]
    assert with_steps(config, sources).steps == 5  # 16.5 rows
    warm = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=9)
    )
    with pytest.raises(ValueError, match="warmup_steps is 9 and the run has 5 steps"):
        with_steps(warm, sources)


def test_lengths_that_are_not_set_are_what_the_model_has_room_for(prepared):
    start = prepared.pretrained
    # 320 positions; 16 x 16 places and their mean of a picture of 64 x 64.
    image = start.config.num_image_tokens(64, 64)
    assert longest_texts(prepared.config.data, start) == (320 - image, 320)
    set_ = dataclasses.replace(prepared.config.data, max_prompt=9)
    assert longest_texts(set_, start) == (9, 320)
    maker = make_preprocessor(prepared.config.data, start, training=True)
    assert (maker.max_prompt, maker.max_labels) == (320 - image, 320)


def test_padding_doubles_and_ends_at_the_longest():
    assert [padded_length(n, 16, 447) for n in (2, 16, 17, 200, 300, 447)] == [
        16, 16, 32, 256, 447, 447,
    ]  # fmt: skip


def test_several_processes_pad_to_the_longest_row_that_fits(prepared):
    config = with_longest(prepared.config, prepared.pretrained, prepared.sources)
    tokenizer = prepared.pretrained.tokenizer
    # The row of 2,000 words fits no model and is quarantined; the one before it decides.
    (longest,) = tokenizer.encode(["a red circle and a blue square " * 3])
    expected = padded_length(len(longest), 32, 320)
    assert config.data.max_labels == expected
    assert config.data.max_prompt == 16
    ((_, source, _),) = prepared.sources
    assert longest_texts_of([source], tokenizer, (64, 320))[1] == len(longest)
    # What is set is kept.
    data = dataclasses.replace(prepared.config.data, max_prompt=30, max_labels=40)
    kept = dataclasses.replace(prepared.config, data=data)
    assert with_longest(kept, prepared.pretrained, prepared.sources) == kept


def test_a_picture_that_fills_the_model_is_refused(tmp_path):
    config = a_config(tmp_path / "run", train=(world(),))
    data = dataclasses.replace(config.data, image_size=(128, 128))
    with pytest.raises(ValueError, match=r"leaves no room .* lower data\.image_size"):
        prepare(dataclasses.replace(config, data=data), tmp_path / "processor")


def test_of_a_run_by_epochs_it_is_the_rows_that_have_changed_and_not_the_steps(tmp_path):
    rows = tmp_path / "rows.jsonl"
    line = json.dumps({"image": "a.png", "prefix": "<CAPTION>", "suffix": "x"}) + "\n"
    rows.write_text(line * 8)
    config = a_config(tmp_path / "run", train=(JsonlConfig(path=str(rows)),))
    config = dataclasses.replace(config, steps=None, epochs=2.0)
    run, files = tmp_path / "run", tmp_path / "files"
    prepared = prepare(config, files)
    (run / "checkpoints" / "step_00000004").mkdir(parents=True)
    shutil.copytree(files, run / "processor")
    (run / "config.json").write_text(json.dumps(to_tree(prepared.config)))
    (run / "data.json").write_text(json.dumps(check_data(config, run, prepared.sources)))
    assert prepare(config, files, run=run).config.steps == 8
    rows.write_text(line * 6)
    with pytest.raises(RunError, match=r"training data of .*rows\.jsonl had 8 rows and has 6"):
        prepare(config, files, run=run)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", None), ("config.json", "[]"), ("config.json", "{}"), ("data.json", "[]")],
)
def test_a_run_whose_own_notes_are_damaged_names_them(tmp_path, name, content):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": "a.png", "prefix": "<CAPTION>", "suffix": "x"}) + "\n")
    config = a_config(tmp_path / "run", train=(JsonlConfig(path=str(rows)),))
    run, files = tmp_path / "run", tmp_path / "files"
    prepared = prepare(config, files)
    run.mkdir()
    begin(config, run, files, {"rows": {}, "files": {}})
    (run / "checkpoints" / "step_00000004").mkdir(parents=True)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)

    def resume():
        check_same(config, run)
        check_data(config, run, prepared.sources)

    with pytest.raises(RunError, match=rf"{name} is damaged or not there.* from a backup"):
        resume()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shutil:rmtree", "is no function .* that writes a processor: name one, or a directory"),
        ("os:sep", "is no function"),
        ("absent_module:function", "cannot be imported"),
    ],
)
def test_only_functions_that_write_processors_are_called(tmp_path, name, message):
    config = a_config(tmp_path / "run")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, processor=name))
    files = tmp_path / "files"
    with pytest.raises(ValueError, match=f"model.processor={name} {message}"):
        prepare_pretrained(config, files)
    assert files.is_dir(), "nothing was called"
