"""Whole runs of a tiny model: what they leave behind, and that going on changes nothing."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from florence_jax import Florence2Pipeline
from florence_jax.runtime.jsonl import read_lines
from florence_jax.training.checkpointing.manager import Checkpoints
from florence_jax.training.checkpointing.resume import RunError
from florence_jax.training.config import ExportConfig, LoggingConfig
from florence_jax.training.data.sources import JsonlConfig
from florence_jax.training.loop import Outcome, train
from florence_jax.training.metrics.logger import RunLog, TooManyProblems, say
from florence_jax.training.metrics.writers import JsonlWriter
from florence_jax.training.prepare import build_training
from florence_jax.training.pretrained import read_pretrained
from florence_jax.training.settings import CheckpointConfig
from tests.training.runs import a_config, final_state, lines, steps, stored_config, world
from tests.training.storm import Program

pytestmark = pytest.mark.usefixtures("compiled_on_disk")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_on_disk):
    """A run of five steps without interruption."""
    directory = tmp_path_factory.mktemp("whole")
    assert train(a_config(directory)) is Outcome.DONE
    return directory


@pytest.fixture(scope="module")
def three(tmp_path_factory, whole):
    """The same run, three steps long."""
    directory = tmp_path_factory.mktemp("three")
    assert train(updates_alone(directory, steps=3)) is Outcome.DONE
    return directory


@pytest.fixture(scope="module")
def compared(tmp_path_factory, whole):
    """The whole run, evaluated before it begins, with a line for three steps; what it said."""
    directory = tmp_path_factory.mktemp("compared")
    config = a_config(directory, logging=LoggingConfig(every=3))
    evaluation = dataclasses.replace(config.evaluation, before=True)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert train(dataclasses.replace(config, evaluation=evaluation)) is Outcome.DONE
    return directory, said.getvalue()


def updates_alone(directory, **options):
    """The run without what its updates do not need, for tests of something else."""
    config = a_config(directory, **options)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, valid=()),
        evaluation=dataclasses.replace(config.evaluation, every=0),
        export=ExportConfig(at_end=False),
    )


def light(directory, **options):
    """A run that trains one layer, which compiles in a third of the time."""
    config = updates_alone(directory, **options)
    rules = ((r"decoder/.*/fc2/.*", 1.0), (".*", 0.0))
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, rules=rules))


@pytest.fixture
def stopped(tmp_path, three):
    """A copy of it, to go on with."""
    return Path(shutil.copytree(three, tmp_path / "stopped"))


def test_a_run_that_goes_on_ends_as_one_that_never_stopped(whole, stopped):
    assert train(a_config(stopped)) is Outcome.DONE
    assert final_state(stopped) == final_state(whole)
    for name in ("loss", "grad_norm", "tokens"):
        expected = {row["step"]: row[name] for row in lines(whole, "train")}
        assert {row["step"]: row[name] for row in lines(stopped, "train")} == expected
    assert [row["step"] for row in lines(stopped, "resumed")] == [3]


def test_a_termination_while_xla_compiles_is_saved(whole, tmp_path):
    # The other phases: tests/training/test_terminations.py.
    directory = tmp_path / "run"
    program = Program(updates_alone(directory), tmp_path / "nothing is compiled")
    # What follows the frozen parameters are seconds of XLA, which hears no signal.
    assert program.reaches((directory / "frozen/step_00000000").is_dir), program.said
    time.sleep(1)
    program.send(signal.SIGTERM)
    assert program.status() == Outcome.INTERRUPTED, program.said
    assert "interrupted and saved at step 0" in program.said
    assert steps(directory) == [0]
    assert train(updates_alone(directory)) is Outcome.DONE
    assert final_state(directory) == final_state(whole)


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(whole, stopped, capsys):
    damaged = next((stopped / "checkpoints" / "step_00000003" / "state").rglob("ocdbt*/d/*"), None)
    damaged = damaged or max(
        (f for f in (stopped / "checkpoints" / "step_00000003").rglob("*") if f.is_file()),
        key=lambda file: file.stat().st_size,
    )
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert train(updates_alone(stopped)) is Outcome.DONE
    assert "step_00000003 is damaged" in capsys.readouterr().err
    assert [row["step"] for row in lines(stopped, "resumed")] == [2]
    assert final_state(stopped) == final_state(whole)


def test_what_a_run_leaves_behind(whole):
    assert steps(whole) == [2, 4, 5]
    rows = lines(whole, "train")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        assert row["learning_rate"] == pytest.approx(1e-2)
        assert row["examples"] == 2
        assert 0 < row["loss"] < 20
        assert min(row["tokens_per_second"], row["images_per_second"]) > 0
        assert "mfu" not in row  # nobody knows what this processor can do
    evaluations = lines(whole, "evaluation")
    assert [row["step"] for row in evaluations] == [4, 5]
    assert {"loss", "accuracy", "<OD> mAP@0.5", "<CAPTION> facts"} <= evaluations[0].keys()
    assert (whole / "samples" / "step_00000004" / "0000.png").is_file()
    assert list((whole / "tensorboard").glob("events*"))
    best = json.loads((whole / "checkpoints/step_00000005/meta.json").read_text())["best"]
    assert best["value"] == min(row["loss"] for row in evaluations)


def test_a_run_that_is_evaluated_before_it_begins_ends_with_a_comparison(whole, compared):
    directory, said = compared
    evaluations = lines(directory, "evaluation")
    assert [row["step"] for row in evaluations] == [0, 4, 5]
    assert evaluations[1:] == lines(whole, "evaluation")
    assert final_state(directory) == final_state(whole)
    assert steps(directory) == steps(whole)
    first, last = evaluations[0], evaluations[-1]
    (line,) = (one for one in said.splitlines() if one.startswith("before -> after: "))
    for name in ("loss", "<OD> mAP@0.5"):
        assert f"{name} {first[name]:.4f} -> {last[name]:.4f}" in line
    # The drawing of the last evaluation holds the answer before, too.
    widths = {}
    for step in (0, 5):
        with Image.open(directory / "samples" / f"step_{step:08d}" / "0000.png") as sheet:
            widths[step] = sheet.width
    assert widths[5] > widths[0]


def test_a_line_is_about_all_steps_since_the_last(whole, compared):
    each = lines(whole, "train")
    for row, some in zip(lines(compared[0], "train"), (each[:3], each[3:]), strict=True):
        tokens = [one["tokens"] for one in some]
        assert (row["step"], row["tokens"]) == (some[-1]["step"], sum(tokens))
        assert row["examples"] == 2 * len(some)
        assert row["grad_norm"] == max(one["grad_norm"] for one in some)
        for name in ("loss", "nll", "accuracy"):
            mean = np.average([one[name] for one in some], weights=tokens)
            assert row[name] == pytest.approx(mean, rel=1e-6)
            assert row[name] != pytest.approx(some[-1][name], rel=1e-3)


def test_nothing_is_left_to_do_after_the_last_step(whole, tmp_path):
    directory = tmp_path / "again"
    shutil.copytree(whole, directory)
    assert train(updates_alone(directory)) is Outcome.DONE
    assert len(lines(directory, "train")) == 5
    assert final_state(directory) == final_state(whole)


def test_fewer_steps_than_were_done_are_done(stopped):
    assert train(updates_alone(stopped, steps=2)) is Outcome.DONE
    assert len(lines(stopped, "train")) == 3


def test_another_config_is_refused_by_name(whole):
    config = a_config(whole)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1.0)
    changed = dataclasses.replace(config, seed=1, batch_size=4, optimizer=optimizer)
    with pytest.raises(RunError) as raised:
        train(changed)
    for message in (
        "seed was 0 and is 1",
        "batch_size was 2 and is 4",
        "optimizer.learning_rate was 0.01 and is 1.0",
        "name another directory",
    ):
        assert message in str(raised.value)
    assert stored_config(whole) == config


def test_a_finished_run_goes_on_with_more_steps_and_the_longer_schedule(stopped):
    config = as_cosine(stopped, updates_alone(stopped, steps=5))
    assert train(config) is Outcome.DONE
    # The first three steps had a constant rate; the others are the cosine's of five.
    rates = [row["learning_rate"] for row in lines(stopped, "train")]
    cosine = [0.5e-2 * (1 + np.cos(np.pi * step / 5)) for step in (3, 4)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, *cosine])
    assert stored_config(stopped).steps == 5
    assert train(config) is Outcome.DONE
    with pytest.raises(RunError, match="steps was 5 and is 4"):
        train(dataclasses.replace(config, steps=4))


def test_steps_are_fixed_while_the_learning_rate_depends_on_them(stopped):
    # As if it had been interrupted at 3 of 5.
    config = as_cosine(stopped, a_config(stopped, steps=9), steps=5)
    with pytest.raises(RunError, match=r"steps was 5 and is 9 \(more steps can be added once"):
        train(config)


def as_cosine(directory, config, **stored_changes):
    """The settings with another schedule, which the run's own are made to have."""
    stored = json.loads((directory / "config.json").read_text())
    stored["optimizer"]["schedule"] = "cosine"
    (directory / "config.json").write_text(json.dumps(stored | stored_changes))
    optimizer = dataclasses.replace(config.optimizer, schedule="cosine")
    return dataclasses.replace(config, optimizer=optimizer)


