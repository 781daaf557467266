"""Each tracker is the real library, read back by its own reader; no network is asked."""

import json
import sqlite3
import struct
import time

import pytest
from PIL import Image

from florence_jax.training.loop import train
from florence_jax.training.metrics.logger import RunLog
from florence_jax.training.metrics.trackers import open_trackers
from florence_jax.training.run_config import LoggingConfig
from tests.training.runs import a_config

SETTINGS = {"optimizer": {"learning_rate": 0.1}, "steps": 20}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    directory = tmp_path / "cells"
    (directory / "samples").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(directory / "samples" / "0003.png")
    return directory


def tracked(directory, **projects):
    """What was said, after a run of two sessions."""
    said = []
    for first in (0, 10):
        if first and "wandb" in projects:
            time.sleep(1.1)  # Its directories are named by the second.
        config = LoggingConfig(**projects)
        writers = open_trackers(config, directory, settings=SETTINGS, say=said.append)
        with RunLog(writers, first=first, steps=20, peak_flops=0) as log:
            log.write("train", first + 5, {"loss": 2.5 - first / 10, "note": "no number"})
            log.write("evaluation", first + 5, {"<OD> mAP@0.5": 0.25})
            log.pictures(first + 5, directory / "samples")
    return said


def leveldb_records(content, block=32_768):
    """The records of a LevelDB log file, whose header of its own has 7 bytes."""
    at, parts = 7, []
    while at < len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield b"".join(parts)
            parts = []


@pytest.mark.slow  # W&B starts a service, which takes 40 seconds; pip install wandb
def test_weights_and_biases_keeps_a_run_without_a_network(run):
    Record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    assert tracked(run, wandb="blood") == []
    # The service may write the file's end after the run has finished.
    deadline = time.monotonic() + 60
    rows, ids = [], set()
    while len(rows) < 6 and time.monotonic() < deadline:
        rows, ids = [], set()
        for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
            ids.add(path.stem.removeprefix("run-"))
            for record in map(Record.FromString, leveldb_records(path.read_bytes())):
                if record.WhichOneof("record_type") == "history":
                    rows.append(
                        {
                            item.key or "/".join(item.nested_key): json.loads(item.value_json)
                            for item in record.history.item
                        }
                    )
    assert ids == {json.loads((run / "trackers.json").read_text())["wandb"]}
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        (5, 2.5),
        (15, 1.5),
    ]
    assert [row["evaluation/<OD> mAP@0.5"] for row in rows if "evaluation/<OD> mAP@0.5" in row] == [
        0.25,
        0.25,
    ]
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/*.png"))) == 2


def test_trackio_goes_on_in_the_run_that_it_began(run, tmp_path, capsys):
    assert tracked(run, trackio="blood") == []
    name = json.loads((run / "trackers.json").read_text())["trackio"]
    with sqlite3.connect(tmp_path / "trackio" / "blood.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {row[0] for row in rows} == {name}
    figures = {}
    for _, step, text in rows:
        figures.setdefault(step, {}).update(json.loads(text))
    assert figures.keys() == {5, 15}
    assert (figures[5]["train/loss"], figures[15]["train/loss"]) == (2.5, 1.5)
    assert figures[5]["samples/0003"]["_type"] == "trackio.image"


@pytest.mark.slow  # MLflow makes the tables of a data base; pip install mlflow
@pytest.mark.filterwarnings("default")  # sqlalchemy's, of what MLflow calls
def test_mlflow_keeps_figures_settings_and_pictures(run):
    tracking = pytest.importorskip("mlflow.tracking")
    assert tracked(run, mlflow="blood") == []
    client = tracking.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    name = json.loads((run / "trackers.json").read_text())["mlflow"]
    losses = client.get_metric_history(name, "train/loss")
    assert [(one.step, one.value) for one in losses] == [(5, 2.5), (15, 1.5)]
    assert client.get_run(name).data.metrics["evaluation/_OD_ mAP_0.5"] == 0.25
    assert client.get_run(name).data.params["optimizer.learning_rate"] == "0.1"
    assert client.get_run(name).info.status == "FINISHED"
    assert (run / "mlflow" / name / "artifacts" / "samples" / "step_00000005" / "0003.png").exists()


def test_a_tracker_that_cannot_be_opened_is_said_and_left_out(run, monkeypatch):
    import trackio

    def refuse(*args, **options):
        raise RuntimeError("credentials have expired\nTraceback: a page of it")

    monkeypatch.setattr(trackio, "init", refuse)
    said = tracked(run, trackio="blood")
    assert len(said) == 2
    assert "trackio cannot be used (RuntimeError: credentials have expired); the run" in said[0]
    assert "Traceback" not in said[0]


def test_a_tracker_that_fails_later_is_said_once_and_the_run_goes_on(run, monkeypatch, capsys):
    import trackio

    class Broken:
        def log(self, values, step):
            raise ConnectionError("no route to host")

        def finish(self):
            raise ConnectionError("no route to host")

    monkeypatch.setattr(trackio, "init", lambda *args, **options: Broken())
    assert tracked(run, trackio="blood") == []
    said = capsys.readouterr().err
    assert said.count("trackio failed (ConnectionError: no route to host)") == 2  # of two sessions


def test_a_missing_package_is_named_before_a_run_begins(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    # Settings of a run are read elsewhere too: its export needs no tracker.
    config = a_config(run / "own", logging=LoggingConfig(wandb="mine"))
    with pytest.raises(ValueError, match=r"logging\.wandb=mine needs the package wandb, .*install"):
        train(config)
    assert not (run / "own").exists()


def test_damaged_ids_are_said_and_end_nothing(run):
    (run / "trackers.json").write_text("{")
    said = tracked(run, trackio="blood")
    assert len(said) == 2
    assert "trackio cannot be used" in said[0]
