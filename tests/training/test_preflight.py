"""What is wrong with a run is said before it leaves a trace, and what it leaves out is derived."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
from PIL import Image

from florence_jax.training.checkpointing.resume import RunError, begin, pin
from florence_jax.training.config_loader import SettingsError
from florence_jax.training.data.preprocess import (
    make_preprocessor,
    padded_length,
    padded_to_longest,
)
from florence_jax.training.data.sources import CocoConfig, JsonlConfig
from florence_jax.training.loop import train
from florence_jax.training.prepare import prepare, with_steps
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
    assert with_steps(config, 7 + 4).steps == 5  # 16.5 rows
    warm = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=9)
    )
    with pytest.raises(ValueError, match="warmup_steps is 9 and the run has 5 steps"):
        with_steps(warm, 7 + 4)


def test_lengths_that_are_not_set_are_what_the_model_has_room_for(prepared):
    start = prepared.pretrained
    # 320 positions; 16 x 16 places and their mean of a picture of 64 x 64.
    image = start.config.num_image_tokens(64, 64)
    maker = make_preprocessor(prepared.config.data, start)
    assert (maker.max_prompt, maker.max_labels) == (320 - image, 320)
    set_ = dataclasses.replace(prepared.config.data, max_prompt=9)
    maker = make_preprocessor(set_, start)
    assert (maker.max_prompt, maker.max_labels) == (9, 320)


def test_padding_doubles_and_ends_at_the_longest():
    assert [padded_length(n, 16, 447) for n in (2, 16, 17, 200, 300, 447)] == [
        16, 16, 32, 256, 447, 447,
    ]  # fmt: skip


def test_several_processes_pad_to_the_longest_row_that_fits(prepared):
    sources = [source for _, source, _ in prepared.data.train]
    padded = padded_to_longest(prepared.preprocessor, prepared.config.data, sources)
    tokenizer = prepared.pretrained.tokenizer
    # The row of 2,000 words fits no model and is quarantined; the one before it decides.
    (longest,) = tokenizer.encode(["a red circle and a blue square " * 3])
    expected = padded_length(len(longest), 32, 320)
    assert padded.max_labels == padded.min_labels_bucket == expected
    assert padded.max_prompt == padded.min_prompt_bucket == 16
    assert sources[0].longest_texts(tokenizer, (64, 320))[1] == len(longest)
    # What is set is kept.
    data = dataclasses.replace(prepared.config.data, max_prompt=30, max_labels=40)
    kept = padded_to_longest(make_preprocessor(data, prepared.pretrained), data, sources)
    assert (kept.min_prompt_bucket, kept.min_labels_bucket) == (30, 40)


def test_one_length_pads_every_batch_and_evaluation_alike(prepared, tmp_path):
    rows = prepared.config.data.train
    Image.new("RGB", (8, 8)).save(Path(rows[0].path).with_name("a.png"))
    data = dataclasses.replace(prepared.config.data, one_length=True, valid=rows)
    one = prepare(dataclasses.replace(prepared.config, data=data), tmp_path / "processor")
    sources = [source for _, source, _ in one.data.train]
    padded = padded_to_longest(prepared.preprocessor, data, sources)
    assert one.loader.preprocessor.min_labels_bucket == padded.min_labels_bucket
    longest = padded_to_longest(prepared.preprocessor, data, list(one.data.valid.values()))
    assert one.preprocessor.min_prompt_bucket == longest.min_prompt_bucket
    assert one.preprocessor.min_labels_bucket == longest.min_labels_bucket
    shapes = {one.loader.batch(step).labels.shape for step in range(6)}
    assert shapes == {(1, 2, padded.max_labels)}
    assert one.preprocessor.max_labels == prepared.preprocessor.max_labels


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
    run.mkdir()
    begin(prepared.config, run, files, functools.partial(pin, prepared.data))
    (run / "checkpoints" / "step_00000004").mkdir(parents=True)
    again = prepare(config, run / "processor", resumed=True)
    assert again.config.steps == 8
    begin(again.config, run, files, functools.partial(pin, again.data))
    rows.write_text(line * 6)
    fewer = prepare(config, run / "processor", resumed=True)
    with pytest.raises(RunError, match=r"training data of .*rows\.jsonl had 8 rows and has 6"):
        begin(fewer.config, run, files, functools.partial(pin, fewer.data))


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
    begin(config, run, files, functools.partial(pin, prepared.data))
    (run / "checkpoints" / "step_00000004").mkdir(parents=True)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(RunError, match=rf"{name} is damaged or not there.* from a backup"):
        begin(config, run, files, functools.partial(pin, prepared.data))


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