def test_rows_that_have_changed_are_refused_or_accepted_by_name(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    file = folder / "rows.jsonl"

    def write(words):
        row = {"image": "a.png", "prefix": "<CAPTION>"}
        file.write_text("".join(json.dumps(row | {"suffix": w}) + "\n" for w in words))

    write(["A red circle."] * 4)
    directory = tmp_path / "run"
    source = JsonlConfig(path=str(file))
    config = light(directory, train=(source,), steps=2)
    assert train(config) is Outcome.DONE
    more = dataclasses.replace(config, steps=3)
    write(["A red square."] * 4)
    with pytest.raises(RunError, match=r"rows\.jsonl has other content .* 4 rows, as many as"):
        train(more)
    write(["A red circle."] * 3)
    with pytest.raises(RunError, match=r"data/rows\.jsonl had 4 rows and has 3\. Restore them"):
        train(more)
    assert steps(directory) == [2]
    accepting = dataclasses.replace(
        more, data=dataclasses.replace(more.data, changed="accept", quarantine_share=1.0)
    )
    assert train(accepting) is Outcome.DONE
    assert "going on with training data that have changed" in capsys.readouterr().err
    # From now on these are its data.
    assert train(more) is Outcome.DONE
    write(["A red circle."] * 4)
    with pytest.raises(RunError, match="had 3 rows and has 4"):
        train(more)


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(whole, stopped, capsys):
    # Poison what is not in the checkpoints: then curing it must give the uninterrupted run again.
    good = stopped / "frozen"
    shutil.copytree(good, stopped / "good")
    training = build_training(updates_alone(stopped), read_pretrained(stopped / "processor"))
    abstract = training.abstract_state().frozen
    shutil.rmtree(good)
    with Checkpoints(good, CheckpointConfig()) as kept:
        kept.save(0, jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), abstract), {})
    assert train(updates_alone(stopped)) is Outcome.FAILED
    printed = capsys.readouterr().err
    assert "not finite in the step after 3" in printed
    assert "optimizer.learning_rate" in printed
    assert steps(stopped) == [2, 3]
    shutil.rmtree(good)
    (stopped / "good").rename(good)
    assert train(updates_alone(stopped)) is Outcome.DONE
    assert final_state(stopped) == final_state(whole)


def test_bad_rows_go_to_quarantine_and_past_a_threshold_the_run_stops(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "good.png")
    (folder / "bad.png").write_bytes((folder / "good.png").read_bytes()[:40])
    images = ["good.png", "bad.png", "../outside.png", "good.png", "good.png", "good.png"]
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps({"image": image, "prefix": "<CAPTION>", "suffix": "A red circle."}) + "\n"
            for image in images
        )
    )
    source = JsonlConfig(path=str(folder / "rows.jsonl"))
    config = light(tmp_path / "run", train=(source,), steps=6)
    lenient = dataclasses.replace(config.data, quarantine_share=0.5)
    assert train(dataclasses.replace(config, data=lenient)) is Outcome.DONE
    rows = list(read_lines(tmp_path / "run" / "quarantine.jsonl"))
    ids = sorted(row["id"].rpartition("/")[2] for row in rows)
    assert ids == ["rows.jsonl:1", "rows.jsonl:2"]
    assert any("lies outside" in row["reason"] for row in rows)
    # Two epochs of six rows: the two bad ones weighed nothing in either.
    assert sum(row["examples"] for row in lines(tmp_path / "run", "train")) == 8

    strict = dataclasses.replace(config, directory=str(tmp_path / "strict"))
    with pytest.raises(TooManyProblems, match=r"could not be used.*rows\.jsonl:\d"):
        train(strict)
    assert len(steps(tmp_path / "strict")) == 1


def test_what_is_exported_is_what_was_trained(whole):
    state = final_state(whole)
    pipeline = Florence2Pipeline.from_pretrained(whole / "export")
    from florence_jax.checkpoint.param_tree import flatten

    params = dict(flatten(pipeline.params))
    for path, leaf in params.items():
        if path != "projector/temporal_positions":
            assert np.asarray(leaf).tobytes() == state[f"ema.{path}"], path
    assert pipeline.image_config.size == (64, 64)
    assert pipeline.generation.max_new_tokens == 8
    assert pipeline.generation.no_repeat_ngram_size == 0
    answer = pipeline(Image.new("RGB", (64, 64)), "<OD>")
    assert set(answer["<OD>"]) >= {"bboxes", "labels"}


def test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").mkdir()
    writers = [JsonlWriter(tmp_path / "metrics.jsonl")]
    with RunLog(writers, first=0, steps=3, peak_flops=1e6) as log:
        for step in range(3):
            log.count(tokens=10, images=1, flops=1e3)
            log.training(step, {"loss": 1.0, "learning_rate": 0.1})
    assert len(re.findall("the log cannot be written", capsys.readouterr().err)) == 1


def test_a_terminal_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch):
    # As `python -m train.main > RUN/log 2>&1` has it when the disk is full.
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr("sys.stderr", full)
        writers = [JsonlWriter(tmp_path / "metrics.jsonl")]
        with RunLog(writers, first=0, steps=1, peak_flops=0) as log:
            say("before")
            log.count(tokens=10, images=1, flops=1e3)
            log.training(1, {"loss": 1.0, "learning_rate": 0.1})
            log.say("after")
        patched.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert [row["step"] for row in lines(tmp_path, "train")] == [1]


def test_the_metric_that_means_best_must_be_measured(tmp_path):
    config = a_config(tmp_path / "run", train=(world(),))
    evaluation = dataclasses.replace(config.evaluation, every=1, metric="<OCR> exact")
    with pytest.raises(RunError, match="'<OCR> exact' is not among what is measured: loss"):
        train(dataclasses.replace(config, evaluation=evaluation))
    # It costs no step: settings of the evaluation may change.
    assert steps(tmp_path / "run") == [1]
